"""Preferences given to a policy in its prompt: tags as text or as tokens of their own, and the family of such policies.

A tag says one number per objective, rounded to a level: `<helpful: 0.3> <harmless: 0.7> ` begins the last user turn, or
the plain prompt; the prompt format then reads it as it reads the rest. As tokens, every level of every objective is one
added token, which the policy reads and never writes: `forbid` takes its probability away in training, `TaggedPolicy`
when the policy is asked. No text that somebody else wrote is read as a tag token. Legend: K objectives.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import checks
from align.errors import UserError
from align.models import load_model, load_tokenizer, save_model
from align.models.chat import OURS, FormatError
from align.models.formats import formatter
from align.policies.base import Component, ModelPolicy, relative_path, shared_fields, write_family
from align.preferences import Direction, Preference, Targets, Weights
from align.runs import model_dir
from align.turns import last_question

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from align.policies.base import Loaded


MODES = ("auto", "text", "tokens")
FREE = "any"
FORBIDDEN = -1e4  # added to a logit: probability 0 in every floating-point type, without the NaN of 0 times infinity

Numbers = Sequence[float | None]  # one per objective; None: said to be free, where the tags allow it


@dataclass(frozen=True)
class Tags:
    """How K numbers in [low, high] are written into a prompt, in `levels` steps; UserError when they cannot be.

    With `free`, None is written as `<helpful: any>`: the prompt asks nothing of that objective.
    """

    names: tuple[str, ...]
    levels: int = 10
    low: float = 0.0
    high: float = 1.0
    tokens: bool = False  # one added token per objective and level; else plain text of the tokenizer's own words
    free: bool = False

    def __post_init__(self) -> None:
        checks.at_least(1, self, "levels")
        if not self.names or not all(math.isfinite(v) for v in (self.low, self.high)) or not self.low < self.high:
            raise UserError(f"tags need objectives and low below high, not {self.names}, {self.low:g}, {self.high:g}")
        for name in self.names:
            if not re.fullmatch(r"\w[\w-]*", name):
                raise UserError(f"objective {name!r} cannot stand in a tag; use letters, digits, _ and -")
        if len(set(self.vocabulary())) < len(self.names) * (self.levels + 1 + self.free):
            raise UserError(
                f"{self.levels} levels from {self.low:g} to {self.high:g} cannot be told apart with six decimals, or "
                f"{', '.join(self.names)} repeat a name; use fewer levels"
            )

    def rounded(self, values: Numbers) -> tuple[float | None, ...]:
        """The numbers that the tags say: the nearest levels; what lies outside [low, high] is moved to its end."""
        if len(values) != len(self.names):
            raise UserError(f"{len(values)} numbers for the tags of {len(self.names)} objectives")
        if None in values and not self.free:
            raise UserError("these tags say a number for every objective; None needs tags with free")
        width = (self.high - self.low) / self.levels
        places = [None if v is None else (min(max(v, self.low), self.high) - self.low) / width for v in values]
        # Halves go to the even level (.25 and .75 still sum to 1), whatever floating point makes of them.
        return tuple(None if place is None else float(self._level(round(round(place, 9)))) for place in places)

    def text(self, values: Numbers) -> str:
        """The tags of K numbers, with the space that parts them from the question."""
        said = (FREE if v is None else _decimal(v) for v in self.rounded(values))
        return "".join(f"{self._tag(name, value)} " for name, value in zip(self.names, said, strict=True))

    def apply(self, prompt: str, values: Numbers) -> str:
        """The prompt with its tags before its last question; FormatError for a transcript in which no user speaks."""
        place = last_question(prompt)
        if place is None:
            raise FormatError("no_user_turn", f"no user turn for the tags to stand in: {prompt[:60]!r}; leave it out")
        return prompt[:place] + self.text(values) + prompt[place:]

    def strip(self, prompt: str) -> str:
        """The prompt without its tags, as it was before `apply`; UserError when its last question has none."""
        found = self._match(prompt)
        return prompt[: found.start()] + prompt[found.end() :]

    def values(self, prompt: str) -> tuple[float | None, ...]:
        """The numbers that a tagged prompt says."""
        return tuple(None if text == FREE else float(text) for text in self._match(prompt).groups())

    def vocabulary(self) -> list[str]:
        """Every tag, objective by objective, levels rising, a free one last."""
        said = [self._level(i) for i in range(self.levels + 1)] + [FREE] * self.free
        return [self._tag(name, value) for name in self.names for value in said]

    def _tag(self, name: str, value: str) -> str:
        return f"<{name}: {value}>{OURS * self.tokens}"

    def _level(self, step: int) -> str:
        return _decimal(self.low + step * (self.high - self.low) / self.levels)

    def _match(self, prompt: str) -> re.Match[str]:
        number = rf"(-?[0-9.]+|{FREE})" if self.free else r"(-?[0-9.]+)"
        tags = re.compile("".join(f"{self._tag(re.escape(name), number)} " for name in self.names))
        place = last_question(prompt)
        found = None if place is None else tags.match(prompt, place)
        if found is None:
            raise UserError(f"the prompt {prompt[:60]!r} does not begin with the tags of {', '.join(self.names)}")
        return found


def _decimal(value: float) -> str:
    """At most six decimals, no exponent and no negative zero."""
    return f"{round(value, 6) + 0.0:.6f}".rstrip("0").rstrip(".")


def choose_tags(mode: str, *, reference: str, **fields: Any) -> Tags:
    """Tags of these `fields`, as text or as tokens; auto: as text where the reference's tokenizer can say them all."""
    if mode not in MODES:
        raise UserError(f"tags must be one of {', '.join(MODES)}, not {mode!r}")
    plain = Tags(**fields)
    if mode == "text" or (mode == "auto" and can_say(plain, reference)):
        return plain
    return Tags(**fields, tokens=True)


def can_say(tags: Tags, reference: str) -> bool:
    """Whether the tokenizer of `reference` encodes the text of every tag, without unknown tokens and without loss."""
    tokenizer = load_tokenizer(reference)
    for tag in tags.vocabulary():
        try:
            ids = tokenizer(tag, add_special_tokens=False)["input_ids"]
        except Exception:  # the Rust library raises this bare type for a word that a word-level vocabulary lacks
            return False
        back = tokenizer.decode(ids)
        if tokenizer.unk_token_id in ids or "".join(back.split()) != "".join(tag.split()):
            return False
    return True


def tagged_checkpoint(reference: str, *, tags: Tags, out: Path, seed: int = 0) -> str:
    """The directory to train a tagged policy from: the reference, or with tag tokens a copy in `out` that has them.

    A new embedding is the vocabulary's mean, a part of the objective's own, and a part that moves along a line with the
    level: neighbouring levels start as neighbours, and the ends as far apart as two words are, which training on small
    steps needs. UserError when the tokenizer has one of the tags as a token already.
    """
    if not tags.tokens:
        return model_dir(reference)
    import torch

    model, tokenizer = load_model(reference), load_tokenizer(reference)
    known, new = len(tokenizer), tags.vocabulary()
    if tokenizer.add_tokens(new, special_tokens=True) != len(new):
        raise UserError(f"the tokenizer of {reference} has tags like {new[0]} already; rename the objectives")
    old = model.get_input_embeddings().weight.detach()[:known].clone()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    noise_K2D = torch.randn(len(tags.names), 2, old.shape[1], generator=generator) * old.std(0)
    place_L = torch.cat([torch.linspace(-1, 1, tags.levels + 1), torch.zeros(int(tags.free))])
    rows_D = (old.mean(0) + 0.5 * noise_K2D[:, :1] + 1.5 * noise_K2D[:, 1:] * place_L[:, None]).flatten(0, 1)
    inside, outside = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        inside[known : len(tokenizer)] = rows_D
        if outside is not inside:
            outside[known : len(tokenizer)] = outside[:known].mean(0)
    return str(save_model(model, tokenizer, Path(out)))


def tag_ids(tokenizer: PreTrainedTokenizerBase, tags: Tags) -> list[int]:
    """Ids of the tag tokens, which a policy never writes; empty with text tags.

    UserError where the tokenizer lacks them: it is not the policy's, or an earlier version wrote its tags otherwise.
    """
    if not tags.tokens:
        return []
    known, asked = tokenizer.get_vocab(), tags.vocabulary()
    if not all(tag in known for tag in asked):
        raise UserError(f"the tokenizer has no token for tags like {asked[0]}; train the policy again")
    return [known[tag] for tag in asked]


def forbid(model: PreTrainedModel, ids: Sequence[int]) -> PreTrainedModel:
    """The model, in memory, with probability 0 for these tokens wherever it is read or sampled: a bias of its head.

    A saved checkpoint does not have the bias. ValueError for a head that has one already. In a PEFT model that trains
    the embeddings of tags, a head tied to these is freed of PEFT's wrapper, which knows no bias: what it would write
    for tag tokens is forbidden, and all else is the same.
    """
    import torch

    if not ids:
        return model
    head = model.get_output_embeddings()
    if hasattr(head, "token_adapter"):
        head = head.original_module
        model.set_output_embeddings(head)
    if head.bias is not None:
        raise ValueError("this model's output head has a bias; tag tokens cannot be forbidden there")
    bias_V = torch.zeros(head.weight.shape[0], device=head.weight.device)
    bias_V[list(ids)] = FORBIDDEN
    del head.bias  # an empty parameter, whose name the buffer takes
    head.register_buffer("bias", bias_V, persistent=False)
    return model


class TaggedPolicy(ModelPolicy):
    """A causal LM that reads its preference as tags in the prompt.

    Its prompts are told to it without tags; token ids (`prompt_ids`, `next_token_logprobs`) are those with them.
    """

    def __init__(self, path: str | Path, *, tags: Tags, values: Numbers, name: str) -> None:
        super().__init__(path, name=name)
        self.tags, self.values = tags, tags.rounded(values)

    def _load(self) -> Loaded:
        loaded = super()._load()
        self.banned = tuple(tag_ids(loaded[1], self.tags))
        return loaded

    def share(self, other: TaggedPolicy) -> None:
        """Use the model that another policy of the same family holds in memory."""
        self._loaded = other._load()

    def components(self) -> list[Component]:
        """The model behind the ids of its tags: what an exact evaluation puts before the words of a plain prompt.

        UserError where tags and prompt have no ids of their own: in a chat template, or where words may join.
        """
        form, text = formatter(self.tokenizer), self.tags.text(self.values)
        ids = form.prompt_ids(text)
        if form.format.template != "plain" or ids != form.prompt_ids(text.rstrip()):
            raise UserError(f"{self.name}: its tags are no tokens before the prompt's own; it has no exact evaluation")
        return [Component(self.model, tuple(ids))]

    def asked(self, prompts: Sequence[str]) -> list[str]:
        """The prompts with their tags."""
        return [self.tags.apply(prompt, self.values) for prompt in prompts]


# ------------------------------------------------------------------------------------ from a preference to its numbers


def weights_as_they_are(preference: Preference, low_K: Sequence[float], high_K: Sequence[float]) -> tuple[float, ...]:
    """The weights themselves."""
    return _weights(preference).values


def direction_of(preference: Preference, low_K: Sequence[float], high_K: Sequence[float]) -> tuple[float, ...]:
    """A direction, or that in which weights point (DPA, Wang et al. 2024)."""
    return preference.values if isinstance(preference, Direction) else Direction.of(_weights(preference)).values


def controls_l2(preference: Preference, low_K: Sequence[float], high_K: Sequence[float]) -> tuple[float | None, ...]:
    """As `targets_l2`, but an objective of weight 0 is left free; for tags with `free`."""
    targets = targets_l2(preference, low_K, high_K)
    if isinstance(preference, Targets):
        return targets
    return tuple(t if w else None for t, w in zip(targets, _weights(preference), strict=True))


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


ASKED: dict[str, Callable[[Preference, Sequence[float], Sequence[float]], Numbers]] = {
    "weights": weights_as_they_are,
    "direction": direction_of,
    "targets_l2": targets_l2,
    "targets_linf": targets_linf,
    "targets_linear": targets_linear,
    "controls_l2": controls_l2,
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
        """The policy given `preference`; UserError for a kind or a number of entries that the family does not know."""
        if len(preference.values) != len(self.tags.names):
            raise UserError(f"{self.method} answers {len(self.tags.names)} objectives, not {preference.label}")
        values = ASKED[self.asked](preference, self.low, self.high)
        return TaggedPolicy(self.model, tags=self.tags, values=values, name=f"{self.method}@{preference.label}")

    def save(self, folder: Path) -> None:
        """Write `family.json`; a model below `folder` is stored relative to it."""
        model = relative_path(Path(self.model), folder)
        ends = {"asked": self.asked, "low": self.low, "high": self.high}
        write_family(self, folder, kind="tagged", model=model, tags=asdict(self.tags), **ends)

    @classmethod
    def from_json(cls, folder: Path, content: Mapping[str, Any]) -> TaggedFamily:
        """The family that `save` wrote into `folder`."""
        return cls(
            **shared_fields(content),
            tags=Tags(**{**content["tags"], "names": tuple(content["tags"]["names"])}),
            model=str(folder / content["model"]),
            asked=content["asked"],
            low=tuple(content["low"]),
            high=tuple(content["high"]),
        )
