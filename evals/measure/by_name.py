"""Measurements by name: which ones a suite calls for, and each made with the judges and models that it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from align.errors import UserError
from evals.backends.base import Generation

if TYPE_CHECKING:
    from align.models.formats import Choice
    from align.objectives import Objective
    from evals.backends.base import Backend
    from evals.backends.reward_model import RewardBackend
    from evals.measure.measurements import Measurement
    from evals.suites.base import Kind

MEASURES = (  # in an order that serves what each reads
    "completion", "verdict", "comprehension", "choices", "margin", "rewards", "against_reference", "bits",
    "pairs",
)  # fmt: skip
READS_COMPLETIONS = ("verdict", "rewards", "against_reference")


def measures_of(kind: Kind, *, chosen: Sequence[str] = ()) -> list[str]:
    """The measurements of a suite of this kind, `chosen` or its defaults, with what they read, in order."""
    names = chosen or kind.measures
    if not names:
        raise UserError(f"a suite of kind {kind.name} has no measurement here yet; name some with --measure")
    reads = any(name in READS_COMPLETIONS for name in names)
    return [name for name in MEASURES if name in names or (reads and name == "completion")]


@dataclass(frozen=True, kw_only=True)
class Reads:
    """What measurements are made with. `objective_keys`: what each objective's scores depend on, as it enters keys."""

    generation: Generation = Generation()
    judge: Sequence[str] = ("rules",)
    keys: Mapping[str, str] = field(default_factory=dict)
    judge_options: Mapping[str, object] = field(default_factory=dict)
    objectives: Mapping[str, Objective] = field(default_factory=dict)
    objective_keys: Mapping[str, str] = field(default_factory=dict)
    reference: str | None = None
    template: str | Choice = "auto"
    batch_size: int = 64


def measurements_for(names: Iterable[str], *, reads: Reads, backend: Backend | RewardBackend) -> dict[str, Measurement]:
    """Name -> measurement, each made once: a judge or a reward model is loaded before the first cell is measured."""
    from evals.measure.measurements import Choices, CompletionOf, Comprehension, RefusalMargin
    from evals.measure.model_measurements import BitsPerByte
    from evals.measure.pair_scores import PairScores

    makers: dict[str, Callable[[], Measurement]] = {
        "completion": lambda: CompletionOf(reads.generation),
        "verdict": lambda: _verdict(reads),
        "comprehension": lambda: Comprehension(reads.generation),
        "choices": Choices,
        "margin": RefusalMargin,
        "rewards": lambda: _rewards(reads, backend),
        "against_reference": lambda: _against_reference(reads, backend),
        "bits": BitsPerByte,
        "pairs": PairScores,
    }
    return {name: makers[name]() for name in dict.fromkeys(names)}


def _verdict(reads: Reads) -> Measurement:
    from evals.judges import make_judge
    from evals.measure.verdict import Verdict

    return Verdict(make_judge(reads.judge, keys=dict(reads.keys), options=reads.judge_options))


def _rewards(reads: Reads, backend: Backend | RewardBackend) -> Measurement:
    from evals.backends.policies import PolicyBackend
    from evals.backends.transformers import TransformersBackend
    from evals.measure.model_measurements import Rewards

    if not isinstance(backend, (TransformersBackend, PolicyBackend)):
        raise UserError("the measurement rewards reads prompts as a model in memory saw them; leave --api out")
    return Rewards(reads.objectives, reads.objective_keys, backend.renderer)


def _against_reference(reads: Reads, backend: Backend | RewardBackend) -> Measurement:
    from evals.backends.transformers import TransformersBackend
    from evals.measure.model_measurements import AgainstReference

    if reads.reference is not None:
        load = TransformersBackend.load
        return AgainstReference(load(reads.reference, template=reads.template, batch_size=reads.batch_size))
    if not isinstance(backend, TransformersBackend):
        raise UserError("against_reference needs --reference MODEL")
    return AgainstReference(backend.reference())
