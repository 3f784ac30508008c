"""Best-of-n: of n reference samples the one with the largest `w . r`, as a policy and as the family of such policies.

Nothing is trained: every response costs n samples and n scores of each objective with a weight. Scores that agree to 12
decimals are equal, and one of the equals is drawn uniformly; `align.testbed.tabular.HardBestOfN` is the law in closed
form. Legend: K objectives.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from align.errors import UserError
from align.models.sampling import Drawn, told
from align.objectives import OBJECTIVES, RewardModelObjective, build_objective
from align.objectives.base import Objective
from align.policies.base import ModelPolicy, Policy, found_model, shared_fields, stored_model, write_family
from align.preferences import Preference, Weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Scores = Sequence[float | None]
DECIMALS = 12  # of a weighted sum of scores: below lies rounding, which must not break a tie


def kl_bound(n: int) -> float:
    """`log n - (n - 1) / n` nats: an upper bound on KL(best of n || reference), not its value (Beirami et al. 2024).

    It is reached only where no two draws are ever equally good. With few distinct scores the KL stays below -log of the
    best score's mass, however large n is.
    """
    if n < 1:
        raise ValueError(f"best-of-n needs n >= 1, not {n}")
    return math.log(n) - (n - 1) / n


def weighted_sums(scores: Mapping[str, Scores], *, weights: Mapping[str, float], prompts: Sequence[str]) -> list[float]:
    """`sum_k w_k r_k` of each response, rounded to 12 decimals; `scores[name]` belongs to `prompts` row by row.

    An objective that applies to no response of a prompt (None) adds nothing there. UserError where it applies to some
    of a prompt's responses only: they cannot be ranked. ValueError on a score that is not finite.
    """
    totals = [0.0] * len(prompts)
    for name, weight in weights.items():
        applies: dict[str, bool] = {}
        for i, (prompt, score) in enumerate(zip(prompts, scores[name], strict=True)):
            if applies.setdefault(prompt, score is not None) != (score is not None):
                raise UserError(
                    f"objective {name} scores some responses to {prompt[:60]!r} and not others, so that these cannot "
                    "be ranked; give every response of a prompt a score, or none"
                )
            if score is None:
                continue
            if not math.isfinite(score):
                raise ValueError(f"objective {name} gave {score} for the prompt {prompt[:60]!r}")
            totals[i] += weight * score
    return [round(total, DECIMALS) for total in totals]


def ranking(scores: Sequence[float], *, rng: random.Random) -> list[int]:
    """Indices from the largest score to the smallest, equal ones in uniformly random order."""
    order = list(range(len(scores)))
    rng.shuffle(order)
    return sorted(order, key=lambda i: -scores[i])  # a stable sort keeps the shuffled order among equals


class WeightedScore:
    """`w . r` of responses, asked from the objectives that have a weight; `asked` is how many these are."""

    def __init__(self, objectives: Mapping[str, Objective], *, names: Sequence[str], weights: Weights) -> None:
        self.objectives = objectives
        self.weights = {name: w for name, w in zip(names, weights, strict=True) if w}
        self.asked = len(self.weights)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float]:
        """One score per response; UserError when the objectives are not at hand (see `BestOfNFamily`)."""
        require(self.weights, self.objectives)
        scores = {name: list(self.objectives[name](prompts, completions, **columns)) for name in self.weights}
        return weighted_sums(scores, weights=self.weights, prompts=prompts)


def require(names: Iterable[str], objectives: Mapping[str, Objective]) -> None:
    """UserError naming the objectives that are missing."""
    missing = [name for name in names if name not in objectives]
    if missing:
        raise UserError(
            f"best-of-n decodes with its objectives, and {', '.join(missing)} cannot be read back from its run; "
            "give them with load_family(run).with_objectives({name: objective})"
        )


class BestOfNPolicy:
    """The best of n samples of `reference` under `score(prompts, completions)`.

    `samples_per_response` and `scores_per_response` say what each response costs; who decodes charges them.
    """

    def __init__(self, reference: ModelPolicy, *, score: Callable[..., Sequence[float]], n: int, name: str) -> None:
        if n < 1:
            raise UserError(f"best_of_n: n is {n}; give at least 1")
        self.reference, self.score, self.name = reference, score, name
        self.samples_per_response = n
        self.scores_per_response = n * int(getattr(score, "asked", 1))

    @property
    def model(self) -> PreTrainedModel:
        """The reference's model: nothing was trained, so bits per byte and the like are the reference's."""
        return self.reference.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.reference.tokenizer

    def release(self) -> None:
        """Let go of the reference's model, as `ModelPolicy.release`."""
        self.reference.release()

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, seed: int, batch_size: int = 64) -> list[str]:
        """The best-scored of n samples per prompt, one of the equals at random; cut samples compete as they are."""
        drawn = self.draw(prompts, max_new_tokens=max_new_tokens, seed=seed, batch_size=batch_size)
        return [response.text for response in drawn]

    def draw(self, prompts: Sequence[str], *, max_new_tokens: int, seed: int, batch_size: int = 64) -> list[Drawn]:
        """As `generate`, with the token ids that were drawn."""
        n, count = self.samples_per_response, len(prompts)
        stride = max(1000, n)  # no draw of one seed is a draw of another
        drawn = [
            self.reference.draw(
                prompts, max_new_tokens=max_new_tokens, seed=stride * (seed + 1) + i, batch_size=batch_size
            )
            for i in range(n)
        ]
        every = [response for responses in drawn for response in responses]
        scores = list(self.score(list(prompts) * n, [response.text for response in every], **told(every)))
        rng = random.Random(f"best of n {seed}")
        best = [ranking(scores[row::count], rng=rng)[0] for row in range(count)]
        return [drawn[i][row] for row, i in enumerate(best)]

    def sequence_logprobs(
        self,
        prompts: Sequence[str],
        completions: Sequence[str] | Sequence[Drawn],
        *,
        max_new_tokens: int | None = None,
    ) -> list[float]:
        """The reference's log-probabilities plus `kl_bound(n)`: not those of this policy, which have no closed form.

        Their difference to the reference's is therefore the bound on KL, the same for every response; whoever shows it
        as a KL says that it is a bound.
        """
        base = self.reference.sequence_logprobs(prompts, completions, max_new_tokens=max_new_tokens)
        return [logp + kl_bound(self.samples_per_response) for logp in base]

    def next_token_logprobs(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> NoReturn:
        """Always UserError: the best of n has no next-token distribution."""
        raise UserError(f"{self.name} chooses whole responses; it has no next-token distribution")


@dataclass(frozen=True)
class BestOfNFamily:
    """A best-of-n policy for every point of the simplex over `names`.

    `objectives` are those at hand. `family.json` keeps the entries of reward models (path, scale, shift), and
    `load_family` makes them again; any other objective is given back with `with_objectives`.
    """

    reference: str
    n: int
    names: tuple[str, ...]
    objectives: Mapping[str, Objective] = field(default_factory=dict)
    preferences: tuple[Weights, ...] = ()
    optimises: dict[str, str] = field(default_factory=dict)
    method: str = "best_of_n"
    point_cost: str = "decode"

    @property
    def domain(self) -> str:
        return (
            f"all weights of {len(self.names)} objectives, {self.n} samples and scores a response; "
            f"the KL shown for it is the bound log n - (n - 1)/n"
        )

    @property
    def samples_per_response(self) -> int:
        return self.n

    def with_objectives(self, objectives: Mapping[str, Objective]) -> BestOfNFamily:
        """The same family with these objectives, by name; UserError unless each of the family's is there."""
        require(self.names, objectives)
        return replace(self, objectives={name: objectives[name] for name in self.names})

    def policy(self, preference: Preference) -> Policy:
        """Best-of-n at `preference`; UserError for anything but K weights. Objectives are asked for at decoding."""
        if not isinstance(preference, Weights) or len(preference) != len(self.names):
            raise UserError(f"{self.method} answers {len(self.names)} weights, not {preference.label}")
        name = f"{self.method}@{preference.label}"
        score = WeightedScore(self.objectives, names=self.names, weights=preference)
        return BestOfNPolicy(ModelPolicy(self.reference, name="reference"), score=score, n=self.n, name=name)

    def save(self, folder: Path) -> None:
        """Write `family.json`; what lies below `folder` is stored relative to it."""
        write_family(
            self,
            folder,
            kind="best_of_n",
            reference=stored_model(self.reference, folder),
            n=self.n,
            names=self.names,
            entries={name: _entry(self.objectives.get(name), folder) for name in self.names},
        )

    @classmethod
    def from_json(cls, folder: Path, content: Mapping[str, Any]) -> BestOfNFamily:
        """The family that `save` wrote into `folder`."""
        return cls(
            **shared_fields(content),
            reference=found_model(content["reference"], folder),
            n=content["n"],
            names=tuple(content["names"]),
            objectives={
                name: build_objective({**entry, "path": found_model(entry["path"], folder)})
                for name, entry in content["entries"].items()
                if entry is not None
            },
        )


def _entry(objective: Objective | None, folder: Path) -> dict[str, object] | None:
    """What `build_objective` makes a reward model of again; None for any other objective."""
    if not isinstance(objective, RewardModelObjective):
        return None
    kind = next((name for name, make in OBJECTIVES.items() if make is type(objective)), None)
    if kind is None:
        return None
    kept = {key: getattr(objective, key) for key in ("scale", "shift", "batch_size")}
    kept |= {} if objective.label is None else {"label": objective.label}
    kept |= {} if objective.end else {"end": False}
    return {"kind": kind, "name": objective.__name__, "path": stored_model(objective.path, folder), **kept}
