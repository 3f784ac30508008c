"""Several causal LMs of one tokenizer in memory: adapters of one base share its backbone and are switched, not copied.

K LoRA adapters cost one base model and K small sets of factors; full checkpoints cost what they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from align.errors import UserError
from align.models.formats import bind, shared_format
from align.models.load import load_to_read, to_read, unreadable
from align.models.stored.adapters import adds_up, base_of, is_adapter, on_base
from align.models.stored.precision import is_small
from align.models.tokenizers import load_tokenizer
from align.runs import model_dir

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils import ModelOutput


@dataclass
class Backbone:
    """A base model in memory and the adapters loaded onto it; at most one of them is active."""

    model: PreTrainedModel
    peft: PeftModel | None = None  # the wrapper that PEFT puts around `model`, whose layers it replaces in place
    adapters: dict[str, str] = field(default_factory=dict)  # adapter directory to its name in `peft`
    active: str | None = None

    def add(self, folder: str) -> None:
        """Load the adapter of `folder`; UserError when it cannot be read, or could not be switched off again."""
        from peft import PeftConfig, PeftModel

        name = f"adapter_{len(self.adapters)}"
        try:
            config = PeftConfig.from_pretrained(folder)
            if getattr(config, "bias", "none") != "none":  # these are biases of the backbone itself
                raise UserError(f"{folder} has trained biases, which all adapters of its base would share; merge it")
            if self.peft is None:
                self.peft = PeftModel.from_pretrained(self.model, folder, adapter_name=name)
            else:
                self.peft.load_adapter(folder, adapter_name=name)
        except UserError:
            raise
        except Exception as error:  # a damaged file shows as whatever the loaders of Hugging Face raise
            raise unreadable(folder, error) from error
        self.peft.eval()
        self.adapters[folder] = self.active = name
        self.peft.set_adapter(name, inference_mode=True)

    def switch(self, name: str | None) -> None:
        """Make adapter `name` the active one; None is the base model without any."""
        if self.peft is None or name == self.active:
            return
        if name is None:
            self.peft.base_model.disable_adapter_layers()
        else:
            if self.active is None:
                self.peft.base_model.enable_adapter_layers()
            self.peft.set_adapter(name, inference_mode=True)
        self.active = name


@dataclass(frozen=True)
class View:
    """A model on a shared backbone, read like a model in eval mode; it switches the backbone before each pass."""

    backbone: Backbone
    adapter: str | None = None

    def __call__(self, **inputs: object) -> ModelOutput:
        self.backbone.switch(self.adapter)
        return self.backbone.model(**inputs)

    def eval(self) -> View:
        """Nothing to do: a view is for reading."""
        return self

    @property
    def config(self) -> PretrainedConfig:
        return self.backbone.model.config

    @property
    def generation_config(self) -> GenerationConfig:
        return self.backbone.model.generation_config

    @property
    def device(self) -> torch.device:
        return self.backbone.model.device


class ModelPool:
    """Models by directory, each loaded when it is first asked for and kept until `release`."""

    def __init__(self) -> None:
        self._backbones: dict[str, Backbone] = {}
        self._given: dict[str, PreTrainedModel] = {}
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}

    @classmethod
    def of(cls, models: Mapping[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase) -> ModelPool:
        """A pool of models that are in memory already, by names of the caller's choice; `release` keeps them."""
        pool = cls()
        pool._given = {name: model.eval() for name, model in models.items()}
        pool._tokenizers = dict.fromkeys(models, tokenizer)
        return pool

    def model(self, path: str) -> PreTrainedModel | View:
        """The causal LM of a run, model or adapter directory, or hub id, in eval mode; UserError as `load_model`."""
        if path in self._given:
            return self._given[path]
        folder = model_dir(path)
        if not is_adapter(folder):
            return View(self._backbone(folder))
        backbone = self._backbone(base_of(folder))
        if folder not in backbone.adapters:
            backbone.add(folder)
        return View(backbone, backbone.adapters[folder])

    def tokenizer(self, paths: Sequence[str]) -> PreTrainedTokenizerBase:
        """The tokenizer that all of `paths` share, in their one prompt format.

        UserError naming the first one that has another vocabulary, or another format.
        """
        for path in paths:
            if path not in self._tokenizers:
                self._tokenizers[path] = load_tokenizer(path)
        first = self._tokenizers[paths[0]]
        for path in paths[1:]:
            if self._tokenizers[path] is not first and self._tokenizers[path].get_vocab() != first.get_vocab():
                raise UserError(f"{path} and {paths[0]} have different tokenizers; give models of one vocabulary")
        bind(first, shared_format({path: self._tokenizers[path] for path in paths}))
        return first

    def release(self) -> None:
        """Let go of every model that this pool loaded."""
        self._backbones = {}

    def _backbone(self, folder: str) -> Backbone:
        key = str(Path(folder).resolve()) if Path(folder).is_dir() else folder
        if key not in self._backbones:
            self._backbones[key] = Backbone(load_to_read(folder))
        return self._backbones[key]


# ------------------------------------------------------------------------------------------- one base, policies in turn


class Lending:
    """A large base that is lent to one adapter policy at a time: of a front of adapters it is read from disk once.

    Between two policies it waits in the machine's memory, so that the GPU is free for others.
    """

    def __init__(self) -> None:
        self._key: object = None
        self._base: PreTrainedModel | None = None
        self._borrower: Callable[[], PeftModel | None] = lambda: None

    def borrow(self, path: str) -> PreTrainedModel:
        """The causal LM of a path, to read: a large adapter on the base that was lent last, all others as loaded."""
        folder = model_dir(path)
        lent = self._borrower() is not None
        if lent or not is_adapter(folder) or is_small(folder) or not adds_up(folder):
            return load_to_read(folder)
        key = _stamp(base_of(folder))
        if self._base is None or self._key != key:
            self._base = None  # before the next one is read: two may not fit
            self._base, self._key = load_to_read(base_of(folder)), key
        try:
            model = on_base(to_read(self._base), folder).eval()
        except Exception as error:  # a damaged file shows as whatever the loaders of Hugging Face raise
            self._base = None
            raise unreadable(folder, error) from error
        self._borrower, self._base = weakref.ref(model), None
        return model

    def give_back(self, model: PreTrainedModel) -> None:
        """Take an adapter off its base, which waits for the next one; nothing for a model that was not lent."""
        if self._borrower() is model:
            self._borrower = lambda: None
            self._base = cast("PeftModel", model).unload().to("cpu")


def _stamp(base: str) -> object:
    """A base as it lies on disk now."""
    files = sorted(Path(base).glob("*.safetensors")) if Path(base).is_dir() else []
    return base, tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


LENDING = Lending()
