"""A linear reward on what a frozen language model says of a reply: states and log-probabilities summed over tokens.

A score read at the last token must be learned anew by the layers below it. That a word is the likely one here, which
the model knows and which holds for topics without labels too, is in `agree` and `logp` from the start.
Legend: B texts, T tokens, H hidden size, F features.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError
from align.models import load_tokenizer
from align.models.load import load_to_read
from align.models.reading import Row, evaluated, padded, token_logprobs
from align.objectives.base import as_texts
from align.objectives.reward_model import RewardModelObjective
from align.objectives.scoring import as_drawn, sayable, scored_row

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NOTE, WEIGHTS = "pooled.json", "pooled.safetensors"
# Sums over a reply's tokens y_t, its end included, h_t being the state at y_t and e(y) the output embedding.
FEATURES = (
    "agree",  # h_{t-1} * e(y_t), elementwise: its sum over dimensions is the logit of y_t
    "words",  # e(y_t)
    "states",  # h_t
    "last",  # h_t at the last token alone
    "logp",  # log p(y_t | before)
    "length",  # 1
)


def pooled_features(
    model: PreTrainedModel, rows: Sequence[Row], *, names: Sequence[str] = FEATURES, pad_id: int, batch_size: int = 64
) -> Tensor:
    """(B, F) float32 features of (prompt ids, reply ids) rows, those of `names` side by side."""
    import torch

    found = []
    embed_VH = model.get_output_embeddings().weight
    with evaluated(model), torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            batch = padded(rows[start : start + batch_size], pad_id=pad_id, device=model.device)
            states_BTH = model.base_model(**batch.inputs).last_hidden_state
            before_BTH, after_BTH = states_BTH[:, :-1].float(), states_BTH[:, 1:].float()
            ids_BT, reply_BT = batch.ids_BT[:, 1:], batch.scored_BT[:, 1:]
            words_BTH = embed_VH[ids_BT].float()
            last_B = reply_BT.shape[1] - 1 - reply_BT.flip(1).int().argmax(1)
            logp_BT = token_logprobs(model.get_output_embeddings()(states_BTH[:, :-1]), ids_BT)
            kept_BT1 = reply_BT[..., None].float()
            by_name = {
                "agree": (before_BTH * words_BTH * kept_BT1).sum(1),
                "words": (words_BTH * kept_BT1).sum(1),
                "states": (after_BTH * kept_BT1).sum(1),
                "last": after_BTH[torch.arange(len(last_B)), last_B],
                "logp": (logp_BT * reply_BT).sum(1, keepdim=True),
                "length": reply_BT.float().sum(1, keepdim=True),
            }
            found.append(torch.cat([by_name[name] for name in names], 1).cpu())
    return torch.cat(found)


def pad_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Some id to pad with: what stands there is masked."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)


@dataclass(frozen=True)
class PooledWeights:
    """What a pooled reward is made of: its features (by name), where they are centred, weights, and covariance.

    (F,) centre and weights in the features' own units, (F, F) covariance of the weights, `backbone` a model to load.
    """

    backbone: str
    names: tuple[str, ...]
    centre_F: Tensor
    weights_F: Tensor
    covariance_FF: Tensor

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"centre": self.centre_F, "weights": self.weights_F, "covariance": self.covariance_FF}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
        note = {"backbone": self.backbone, "features": list(self.names)}
        (folder / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> PooledWeights:
        """UserError where the folder holds no pooled reward."""
        from safetensors.torch import load_file

        try:
            note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
            tensors = load_file(folder / WEIGHTS)
            parts = (tensors[name] for name in ("centre", "weights", "covariance"))
            return cls(str(note["backbone"]), tuple(note["features"]), *parts)
        except Exception as error:  # a damaged file shows as whatever json or safetensors raise
            raise UserError(f"{folder} holds no pooled reward ({error}); make it with align reward-model") from error

    def rewards(self, features_BF: Tensor, *, pessimism: float = 0.0) -> Tensor:
        """(B,) float64 rewards, less `pessimism` standard deviations of their posterior (from the centre)."""
        centred_BF = features_BF.double() - self.centre_F
        mean_B = centred_BF @ self.weights_F
        if not pessimism:
            return mean_B
        variance_B = ((centred_BF @ self.covariance_FF) * centred_BF).sum(1)
        return mean_B - pessimism * variance_B.clamp(min=0).sqrt()


def is_pooled(path: str | Path) -> bool:
    """Whether a run or folder holds a pooled reward."""
    return (Path(path) / NOTE).is_file()


class PooledReward:
    """`scale * (mean - pessimism * std) + shift` of a linear reward on a frozen model's pooled features.

    `path` is a run of `align reward-model --pooled`. Mean and standard deviation are those of the posterior given the
    labels, relative to the average response that was labelled; `scale=tau` returns to the annotator's units. Loaded at
    the first call, left out of pickles. None where the prompt's template cannot say it. UserError for a negative
    pessimism, and where the folder holds no pooled reward.
    """

    learned = True  # from data: rows that it trains are reported as such

    def __init__(
        self, path: str | Path, *, name: str | None = None, scale: float = 1.0, shift: float = 0.0,
        pessimism: float = 0.0, batch_size: int = 64,
    ) -> None:  # fmt: skip
        if not pessimism >= 0:
            raise UserError(f"pessimism is {pessimism}; give a number of standard deviations of at least 0")
        self.path, self.scale, self.shift = str(path), float(scale), float(shift)
        self.pessimism, self.batch_size = float(pessimism), batch_size
        self.__name__ = name or Path(path).name
        self._loaded: tuple[PooledWeights, PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_loaded": None}

    def load(self) -> tuple[PooledWeights, PreTrainedModel, PreTrainedTokenizerBase]:
        """The weights, the frozen model and its tokenizer, loaded once."""
        if self._loaded is None:
            weights = PooledWeights.load(Path(self.path))
            self._loaded = (weights, load_to_read(weights.backbone), load_tokenizer(weights.backbone))
        return self._loaded

    def in_units(self, rewards_B: Tensor) -> Tensor:
        """Rewards of `PooledWeights` in the units of this objective."""
        return self.scale * rewards_B + self.shift

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], *,
        completion_ids: Sequence[Sequence[int]] | None = None, completion_ended: Sequence[bool] | None = None,
        **columns: object,
    ) -> list[float | None]:  # fmt: skip
        prompts, completions = as_texts(prompts, completions)
        weights, model, tokenizer = self.load()
        replies = as_drawn(tokenizer, completions, completion_ids, ended=completion_ended)
        said = sayable(tokenizer, prompts)
        kept = [i for i, can in enumerate(said) if can]
        if not kept:
            return [None] * len(prompts)
        rows = [scored_row(tokenizer, prompts[i], replies[i]) for i in kept]
        features_BF = pooled_features(
            model, rows, names=weights.names, pad_id=pad_of(tokenizer), batch_size=self.batch_size
        )
        values = self.in_units(weights.rewards(features_BF, pessimism=self.pessimism)).tolist()
        found = dict(zip(kept, values, strict=True))
        return [found.get(i) for i in range(len(prompts))]


def learned_reward(
    path: str | Path, *, name: str | None = None, scale: float = 1.0, batch_size: int = 64
) -> PooledReward | RewardModelObjective:
    """The objective of a run of `align reward-model`, whichever of the two kinds it holds."""
    kind = PooledReward if is_pooled(path) else RewardModelObjective
    return kind(path, name=name, scale=scale, batch_size=batch_size)
