"""A reward model kept as an adapter and a head: read on the backbone of the policy in training, or of its fellows."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from align.models import load_tokenizer
from align.models.shared_backbone import SharedBackbone, adapter_dir, base_of, require_same_base
from align.objectives.reward_model import RewardModelObjective

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Objectives that no policy has been bound to share one backbone per checkpoint, for as long as one of them lives.
_LOADED: weakref.WeakValueDictionary[str, SharedBackbone] = weakref.WeakValueDictionary()


class SharedRewardModel(RewardModelObjective):
    """`scale * output + shift` of a reward model kept as an adapter: the merged model's score, on a shared backbone.

    `path` is the run of a reward model trained with `keep_adapter`, or the directory of its adapter, head and
    tokenizer. While a LoRA policy trains on the reward model's own backbone, the on-policy methods bind the objective
    to that model (`bind`); else it is read on one frozen copy of the backbone that all such objectives share.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        scale: float = 1.0,
        shift: float = 0.0,
        batch_size: int = 64,
    ) -> None:
        super().__init__(path, name=name, scale=scale, shift=shift, batch_size=batch_size)
        self.folder = adapter_dir(path)
        self._bound: weakref.ref[SharedBackbone] | None = None
        self._own: SharedBackbone | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_bound": None, "_own": None}

    def bind(self, model: PreTrainedModel) -> None:
        """Read on the backbone of `model` for as long as that lives, if it is a PEFT policy (a model trained whole
        moves). UserError when it is one of another checkpoint.
        """
        if not hasattr(model, "peft_config") or not hasattr(model, "get_base_model"):
            self._bound = None
            return
        backbone = SharedBackbone.of(model)
        require_same_base(self.folder, backbone.base)
        self._bound, self._own = weakref.ref(backbone), None

    @property
    def backbone(self) -> SharedBackbone:
        """The backbone that the next call reads; loaded when there is none."""
        bound = None if self._bound is None else self._bound()
        if bound is not None:
            return bound
        if self._own is None:
            base = base_of(self.folder)
            if (found := _LOADED.get(base)) is None:
                found = _LOADED[base] = SharedBackbone.load(base)
            self._own = found
        return self._own

    def head(self, model: PreTrainedModel) -> int:
        """The only one: an adapter that is shared has a head of one output."""
        return 0

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._loaded is None:
            self._loaded = (None, load_tokenizer(self.folder))  # the model is asked for again: a bound one may be gone
        tokenizer = self._loaded[1]
        return self.backbone.scorer(self.folder, pad_token_id=tokenizer.pad_token_id), tokenizer
