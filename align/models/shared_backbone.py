"""One frozen causal LM in memory for a LoRA policy, its reference and K reward models, each an adapter.

The policy's adapter stays active and trainable; the reference is the backbone with every adapter off; a reward model is
one more adapter of PEFT's on the same layers, and a score head outside of the model. Whoever reads another adapter does
so within `SharedBackbone.reading`, after which the policy is as it was. Legend: B texts, T tokens, H hidden units.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from align.errors import UserError
from align.models.load import load_to_read, unreadable
from align.models.stored.adapters import base_of, is_adapter
from align.runs import model_dir

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel


HEAD = "score.weight"


@dataclass(eq=False)
class SharedBackbone:
    """A backbone whose active adapter is somebody's policy: others are read on it and leave no trace.

    What is added is hidden from the policy's `peft_config` and `state_dict()`, so that saving, resuming and TRL's
    reference handling know the policy's adapter alone.
    """

    model: PreTrainedModel
    peft: PeftModel | None = None  # the wrapper that PEFT puts around `model`, whose layers it replaces in place
    active: str | None = None  # the policy's adapter
    scorers: dict[str, Scorer] = field(default_factory=dict)  # by adapter directory
    hidden: set[str] = field(default_factory=set)  # names of adapters that are none of the policy's

    @classmethod
    def of(cls, model: PeftModel) -> SharedBackbone:
        """The backbone of a PEFT policy in memory (one per model, however often it is asked for)."""
        if not hasattr(model, "shared_backbone"):
            made = model.shared_backbone = cls(model.get_base_model(), peft=model, active=model.active_adapter)
            model.register_state_dict_post_hook(without(made.hidden))
        return model.shared_backbone

    @classmethod
    def load(cls, base: str) -> SharedBackbone:
        """A checkpoint without a policy, frozen; UserError as `load_model`."""
        return cls(load_to_read(base).requires_grad_(False))

    @property
    def base(self) -> str:
        """The checkpoint that the backbone was read from."""
        return str(self.model.config._name_or_path)

    def scorer(self, path: str | Path, *, pad_token_id: int) -> Scorer:
        """The reward model of an adapter directory that holds its head; UserError unless it is one of this base."""
        folder = adapter_dir(path)
        require_same_base(folder, self.base)
        if folder not in self.scorers:
            self.scorers[folder] = self._add_scorer(folder, pad_token_id)
        return self.scorers[folder]

    def _add(self, load: Callable[[], object]) -> None:
        """Call `load` and hide what it added; where there is no policy it may stay (PEFT wants one to be known).

        PEFT draws new factors before it reads the saved ones: samples drawn later must not depend on that.
        """
        import torch

        before = set() if self.peft is None else set(self.peft.peft_config)
        with torch.random.fork_rng(), self._kept():
            load()
        if self.active is not None and self.peft is not None:
            added = set(self.peft.peft_config) - before
            self.hidden |= added
            for name in added:
                del self.peft.peft_config[name]

    def _add_scorer(self, folder: str, pad_token_id: int) -> Scorer:
        from peft import get_peft_model, set_peft_model_state_dict

        name = f"scorer_{len(self.scorers)}"
        config, state, head_1H = read_reward_adapter(folder)

        def load() -> None:
            if self.peft is None:
                self.peft = get_peft_model(self.model, config, adapter_name=name)
            else:
                self.peft.add_adapter(name, config)
            found = set_peft_model_state_dict(self.peft, state, adapter_name=name)
            missing = [key for key in found.missing_keys if f".{name}." in key]
            if odd := [*found.unexpected_keys, *missing]:
                raise UserError(f"{folder} does not fit its backbone ({odd[0]}); train it again")

        try:
            self._add(load)
        except UserError:
            raise
        except Exception as error:  # a damaged file shows as whatever PEFT raises
            raise unreadable(folder, error) from error
        config_of_scorer = copy.copy(self.model.config)
        config_of_scorer.pad_token_id = pad_token_id
        return Scorer(self, name, head_1H.to(self.model.device), config_of_scorer)

    @contextmanager
    def reading(self, name: str | None) -> Iterator[PreTrainedModel]:
        """The model in eval mode with adapter `name` alone, frozen (None: the reference); then everything as before."""
        with self._kept():
            if self.peft is not None and name is None:
                self.peft.base_model.disable_adapter_layers()
            elif self.peft is not None:
                self.peft.base_model.enable_adapter_layers()
                self.peft.base_model.set_adapter(name, inference_mode=True)
            (self.peft or self.model).eval()
            yield self.model

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Restores the active adapter, whether adapters are on, what is trainable, and the mode."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        root, peft = self.peft or self.model, self.peft
        training, flags = root.training, [(p, p.requires_grad) for p in root.parameters()]
        active, own = self.active, peft and peft.active_adapter
        names = peft and list(peft.base_model.active_adapters)
        off = peft and any(m.disable_adapters for m in self.model.modules() if isinstance(m, BaseTunerLayer))
        try:
            yield
        finally:
            if peft is not None:
                peft.base_model.enable_adapter_layers()
                peft.base_model.set_adapter(names)
                peft.active_adapter = own
                if off:
                    peft.base_model.disable_adapter_layers()
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            self.active = active
            (self.peft or self.model).train(training)


def without(names: set[str]) -> Callable[..., None]:
    """A hook that takes these adapters out of a `state_dict()`: PEFT filters by the names in `peft_config` only."""

    def take_out(_: object, state: dict[str, Tensor], *others: object) -> None:
        for key in [key for key in state if names & set(key.split("."))]:
            del state[key]

    return take_out


@dataclass(frozen=True)
class Scorer:
    """A reward model on a shared backbone, read like a sequence classifier; always in eval mode, without gradients."""

    backbone: SharedBackbone
    adapter: str
    head_1H: Tensor
    config: PretrainedConfig  # that of the backbone, with the padding token that texts are padded with
    training: bool = False

    def eval(self) -> Scorer:
        """Nothing to do: a scorer is for reading."""
        return self

    def train(self, mode: bool = True) -> Scorer:
        """Nothing to do either."""
        return self

    @property
    def device(self) -> torch.device:
        return self.backbone.model.device

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """`logits` (B, 1): the head at the last token that is not padding, which is where transformers reads it."""
        import torch

        with torch.no_grad(), self.backbone.reading(self.adapter) as model:
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            hidden_BTH = model.base_model(**inputs, use_cache=False).last_hidden_state
            places_T = torch.arange(input_ids.shape[1], device=input_ids.device)
            last_B = (places_T * (input_ids != self.config.pad_token_id)).argmax(-1)
            hidden_BH = hidden_BTH[torch.arange(len(last_B), device=last_B.device), last_B]
            return SimpleNamespace(logits=hidden_BH.to(self.head_1H.dtype) @ self.head_1H.T)


# ------------------------------------------------------------------------------------------------- adapters on disk


def adapter_dir(path: str | Path) -> str:
    """The directory of a reward model's adapter: `path`, or `adapter` of a run (or beside its `model`); UserError when
    there is none.
    """
    run = Path(path).parent if Path(path).name == "model" else Path(path)
    for folder in (Path(path), run / "adapter"):
        if is_adapter(folder):
            return str(folder)
    raise UserError(f"{path} holds no adapter; train the reward model with lora_r above 0 and keep_adapter: true")


def require_same_base(folder: str, backbone: str) -> None:
    """UserError when the adapter in `folder` was trained on another checkpoint than the one that is in memory."""
    ours, theirs = (str(Path(p).resolve()) if Path(p).is_dir() else p for p in (base_of(folder), model_dir(backbone)))
    if ours != theirs:
        raise UserError(
            f"{folder} is an adapter of {ours}, but the model in memory is {theirs}; train it on that one, "
            "or read the merged model (kind: reward_model)"
        )


def read_reward_adapter(folder: str) -> tuple[PeftConfig, dict[str, Tensor], Tensor]:
    """PEFT's configuration without the head, the factors by PEFT's names, and the head (1, H).

    The directory is what PEFT saves of a decoder trained with `task_type="SEQ_CLS"`. UserError unless it is a LoRA
    without trained biases or other whole modules, and with a head of one output.
    """
    from peft import PeftConfig, load_peft_weights

    try:
        config = PeftConfig.from_pretrained(folder)
        state = load_peft_weights(folder, device="cpu")
    except Exception as error:  # a damaged file shows as whatever the loaders of Hugging Face raise
        raise unreadable(folder, error) from error
    heads = [name for name in state if name.endswith(HEAD)]
    if len(heads) != 1 or state[heads[0]].shape[0] != 1:
        raise UserError(f"{folder} has no score head of one output beside its adapter; give a reward model's adapter")
    whole = [name for name in state if "lora_" not in name and name != heads[0]]
    if getattr(config.peft_type, "value", config.peft_type) != "LORA" or config.bias != "none" or whole:
        raise UserError(f"{folder} is more than a LoRA adapter and its head, which cannot be switched; merge it")
    head_1H = state.pop(heads[0])
    config.modules_to_save, config.task_type, config.inference_mode = None, "CAUSAL_LM", True
    return config, state, head_1H


def bind(functions: Iterable[Callable[..., Any]], model: PreTrainedModel) -> None:
    """Give `model`, a policy in training, to the objectives among or within `functions` that can share its backbone."""
    for function in functions:
        inner: Any = function
        while not hasattr(inner, "bind") and hasattr(inner, "objective"):  # metered, negated or normalized
            inner = inner.objective
        if hasattr(inner, "bind"):
            inner.bind(model)
