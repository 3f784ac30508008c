"""Scored samples of the reference: drawn once, metered, kept on disk, and shared by all preferences that use them.

Legend: P prompts, N samples of each, K objectives.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np

from align import checks
from align.data.comparisons import Row
from align.engines.on_policy.prompts import counted, sayable
from align.engines.on_policy.rollouts import draw_rows
from align.engines.points import charged_stage, inputs_of
from align.engines.problem import P, Problem
from align.errors import UserError
from align.models import count_parameters, load_tokenizer
from align.models.formats import formatter
from align.models.load import load_to_read
from align.models.reading import Reader, sequence_logprobs
from align.models.reading import Row as IdRow
from align.models.sampling import Drawn, plain_sampling, told
from align.objectives.base import Objective
from align.objectives.metered import Metered
from align.policies.best_of_n import ranking, weighted_sums
from align.runs import Ledger, Workspace

SAMPLES_FILE = "samples.jsonl"


class SamplingConfig(Protocol):
    """Fields of every method's config that draws from the reference before it trains."""

    @property
    def n(self) -> int: ...
    @property
    def max_completion_length(self) -> int: ...
    @property
    def sample_batch_size(self) -> int: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """`n` responses per prompt at temperature 1, nothing of the distribution cut off, `batch_size` at a time.

    `max_completion_length` counts tokens, the ending one included; what has not ended by then is cut and scored as it
    is.
    """

    n: int
    max_completion_length: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        checks.at_least(1, self, "n", "max_completion_length", "batch_size")

    @classmethod
    def of(cls, config: SamplingConfig) -> Drawing:
        """The drawing that a method's config asks for."""
        return cls(
            n=config.n,
            max_completion_length=config.max_completion_length,
            batch_size=config.sample_batch_size,
            seed=config.seed,
        )


@dataclass(frozen=True)
class Sample:
    """A response: its prompt and the place of that in the rows, the token ids drawn, text, and scores by objective."""

    row: int
    prompt: str
    ids: list[int]
    text: str
    scores: dict[str, float | None]


def shared_samples(
    drawing: Drawing, problem: Problem[P], run: Workspace, *, objectives: Mapping[str, Objective]
) -> list[Sample]:
    """Samples for the problem's prompts, scored by those of its objectives that are named in `objectives`; drawn unless
    an earlier call kept them in `run.folder`, and charged either way.

    They are known by `drawing`, the objectives' names and the problem. UserError for prompt rows of different columns.
    """
    prompts = problem.prompts or ()

    def body(place: Workspace) -> Mapping[str, object]:
        askable, left_out = sayable(prompts, formatter(load_tokenizer(problem.reference)))
        drawn = draw_samples(
            drawing, reference=problem.reference, objectives=objectives, prompts=askable, ledger=place.ledger
        )
        lines = (json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in drawn)
        (place.folder / SAMPLES_FILE).write_text("".join(lines), encoding="utf-8")
        return {
            "samples": len(drawn),
            "of_full_length": sum(len(s.ids) == drawing.max_completion_length for s in drawn),
            **counted(left_out),
        }

    config = {"drawing": drawing, "objectives": list(objectives)}
    inputs = inputs_of(problem, rows=prompts)
    charged_stage(run, stage="reference samples", config=config, inputs=inputs, body=body)
    with open(run.folder / SAMPLES_FILE, encoding="utf-8") as lines:
        return [Sample(**json.loads(line)) for line in lines]


def draw_samples(
    drawing: Drawing, *, reference: str, objectives: Mapping[str, Objective], prompts: Sequence[Row], ledger: Ledger
) -> list[Sample]:
    """`n` scored samples for every prompt row, row by row; the rows' other columns go to the objectives."""
    columns = [name for name in prompts[0] if name != "prompt"]
    for row in prompts:
        if set(row) != {"prompt", *columns}:
            raise UserError(f"prompt {row.get('id', '?')} has other columns than the first row; give all rows the same")
    places = [i for i in range(len(prompts)) for _ in range(drawing.n)]
    asked = [str(prompts[i]["prompt"]) for i in places]
    drawn = draw_responses(drawing, reference=reference, prompts=asked, ledger=ledger)
    ids, texts = [list(response.ids) for response in drawn], [response.text for response in drawn]
    given = {name: [prompts[i][name] for i in places] for name in columns}
    scores = {
        name: Metered(name, objective, ledger)(asked, texts, **given, **told(drawn))
        for name, objective in objectives.items()
    }
    return [
        Sample(place, asked[i], ids[i], texts[i], {name: column[i] for name, column in scores.items()})
        for i, place in enumerate(places)
    ]


def draw_responses(drawing: Drawing, *, reference: str, prompts: Sequence[str], ledger: Ledger) -> list[Drawn]:
    """One response per prompt, with its token ids up to and with the ending token where one was drawn."""
    import torch

    tokenizer = load_tokenizer(reference)
    model = load_to_read(reference)
    longest = max(map(len, formatter(tokenizer).prompts_ids(prompts)))
    checks.prompts_fit(longest, model, max_completion_length=drawing.max_completion_length)
    torch.manual_seed(drawing.seed)
    with plain_sampling(model, tokenizer, max_tokens=drawing.max_completion_length) as ends:
        rows = draw_rows(model, tokenizer, prompts, ends=ends, batch_size=drawing.batch_size)
    read = sum(len(head) + len(response.ids) for head, response in rows)  # 2 N each; `tokens` counts what trainers feed
    ledger.add(samples_drawn=len(rows), flops=2 * count_parameters(model, embeddings=False) * read)
    return [response for _, response in rows]


def scored_groups(samples: Sequence[Sample], *, names: Sequence[str]) -> tuple[list[list[Sample]], int]:
    """(Samples by prompt row that all of `names` score, at least two of each; how many were left out for want of it).

    UserError when no row is left.
    """
    of_row: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        if all(sample.scores[name] is not None for name in names):
            of_row[sample.row].append(sample)
    groups = [group for group in of_row.values() if len(group) > 1]
    if not groups:
        raise UserError(
            f"no prompt has two samples that {', '.join(names)} all score; raise n, or give objectives that score them"
        )
    return groups, len(samples) - sum(len(group) for group in of_row.values())


def best_samples(samples: Sequence[Sample], *, weights: Mapping[str, float], keep: int, seed: int) -> list[Sample]:
    """The `keep` samples of largest `w . r` of each prompt row, uniformly among equals; the best first.

    UserError where an objective with a weight scores some samples of a prompt and not others.
    """
    used = {name: w for name, w in weights.items() if w}
    columns = {name: [sample.scores[name] for sample in samples] for name in used}
    totals = weighted_sums(columns, weights=used, prompts=[sample.prompt for sample in samples])
    rng = random.Random(f"best samples {seed}")
    of_row: dict[int, list[int]] = {}
    for i, sample in enumerate(samples):
        of_row.setdefault(sample.row, []).append(i)
    kept = []
    for places in of_row.values():
        order = ranking([totals[i] for i in places], rng=rng)
        kept += [samples[places[j]] for j in order[:keep]]
    return kept


@dataclass(frozen=True)
class SampleTable:
    """Samples by prompt as arrays: rows of ids, rewards (P, N, K), log-probabilities under the reference (P, N).

    `log_mass_PN` is log 1 / N of each prompt's own N, and -inf where another prompt has more samples.
    """

    rows: Sequence[Sequence[IdRow]]
    rewards_PNK: np.ndarray
    reference_PN: np.ndarray
    log_mass_PN: np.ndarray


def sample_table(
    groups: Sequence[Sequence[Sample]], *, names: Sequence[str], reference: str, ledger: Ledger
) -> SampleTable:
    """The samples with their log-probabilities under the reference; a response that came up twice is read once.

    Each prompt's samples are sorted by their ids, so that draws at even places (`systematic_draws`) differ.
    """
    tokenizer, model = load_tokenizer(reference), load_to_read(reference)
    ordered = [sorted(group, key=lambda sample: sample.ids) for group in groups]
    heads = formatter(tokenizer).prompts_ids([group[0].prompt for group in ordered])
    rows = [[(tuple(head), tuple(sample.ids)) for sample in group] for head, group in zip(heads, ordered, strict=True)]
    distinct = list(dict.fromkeys(row for group in rows for row in group))
    reader = Reader(pad_id=tokenizer.pad_token_id, longest_first=True)
    read = dict(zip(distinct, sequence_logprobs(model, distinct, reader=reader), strict=True))
    tokens = sum(len(head) + len(tail) for head, tail in distinct)
    ledger.add(flops=2 * count_parameters(model, embeddings=False) * tokens)
    shape = (len(rows), max(map(len, rows)))
    rewards_PNK, reference_PN = np.zeros((*shape, len(names))), np.zeros(shape)
    log_mass_PN = np.full(shape, -np.inf)
    for p, group in enumerate(ordered):
        rewards_PNK[p, : len(group)] = [[sample.scores[name] for name in names] for sample in group]
        reference_PN[p, : len(group)] = [read[row] for row in rows[p]]
        log_mass_PN[p, : len(group)] = -np.log(len(group))
    return SampleTable(rows, rewards_PNK, reference_PN, log_mass_PN)
