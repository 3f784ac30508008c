"""What the in-context methods share: tags of a config, parts of a training as runs, scored responses, tagged samples.

Objectives read prompts without tags. Responses are kept as the token ids that were drawn: nothing is spelled again
between sampling, scoring and training, and a response that was cut has no end token.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from align import checks
from align.data.comparisons import Ids, Row, ids_of, responses_of, row_scores
from align.engines.on_policy.prompts import sayable
from align.engines.on_policy.rollouts import draw
from align.engines.problem import P, Problem
from align.errors import UserError
from align.models import count_parameters, load_tokenizer
from align.models.formats import formatter
from align.models.sampling import plain_sampling
from align.objectives.base import Objective
from align.objectives.metered import Metered, objective_scores
from align.policies.tagged import Numbers, TaggedFamily, Tags, choose_tags, tagged_checkpoint
from align.policies.told_apart import ToldApart, extremes_kl
from align.runs import Ledger, Run, Workspace
from align.runs.folders import holds_only_its_own
from align.turns import last_question

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SOURCES = ("rows", "objectives")
KEPT_FILE = "kept.jsonl"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TagFields:
    """How the preference is written into the prompt."""

    tags: str = "auto"  # text, tokens (added to the vocabulary), or auto: text where the tokenizer can say it
    levels: int = 20  # steps between a tag's lowest and highest number


@dataclass(frozen=True)
class Response:
    """A scored response: its untagged prompt, token ids with the ending one if it was drawn, a score per objective."""

    prompt: str
    ids: tuple[int, ...]
    scores: tuple[float, ...]


# ------------------------------------------------------------------------------------------------------ tags and stages


def make_tags(config: TagFields, problem: Problem[P], **others: object) -> Tags:
    """The tags of a config for the problem's objectives; `others` are further fields of `Tags`."""
    names = tuple(problem.objectives)
    return choose_tags(config.tags, reference=problem.reference, names=names, levels=config.levels, **others)


def used_up(run: Run) -> None:
    """Delete the model of a part that the next one has trained on, unless a file was added; its metrics stay."""
    if holds_only_its_own(run.path):
        shutil.rmtree(run.path / "model", ignore_errors=True)


@contextmanager
def start_model(reference: str, *, tags: Tags, folder: Path, seed: int) -> Iterator[str]:
    """The checkpoint to train from: the reference, or with tag tokens a copy with them, kept while the block lasts."""
    yield tagged_checkpoint(reference, tags=tags, out=folder / "start", seed=seed)
    shutil.rmtree(folder / "start", ignore_errors=True)


def untrained_family(
    method: str, problem: Problem[P], *, tags: Tags, claim: str, asked: str = "weights",
    low: Sequence[float] = (), high: Sequence[float] = (),
) -> TaggedFamily:  # fmt: skip
    """The family whose model is yet to be trained; `claim` says what it will optimise for whatever it is asked."""
    return TaggedFamily(
        method, "", tags, asked=asked, low=tuple(low), high=tuple(high), preferences=tuple(problem.preferences),
        optimises={p.label: f"{claim} [asked {p.label}]" for p in problem.preferences},
    )  # fmt: skip


def trained_family(family: TaggedFamily, trained: Run) -> TaggedFamily:
    """The family with the model of the run `trained`."""
    return replace(family, model=str(trained.path / "model"))


def told_apart(family: TaggedFamily, problem: Problem[P], place: Workspace, *, seed: int) -> dict[str, float]:
    """Whether the model that was saved in `place` has learned its tags: metrics, and a line on stderr where it has not.

    What is drawn for that is charged to nobody, as in an evaluation.
    """
    prompts = list(dict.fromkeys(str(row["prompt"]) for row in problem.prompts or problem.comparisons or ()))
    with tempfile.TemporaryDirectory() as folder:
        before = tagged_checkpoint(problem.reference, tags=family.tags, out=Path(folder) / "untrained", seed=seed)
        models = (str(place.folder / "model"), before)
        kl, untrained = (extremes_kl(replace(family, model=model), prompts, seed=seed) for model in models)
    if kl is None or untrained is None:
        return {}
    found = ToldApart(kl, untrained, tokens=family.tags.tokens)
    found.tell(method=family.method)
    return found.metrics()


# ------------------------------------------------------------------------------------------------------------ responses


def askable(problem: Problem[P]) -> tuple[Problem[P], dict[str, int]]:
    """The problem with the rows whose prompt the reference's format can say and tags can stand in, and how many were
    left out by reason.
    """
    form, lost = formatter(load_tokenizer(problem.reference)), Counter[str]()

    def kept(rows: Sequence[Row] | None) -> list[Row] | None:
        if rows is None:
            return None
        asked = [row for row in rows if last_question(row["prompt"]) is not None]
        if rows and not asked:
            raise UserError(f"none of the {len(rows)} prompts has a user turn for the tags to stand in")
        said, left_out = sayable(asked, form)
        lost.update(left_out)
        lost["no_user_turn"] += len(rows) - len(asked)
        return said

    problem = replace(problem, prompts=kept(problem.prompts), comparisons=kept(problem.comparisons))
    return problem, {reason: count for reason, count in lost.items() if count}


def response_ids(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], texts: Sequence[str], drawn: Sequence[Ids] = ()
) -> list[tuple[int, ...]]:
    """Token ids of each response to its prompt: those that were `drawn`, else closed as its format closes a reply."""
    form = formatter(tokenizer)
    read: dict[tuple[str, str], tuple[int, ...]] = {}
    found = []
    for prompt, text, ids in zip(prompts, texts, drawn or [None] * len(texts), strict=True):
        if ids is None and (prompt, text) not in read:
            read[prompt, text] = tuple(form.reply_ids(prompt, text))
        found.append(read[prompt, text] if ids is None else ids)
    return found


def scored_pairs(problem: Problem[P], *, source: str, ledger: Ledger) -> list[tuple[Response, Response]]:
    """Both responses of every comparison with all their scores: from the rows, or asked from the objectives."""
    rows, objectives = problem.comparisons or (), problem.objectives

    if source not in SOURCES:
        raise UserError(f"scores must be one of {', '.join(SOURCES)}, not {source!r}")
    if source == "rows":
        scores: Mapping[str, Any] = row_scores(rows)
        ledger.add(scores_read=2 * len(objectives) * len(rows))
    else:
        scores = objective_scores(rows, objectives=objectives, ledger=ledger)
    prompts, tokenizer = [row["prompt"] for row in rows], load_tokenizer(problem.reference)
    sides = []
    for side in (0, 1):
        texts, drawn = [responses_of(row)[side] for row in rows], [ids_of(row)[side] for row in rows]
        ids = response_ids(tokenizer, prompts, texts, drawn)
        found = [tuple(map(float, scores[str(row["id"])][side])) for row in rows]
        for row, values in zip(rows, found, strict=True):
            if len(values) != len(objectives):
                raise UserError(f"comparison {row['id']} has {len(values)} scores for {len(objectives)} objectives")
        sides.append([Response(*parts) for parts in zip(prompts, ids, found, strict=True)])
    return list(zip(*sides, strict=True))


def prompts_to_ask(problem: Problem[P], *, method: str) -> list[Row]:
    """The given prompts, else those of the comparisons, each once; UserError when there are neither."""
    prompts = problem.prompts
    if prompts:
        for row in prompts:
            if set(row) != set(prompts[0]):
                raise UserError(f"prompt {row.get('id', '?')} has other columns than the first; give all rows the same")
        return list(prompts)
    texts = dict.fromkeys(row["prompt"] for row in problem.comparisons or ())
    if not texts:
        raise UserError(f"{method} needs prompts to sample from; pass rows with a prompt")
    return [{"prompt": text} for text in texts]


class SamplingFields(Protocol):
    """A config that says how many tokens a response has at most, and how many responses are drawn at a time."""

    @property
    def max_completion_length(self) -> int: ...

    @property
    def sample_batch_size(self) -> int: ...


def sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, asked: Sequence[tuple[Row, Numbers | None]],
    tags: Tags, objectives: Mapping[str, Objective], config: SamplingFields, seed: int, ledger: Ledger,
) -> list[Response]:  # fmt: skip
    """One scored response for every prompt row behind tags of these numbers (None: without tags), in order.

    `model` forbids tag tokens already (`forbid`). The rows' other columns go to the objectives. UserError where an
    objective does not apply.
    """
    import torch

    texts = [row["prompt"] if v is None else tags.apply(row["prompt"], v) for row, v in asked]
    form, most = formatter(tokenizer), config.max_completion_length
    longest = max(len(form.prompt_ids(text)) for text in dict.fromkeys(texts)) + most
    fix = "leave out such prompts, or lower max_completion_length"
    checks.fits(longest, model, what="the longest tagged prompt and max_completion_length", fix=fix)
    training = model.training
    with (
        torch.random.fork_rng(),
        plain_sampling(model.eval(), tokenizer, max_tokens=most) as ends,
    ):
        torch.manual_seed(seed)
        drawn = draw(model, tokenizer, texts, ends=ends, batch_size=config.sample_batch_size)
    model.train(training)
    ids = drawn.responses()
    read = int(drawn.attend_BL.sum())
    ledger.add(samples_drawn=len(ids), flops=2 * count_parameters(model, embeddings=False) * read)
    plain, written = [row["prompt"] for row, _ in asked], [form.decode(row) for row in ids]
    columns = {name: [row[name] for row, _ in asked] for name in asked[0][0] if name != "prompt"}
    by_objective = []
    for name, objective in objectives.items():
        scores = Metered(name, objective, ledger, ends=ends)(plain, written, **columns, completion_ids=ids)
        if None in scores:
            raise UserError(f"objective {name} does not apply to {plain[scores.index(None)]!r}; leave that prompt out")
        by_objective.append([s for s in scores if s is not None])
    scored = zip(*by_objective, strict=True)
    return [Response(p, tuple(i), tuple(s)) for p, i, s in zip(plain, ids, scored, strict=True)]


def passes(rows: int, *, count: int, rng: np.random.Generator) -> list[int]:
    """`count` row numbers in whole shuffled passes, the last one cut."""
    order: list[int] = []
    while len(order) < count:
        order += rng.permutation(rows).tolist()
    return order[:count]


def keep(items: Sequence[Any], folder: Path) -> None:
    """Write dataclasses of text and tuples of numbers into a run, for the parts of the training after it."""
    lines = (json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items)
    (Path(folder) / KEPT_FILE).write_text("".join(lines), encoding="utf-8")


def kept(folder: Path, cls: type[T]) -> list[T]:
    """What `keep` wrote there."""
    with open(Path(folder) / KEPT_FILE, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}) for row in rows]
