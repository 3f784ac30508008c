"""Sampled measurement: policies x shifts x prompts -> answers.

Shapes: K objectives. One file of answers per (row, preference, shift) is written as soon as it is complete, so that an
interrupted evaluation resumes after the last one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.data.answers import SampledAnswer
from align.errors import UserError
from align.preferences import Weights
from align.runs import Ledger

REFERENCE = "reference"


@dataclass(frozen=True)
class Point:
    """One policy of one row of the table, and the preference that it answers."""

    row: str
    preference: Weights
    policy: Any


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn: temperature 1, `samples` per prompt, at most `max_new_tokens` tokens each."""

    samples: int = 2
    max_new_tokens: int = 512
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"sampling: {name} is {getattr(self, name)}; give at least 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"sampling: seed is {self.seed}; give one in [0, 2**32)")


def sample_answers(
    points: Sequence[Point],
    *,
    reference: Any,
    prompts: Mapping[str, Sequence[Mapping[str, str]]],
    objectives: Mapping[str, Any],
    sampling: Sampling,
    folder: Path,
    ledger: Ledger,
) -> list[SampledAnswer]:
    """Answers of every point on every shift (`prompts[shift]`: rows with prompt and item), in order; resumes there.

    Rows with the `plain` prompt that theirs is a shift of are judged on that; what the judges say on the prompt as
    asked is then in `values_shifted`.

    All rows draw with the same seeds. An answer's KL is `log pi - log ref` of the tokens that were drawn, the end where
    it came: 0 for the reference, a bound for best-of-n, which is charged for all the samples and scores that a response
    takes.
    """
    from tqdm.auto import tqdm

    from evals.measure.answers import append_answers, read_sampled

    folder.mkdir(parents=True, exist_ok=True)
    work = [(point, shift) for point in points for shift in prompts]
    answers: list[SampledAnswer] = []
    for number, (point, shift) in enumerate(tqdm(work, desc="evaluate", disable=None, leave=False)):
        file = folder / f"{number:04d}.jsonl"
        if not file.exists():
            drawn = _answers_of(point, shift, prompts[shift], reference, objectives, sampling)
            decoding = getattr(point.policy, "scores_per_response", 0)
            ledger.add(
                samples_drawn=len(drawn) * point.policy.samples_per_response,
                scores_read=len(drawn) * (len(objectives) + decoding),
            )
            unfinished = file.with_suffix(".tmp")
            unfinished.unlink(missing_ok=True)
            append_answers(unfinished, drawn)
            unfinished.rename(file)
        answers += read_sampled(file)
        if point.policy is not reference and hasattr(point.policy, "release"):
            point.policy.release()
    return answers


def _answers_of(
    point: Point,
    shift: str,
    rows: Sequence[Mapping[str, str]],
    reference: Any,
    objectives: Mapping[str, Any],
    sampling: Sampling,
) -> list[SampledAnswer]:
    from align.models.sampling import told

    answers: list[SampledAnswer] = []
    texts = [row["prompt"] for row in rows]
    plain = [row.get("plain", row["prompt"]) for row in rows]  # what judges read in place of a shifted prompt
    for sample in range(sampling.samples):
        drawn = point.policy.draw(
            texts,
            max_new_tokens=sampling.max_new_tokens,
            seed=sampling.seed + sample,
            batch_size=sampling.batch_size,
        )
        completions = [response.text for response in drawn]
        read = completions if plain == texts else _decoded(shift, completions)
        as_drawn = told(drawn)
        scores_K = [_scores(name, objective, plain, read, **as_drawn) for name, objective in objectives.items()]
        shifted_K = scores_K
        if plain != texts:
            shifted_K = [_scores(name, objective, texts, read, **as_drawn) for name, objective in objectives.items()]
        if point.row == REFERENCE:
            ratios = [0.0] * len(texts)
        else:
            own, base = (policy.sequence_logprobs(texts, drawn) for policy in (point.policy, reference))
            ratios = [a - b for a, b in zip(own, base, strict=True)]
        for i, row in enumerate(rows):
            answers.append(
                SampledAnswer(
                    row=point.row,
                    preference=tuple(point.preference),
                    shift=shift,
                    item=row["item"],
                    prompt=row["prompt"],
                    values=tuple(scores[i] for scores in scores_K),
                    kl=ratios[i],
                    sample=sample,
                    completion=completions[i],
                    values_shifted=tuple(scores[i] for scores in shifted_K) if "plain" in row else None,
                )
            )
    return answers


def _decoded(shift: str, completions: Sequence[str]) -> list[str]:
    """The responses in plain text, where a shift asks for another form."""
    from evals.shifts import SHIFTS

    return [SHIFTS[shift].decode(completion) for completion in completions]


def _scores(
    name: str, objective: Any, prompts: Sequence[str], completions: Sequence[str], **as_drawn: object
) -> list[float]:
    scores = [None if score is None else float(score) for score in objective(prompts, completions, **as_drawn)]
    for prompt, score in zip(prompts, scores, strict=True):
        if score is None or not math.isfinite(score):
            raise UserError(f"objective {name} gives {score} for the prompt {prompt[:60]!r}; leave that prompt out")
    return [score for score in scores if score is not None]
