"""Policies (a model with its decoding rule) and policy families (a policy for every preference that a method supports).

Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from align import checks
from align.errors import UserError
from align.preferences import Preference, parse_preference
from align.runs import model_dir, write_json

FAMILY_FILE = "family.json"
POINT_COSTS = ("train", "merge", "prompt", "decode")


@dataclass(frozen=True)
class Component:
    """A causal LM that a token-level policy reads, and the token ids that it puts before every prompt."""

    model: Any
    prefix: tuple[int, ...] = ()


@runtime_checkable
class TokenPolicy(Protocol):
    """A policy that is a rule on next-token distributions: what an exact evaluation asks for."""

    name: str
    samples_per_response: int

    def components(self) -> list[Component]: ...

    def mix(self, logp: Sequence[Any]) -> Any:
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

    def next_token_logprobs(self, input_ids_BT: Any, attention_mask_BT: Any) -> Any:
        """(B, V) log-probabilities of the next token after the decoding rule."""
        ...

    def sequence_logprobs(
        self, prompts: Sequence[str], completions: Sequence[str], *, max_new_tokens: int | None = None
    ) -> list[float]:
        """Sum of log pi in nats over the completion's tokens, and its end unless it was cut at `max_new_tokens`."""
        ...


class ModelPolicy:
    """A causal LM sampled at temperature 1 without truncation; loaded when first asked."""

    samples_per_response = 1
    banned: tuple[int, ...] = ()  # tokens that the decoding rule never draws: their probability is 0

    def __init__(self, path: str | Path, *, name: str | None = None) -> None:
        self.path = model_dir(path)
        self.name = name or Path(self.path).name
        self._loaded: tuple[Any, Any] | None = None

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch

            from align.models import load_model, load_tokenizer

            device = "cuda" if torch.cuda.is_available() else "cpu"
            self._loaded = (load_model(self.path).eval().to(device), load_tokenizer(self.path))
        return self._loaded

    def release(self) -> None:
        """Let go of the model; it is loaded again when asked. A front of large models would not fit in memory."""
        self._loaded = None

    def components(self) -> list[Component]:
        """The model itself, read at the prompt as it is."""
        return [Component(self.model)]

    def mix(self, logp: Sequence[Any]) -> Any:
        """The model's own distribution."""
        return logp[0]

    @property
    def model(self) -> Any:
        return self._load()[0]

    @property
    def tokenizer(self) -> Any:
        return self._load()[1]

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, seed: int, batch_size: int = 64) -> list[str]:
        """One sampled completion per prompt; the same seed gives the same text at the same batch size."""
        import torch

        model, tokenizer = self._load()
        torch.manual_seed(seed)
        texts: list[str] = []
        for start in range(0, len(prompts), batch_size):
            batch = tokenizer(
                list(prompts[start : start + batch_size]),
                return_tensors="pt",
                padding=True,
                padding_side="left",
                add_special_tokens=False,
            ).to(model.device)
            checks.fits(
                batch["input_ids"].shape[1] + max_new_tokens,
                model,
                what=f"{self.name}: the longest prompt and max_new_tokens",
                mend="shorten or leave out such prompts, or lower max_new_tokens",
            )
            with torch.inference_mode():
                ids = model.generate(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    max_new_tokens=max_new_tokens,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    repetition_penalty=1.0,  # some checkpoints carry one, which is not the policy that is scored
                    pad_token_id=tokenizer.pad_token_id,
                    suppress_tokens=list(self.banned) or None,
                )
            new_ids = ids[:, batch["input_ids"].shape[1] :]
            texts.extend(tokenizer.batch_decode(new_ids, skip_special_tokens=True))
        return texts

    def next_token_logprobs(self, input_ids_BT: Any, attention_mask_BT: Any) -> Any:
        """(B, V) float32 log-probabilities after the last position (left-padded rows)."""
        import torch

        with torch.inference_mode():
            input_ids_BT, attention_mask_BT = (t.to(self.model.device) for t in (input_ids_BT, attention_mask_BT))
            positions_BT = (attention_mask_BT.cumsum(-1) - 1).clamp(min=0)
            logits_BTV = self.model(
                input_ids=input_ids_BT, attention_mask=attention_mask_BT, position_ids=positions_BT, logits_to_keep=1
            ).logits
            return torch.log_softmax(self._allowed(logits_BTV[:, -1].float()), dim=-1)

    def _allowed(self, logits: Any) -> Any:
        if not self.banned:
            return logits
        logits = logits.clone()
        logits[..., list(self.banned)] = -float("inf")
        return logits

    def sequence_logprobs(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        batch_size: int = 32,
    ) -> list[float]:
        """Sum of log pi over completion tokens and the end token, in nats, for each pair.

        A completion of `max_new_tokens` tokens or more was cut before it ended: its end token was never drawn and does
        not count. Tokens are those of the text encoded again, which a sampled split may differ from.
        """
        import torch

        model, tokenizer = self._load()
        rows = []
        for prompt, completion in zip(prompts, completions, strict=True):
            head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            tail = tokenizer(completion, add_special_tokens=False)["input_ids"]
            if max_new_tokens is None or len(tail) < max_new_tokens:
                tail = [*tail, tokenizer.eos_token_id]
            rows.append((head, tail))
        order = sorted(range(len(rows)), key=lambda i: -sum(map(len, rows[i])))
        totals = [0.0] * len(rows)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            width = max(sum(map(len, rows[i])) for i in chosen)
            ids_BT = torch.full((len(chosen), width), tokenizer.pad_token_id)
            mask_BT = torch.zeros((len(chosen), width), dtype=torch.long)
            target_BT = torch.zeros((len(chosen), width))
            for row, i in enumerate(chosen):
                head, tail = rows[i]
                length = len(head) + len(tail)
                ids_BT[row, :length] = torch.tensor(head + tail)
                mask_BT[row, :length] = 1
                target_BT[row, len(head) : length] = 1
            ids_BT, mask_BT, target_BT = (t.to(model.device) for t in (ids_BT, mask_BT, target_BT))
            with torch.inference_mode():
                logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT).logits[:, :-1].float()
            logp_BT = torch.log_softmax(self._allowed(logits_BTV), -1).gather(-1, ids_BT[:, 1:, None])[..., 0]
            scored_BT = target_BT[:, 1:] > 0
            for row, total in enumerate(logp_BT.where(scored_BT, 0.0).sum(-1).tolist()):
                totals[chosen[row]] = total
        return totals


@runtime_checkable
class PolicyFamily(Protocol):
    """What every method returns: a policy for each preference of its domain."""

    @property
    def method(self) -> str: ...

    @property
    def point_cost(self) -> str: ...

    @property
    def domain(self) -> str: ...

    def policy(self, preference: Preference) -> Policy: ...


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


def relative_path(path: Path, folder: Path) -> str:
    """`path` relative to `folder` where it lies below it, else absolute."""
    path, folder = path.resolve(), folder.resolve()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
