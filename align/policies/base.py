"""Policies (a model with its decoding rule) and policy families (a policy for every preference that a method supports).

Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from align import checks
from align.errors import UserError
from align.models import load_tokenizer
from align.models.backbones import LENDING
from align.models.formats import formatter
from align.models.reading import (
    BLOCK_BYTES,
    Reader,
    Row,
    completion_rows,
    next_token_logprobs,
    padded,
    sequence_logprobs,
)
from align.models.sampling import Drawn, plain_sampling
from align.preferences import Preference, parse_preference
from align.runs import model_dir, write_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]

FAMILY_FILE = "family.json"


@dataclass(frozen=True)
class Component:
    """A causal LM that a token-level policy reads, and the token ids that it puts before every prompt."""

    model: PreTrainedModel
    prefix: tuple[int, ...] = ()


@runtime_checkable
class TokenPolicy(Protocol):
    """A policy that is a rule on next-token distributions: what an exact evaluation asks for."""

    name: str
    samples_per_response: int

    def components(self) -> list[Component]: ...

    def mix(self, logp: Sequence[Tensor]) -> Tensor:
        """(..., V) log-probabilities of the policy from those of its components, each (..., at least V) in order."""
        ...


@runtime_checkable
class Policy(Protocol):
    """What an evaluation may ask of any policy."""

    name: str
    samples_per_response: int

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, seed: int, batch_size: int = 64) -> list[str]:
        """One sampled completion per prompt, at temperature 1."""
        ...

    def draw(self, prompts: Sequence[str], *, max_new_tokens: int, seed: int, batch_size: int = 64) -> list[Drawn]:
        """The responses that `generate` writes, with the ids that were drawn."""
        ...

    def next_token_logprobs(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """(B, V) log-probabilities of the next token after the decoding rule, behind ids as the policy reads them."""
        ...

    def sequence_logprobs(
        self,
        prompts: Sequence[str],
        completions: Sequence[str] | Sequence[Drawn],
        *,
        max_new_tokens: int | None = None,
    ) -> list[float]:
        """Sum of log pi in nats over the completion's tokens, and its end unless it was cut at `max_new_tokens`."""
        ...


class ModelPolicy:
    """A causal LM sampled at temperature 1 without truncation; loaded when first asked."""

    samples_per_response = 1
    banned: tuple[int, ...] = ()  # tokens that the decoding rule never draws: their probability is 0
    rows_per_pass = 32  # read at once by `sequence_logprobs`

    def __init__(self, path: str | Path, *, name: str | None = None) -> None:
        self.path = model_dir(path)
        self.name = name or Path(self.path).name
        self._loaded: Loaded | None = None

    def _load(self) -> Loaded:
        if self._loaded is None:
            self._loaded = (LENDING.borrow(self.path), load_tokenizer(self.path))
        return self._loaded

    def release(self) -> None:
        """Let go of the model; it is loaded again when asked. A front of large models would not fit in memory."""
        if self._loaded is not None:
            LENDING.give_back(self._loaded[0])
        self._loaded = None

    def components(self) -> list[Component]:
        """The model itself, read at the prompt as it is."""
        return [Component(self.model)]

    def mix(self, logp: Sequence[Tensor]) -> Tensor:
        """The model's own distribution."""
        return logp[0]

    @property
    def model(self) -> PreTrainedModel:
        return self._load()[0]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._load()[1]

    @property
    def blocks(self) -> int:
        """How many blocks of logits, of all tokens in a pass, the model holds at once while it is read."""
        return 1

    def asked(self, prompts: Sequence[str]) -> list[str]:
        """The prompts as the policy puts them, still without a template (a tagged policy adds its tags)."""
        return list(prompts)

    def prompt_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """The prompts as the model reads them: token ids in its prompt format."""
        return formatter(self.tokenizer).prompts_ids(self.asked(prompts))

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, seed: int, batch_size: int = 64) -> list[str]:
        """One sampled completion per prompt; the same seed gives the same text at the same batch size."""
        drawn = self.draw(prompts, max_new_tokens=max_new_tokens, seed=seed, batch_size=batch_size)
        return [response.text for response in drawn]

    def draw(self, prompts: Sequence[str], *, max_new_tokens: int, seed: int, batch_size: int = 64) -> list[Drawn]:
        """As `generate`, with the token ids that were drawn and whether each response ended."""
        import torch

        model, tokenizer = self._load()
        heads, form = self.prompt_ids(prompts), formatter(tokenizer)
        torch.manual_seed(seed)
        drawn: list[Drawn] = []
        for start in range(0, len(prompts), batch_size):
            rows: list[Row] = [(head, ()) for head in heads[start : start + batch_size]]
            batch = padded(rows, pad_id=tokenizer.pad_token_id, side="left", device=model.device)
            checks.fits(
                batch.ids_BT.shape[1] + max_new_tokens,
                model,
                what=f"{self.name}: the longest prompt and max_new_tokens",
                fix="shorten or leave out such prompts, or lower max_new_tokens",
            )
            with torch.inference_mode(), plain_sampling(model, tokenizer, max_tokens=max_new_tokens) as ends:
                ids = model.generate(
                    input_ids=batch.ids_BT,
                    attention_mask=batch.attend_BT,
                    max_new_tokens=max_new_tokens,
                    pad_token_id=tokenizer.pad_token_id,
                    suppress_tokens=list(self.banned) or None,
                )
            for row in ids[:, batch.ids_BT.shape[1] :].tolist():
                response = Drawn.of(row, ends=ends)
                drawn.append(replace(response, text=form.decode(response.ids)))
        return drawn

    def next_token_logprobs(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """(B, V) float32 log-probabilities after the last position (left-padded rows)."""
        return next_token_logprobs(self.model, input_ids_BT, attention_mask_BT, banned=self.banned)

    def sequence_logprobs(
        self,
        prompts: Sequence[str],
        completions: Sequence[str] | Sequence[Drawn],
        *,
        max_new_tokens: int | None = None,
        batch_size: int | None = None,
    ) -> list[float]:
        """Sum of log pi over completion tokens and the end token, in nats, for each pair.

        Responses as `draw` gives them are read at the very ids that were drawn, the ending one where it came. A text is
        encoded again, which a sampled split may differ from; one of `max_new_tokens` tokens or more was cut before it
        ended, so that its end token does not count.
        """
        model, tokenizer = self._load()
        rows = completion_rows(tokenizer, self.asked(prompts), completions, max_new_tokens=max_new_tokens)
        reader = Reader(
            pad_id=tokenizer.pad_token_id, batch_size=batch_size or self.rows_per_pass, longest_first=True,
            banned=self.banned, block_bytes=BLOCK_BYTES // self.blocks,
        )  # fmt: skip
        return sequence_logprobs(model, rows, reader=reader)


@runtime_checkable
class PolicyFamily(Protocol):
    """What every method returns: a policy for each preference of its domain."""

    @property
    def method(self) -> str: ...

    @property
    def point_cost(self) -> str: ...

    @property
    def domain(self) -> str: ...

    @property
    def preferences(self) -> Sequence[Preference]: ...

    @property
    def optimises(self) -> Mapping[str, str]: ...

    def policy(self, preference: Preference) -> Policy: ...

    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class PointFamily:
    """One trained model per preference; one more point costs one more training run.

    `points` maps a weights label to a model directory (relative to the family file when it lies below it);
    `optimises` to the objective that this point really optimises, in words.
    """

    method: str
    points: dict[str, str]
    optimises: dict[str, str] = field(default_factory=dict)
    point_cost: str = "train"

    @property
    def domain(self) -> str:
        return ("" if any("=" in label for label in self.points) else "weights ") + "; ".join(self.points)

    @property
    def preferences(self) -> list[Preference]:
        return [parse_preference(label) for label in self.points]

    def policy(self, preference: Preference) -> Policy:
        """The policy trained at `preference`; UserError with the supported points when there is none."""
        label = preference.label
        if label not in self.points:
            raise UserError(f"{self.method} has no policy at {label}; it was trained at {self.domain}")
        return ModelPolicy(self.points[label], name=f"{self.method}@{label}")

    def save(self, folder: Path) -> None:
        """Write `family.json`; model directories below `folder` are stored relative to it."""
        points = {label: relative_path(Path(path), folder) for label, path in self.points.items()}
        write_json(
            folder / FAMILY_FILE,
            {
                "kind": "points",
                "method": self.method,
                "points": points,
                "optimises": self.optimises,
                "point_cost": self.point_cost,
            },
        )

    @classmethod
    def from_json(cls, folder: Path, content: Mapping[str, Any]) -> PointFamily:
        points = {label: str(folder / path) for label, path in content["points"].items()}
        return cls(content["method"], points, dict(content["optimises"]), content["point_cost"])


def write_family(family: PolicyFamily, folder: Path, *, kind: str, **content: object) -> None:
    """Write `family.json`: what every family but that of points says of itself, and the `content` of its kind."""
    shared = {
        "kind": kind,
        "method": family.method,
        "preferences": [preference.label for preference in family.preferences],
        "optimises": family.optimises,
        "point_cost": family.point_cost,
    }
    write_json(Path(folder) / FAMILY_FILE, {**shared, **content})


def shared_fields(content: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments that `write_family` stored for every kind."""
    return {
        "method": content["method"],
        "preferences": tuple(parse_preference(label) for label in content["preferences"]),
        "optimises": dict(content["optimises"]),
        "point_cost": content["point_cost"],
    }


def stored_model(model: str, folder: Path) -> str:
    """A directory below `folder` as a path relative to it; another directory in full; a hub id as it is."""
    return relative_path(Path(model), Path(folder)) if Path(model).is_dir() else model


def found_model(model: str, folder: Path) -> str:
    """The inverse of `stored_model`."""
    return str(folder / model) if (folder / model).is_dir() else model


def relative_path(path: Path, folder: Path) -> str:
    """`path` relative to `folder` where it lies below it, else absolute."""
    path, folder = path.resolve(), folder.resolve()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
