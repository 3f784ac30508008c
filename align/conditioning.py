"""Preferences told to a policy in its prompt: tags as text or as tokens of their own, and the family of such policies.

A tag says one number per objective, rounded to a level: `<helpful: 0.3> <harmless: 0.7> ` before the prompt. As tokens,
every level of every objective is one added token, which the policy reads and never writes. Legend: K objectives.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from align import checks
from align.errors import UserError
from align.policies import FAMILY_FILE, Component, ModelPolicy, relative_path
from align.preferences import Direction, Preference, Targets, Weights, parse_preference
from align.runs import model_dir, write_json


@dataclass(frozen=True)
class Tags:
    """How K numbers in [low, high] are written before a prompt, in `levels` steps; UserError when they cannot be."""

    names: tuple[str, ...]
    levels: int = 10
    low: float = 0.0
    high: float = 1.0
    tokens: bool = False  # one added token per objective and level; else plain text of the tokenizer's own words

    def __post_init__(self) -> None:
        checks.at_least(1, self, "levels")
        if not self.names or not self.low < self.high or not all(math.isfinite(v) for v in (self.low, self.high)):
            raise UserError(f"tags need objectives and low below high, not {self.names}, {self.low:g}, {self.high:g}")
        for name in self.names:
            if not re.fullmatch(r"\w[\w-]*", name):
                raise UserError(f"objective {name!r} cannot stand in a tag; use letters, digits, _ and -")

    def rounded(self, values: Sequence[float]) -> tuple[float, ...]:
        """The levels nearest to `values`; what lies outside [low, high] is moved to its end."""
        if len(values) != len(self.names):
            raise UserError(f"{len(values)} numbers for the tags of {len(self.names)} objectives")
        width = (self.high - self.low) / self.levels
        clipped = (min(max(float(v), self.low), self.high) for v in values)
        return tuple(self.low + round((v - self.low) / width) * width for v in clipped)

    def text(self, values: Sequence[float]) -> str:
        """The tags of K numbers, with the space that parts them from the prompt."""
        return "".join(f"{self._tag(n, v)} " for n, v in zip(self.names, self.rounded(values), strict=True))

    def apply(self, prompt: str, values: Sequence[float]) -> str:
        """The prompt behind its tags."""
        return self.text(values) + prompt

    def strip(self, prompt: str) -> str:
        """The prompt without its tags, as it was before `apply`; UserError when it does not begin with them."""
        return prompt[self._match(prompt).end() :]

    def values(self, prompt: str) -> tuple[float, ...]:
        """The numbers that a tagged prompt says."""
        return tuple(float(text) for text in self._match(prompt).groups())

    def vocabulary(self) -> list[str]:
        """Every tag, objective by objective, levels rising."""
        width = (self.high - self.low) / self.levels
        return [self._tag(name, self.low + i * width) for name in self.names for i in range(self.levels + 1)]

    def _tag(self, name: str, value: float) -> str:
        return f"<{name}: {round(value, 6) + 0.0:g}>"

    def _match(self, prompt: str) -> re.Match[str]:
        pattern = "".join(rf"<{re.escape(name)}: (-?[0-9.e-]+)> " for name in self.names)
        found = re.match(pattern, prompt)
        if found is None:
            raise UserError(f"the prompt {prompt[:60]!r} does not begin with the tags of {', '.join(self.names)}")
        return found


def tagged_checkpoint(reference: str, *, tags: Tags, out: Path, seed: int = 0) -> str:
    """The directory to train a tagged policy from: the reference, or with tag tokens a copy in `out` that has them.

    A new embedding is the vocabulary's mean plus a part that moves along a line with the level, so that neighbouring
    levels start as neighbours. UserError when the tokenizer has one of the tags as a token already.
    """
    if not tags.tokens:
        return model_dir(reference)
    import torch

    from align.models import load_model, load_tokenizer, save_model

    model, tokenizer = load_model(reference), load_tokenizer(reference)
    known, new = len(tokenizer), tags.vocabulary()
    if tokenizer.add_tokens(new, special_tokens=True) != len(new):
        raise UserError(f"the tokenizer of {reference} has tags like {new[0]} already; rename the objectives")
    old = model.get_input_embeddings().weight.detach()[:known].clone()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    noise_K2D = torch.randn(len(tags.names), 2, old.shape[1], generator=generator) * old.std(0)
    place = torch.linspace(-1, 1, tags.levels + 1)[None, :, None]
    rows_D = (old.mean(0) + noise_K2D[:, :1] * 0.5 + noise_K2D[:, 1:] * place * 0.5).flatten(0, 1)
    inside, outside = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        inside[known:] = rows_D
        if outside is not inside:
            outside[known:] = outside[:known].mean(0)
    return str(save_model(model, tokenizer, Path(out)))


def tag_ids(tokenizer: Any, tags: Tags) -> list[int]:
    """Ids of the tag tokens, which a policy never writes; empty with text tags."""
    return [tokenizer.convert_tokens_to_ids(tag) for tag in tags.vocabulary()] if tags.tokens else []


class TaggedPolicy(ModelPolicy):
    """A causal LM that reads its preference as tags before the prompt."""

    def __init__(self, path: str | Path, *, tags: Tags, values: Sequence[float], name: str) -> None:
        super().__init__(path, name=name)
        self.tags, self.values = tags, tags.rounded(values)

    def _load(self) -> tuple[Any, Any]:
        loaded = super()._load()
        self.banned = tuple(tag_ids(loaded[1], self.tags))
        return loaded

    def components(self) -> list[Component]:
        """The model behind the ids of its tags (read apart from the prompt, as a word-level tokenizer would anyway)."""
        ids = self.tokenizer(self.tags.text(self.values), add_special_tokens=False)["input_ids"]
        return [Component(self.model, tuple(ids))]

    def generate(self, prompts: Sequence[str], **options: Any) -> list[str]:
        """One sampled completion per untagged prompt."""
        return super().generate([self.tags.apply(p, self.values) for p in prompts], **options)

    def sequence_logprobs(self, prompts: Sequence[str], completions: Sequence[str], **options: Any) -> list[float]:
        """Sum of log pi over each completion of an untagged prompt, in nats."""
        return super().sequence_logprobs([self.tags.apply(p, self.values) for p in prompts], completions, **options)


# ------------------------------------------------------------------------------------ from a preference to its numbers


def weights_as_they_are(preference: Preference, low_K: Sequence[float], high_K: Sequence[float]) -> tuple[float, ...]:
    """The weights themselves."""
    return _weights(preference).values


def direction_of(preference: Preference, low_K: Sequence[float], high_K: Sequence[float]) -> tuple[float, ...]:
    """A direction, or that in which weights point (DPA, Wang et al. 2024)."""
    return preference.values if isinstance(preference, Direction) else Direction.of(_weights(preference)).values


def targets_l2(preference: Preference, low_K: Sequence[float], high_K: Sequence[float]) -> tuple[float, ...]:
    """`low + w_k / |w|_2 (high - low)`: RiC's map at evaluation (Yang et al. 2024); targets as they are."""
    if isinstance(preference, Targets):
        return preference.values
    norm = math.hypot(*_weights(preference).values)
    return _between([w / norm for w in _weights(preference)], low_K, high_K)


def targets_linf(preference: Preference, low_K: Sequence[float], high_K: Sequence[float]) -> tuple[float, ...]:
    """The largest weight asks for the maximum, others for `low + min(K w_k, 1) (high - low)`: RiC's linf map."""
    if isinstance(preference, Targets):
        return preference.values
    weights = _weights(preference)
    return _between([1.0 if w == max(weights) else min(len(weights) * w, 1.0) for w in weights], low_K, high_K)


def targets_linear(preference: Preference, low_K: Sequence[float], high_K: Sequence[float]) -> tuple[float, ...]:
    """`low + w_k (high - low)`: RiC's linear map."""
    return preference.values if isinstance(preference, Targets) else _between(_weights(preference), low_K, high_K)


def _weights(preference: Preference) -> Weights:
    if not isinstance(preference, Weights):
        raise UserError(f"this family is not asked by {preference.label}; give weights")
    return preference


def _between(shares: Sequence[float] | Weights, low_K: Sequence[float], high_K: Sequence[float]) -> tuple[float, ...]:
    return tuple(low + share * (high - low) for share, low, high in zip(shares, low_K, high_K, strict=True))


ASKED: dict[str, Callable[[Preference, Sequence[float], Sequence[float]], tuple[float, ...]]] = {
    "weights": weights_as_they_are,
    "direction": direction_of,
    "targets_l2": targets_l2,
    "targets_linf": targets_linf,
    "targets_linear": targets_linear,
}


@dataclass(frozen=True)
class TaggedFamily:
    """One model for every preference: `asked` names the map from a preference to the numbers in its tags.

    `low` and `high` are the ends of each objective's scores, for maps that aim at scores.
    """

    method: str
    model: str
    tags: Tags
    asked: str = "weights"
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    preferences: tuple[Preference, ...] = ()
    optimises: dict[str, str] = field(default_factory=dict)
    point_cost: str = "prompt"

    @property
    def domain(self) -> str:
        names = ", ".join(self.tags.names)
        return f"every preference over {names}, told as {self.asked} in {self.tags.levels} steps"

    def policy(self, preference: Preference) -> TaggedPolicy:
        """The policy told `preference`; UserError for a kind or a number of entries that the family does not know."""
        if len(preference.values) != len(self.tags.names):
            raise UserError(f"{self.method} answers {len(self.tags.names)} objectives, not {preference.label}")
        values = ASKED[self.asked](preference, self.low, self.high)
        return TaggedPolicy(self.model, tags=self.tags, values=values, name=f"{self.method}@{preference.label}")

    def save(self, folder: Path) -> None:
        """Write `family.json`; a model below `folder` is stored relative to it."""
        content = {**asdict(self), "kind": "tagged", "model": relative_path(Path(self.model), folder)}
        content["preferences"] = [preference.label for preference in self.preferences]
        write_json(Path(folder) / FAMILY_FILE, content)

    @classmethod
    def from_json(cls, folder: Path, content: Mapping[str, Any]) -> TaggedFamily:
        """The family that `save` wrote into `folder`."""
        values = {name: content[name] for name in ("method", "asked", "point_cost")}
        tags = Tags(**{**content["tags"], "names": tuple(content["tags"]["names"])})
        return cls(
            **values,
            tags=tags,
            model=str(folder / content["model"]),
            low=tuple(content["low"]),
            high=tuple(content["high"]),
            preferences=tuple(parse_preference(label) for label in content["preferences"]),
            optimises=dict(content["optimises"]),
        )
