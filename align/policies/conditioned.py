"""Conditioned adapters: put on a model, saved, loaded, merged into plain checkpoints, and the family of their policies.

Every linear layer but the output gets a weight change that depends on the preference, row by row in a batch
(align/policies/conditioned_layers.py), and training begins at the frozen backbone. For one preference the change is
a plain matrix:
`merge` writes an ordinary checkpoint, so that a point of the family costs nothing at decoding. Legend: K objectives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from align import checks
from align.errors import UserError
from align.models import count_parameters, load_model, load_tokenizer, save_model
from align.policies.base import ModelPolicy, found_model, relative_path, shared_fields, stored_model, write_family
from align.policies.conditioned_layers import (
    LAYERS,
    AdapterConfig,
    ConditionedLinear,
    DenseLinear,
    Preferences,
)
from align.preferences import Preference, Weights
from align.runs import fingerprint, model_dir, name_today, write_json
from align.runs.derived import derive

if TYPE_CHECKING:
    from transformers import PreTrainedModel


ADAPTER_FILE, STATE_FILE = "conditioned.json", "conditioned.safetensors"
MERGED_FILE = "merged.json"


def attach(model: PreTrainedModel, config: AdapterConfig, *, seed: int = 0) -> Preferences:
    """Freeze `model` and put an adapter on each linear layer but the output; returns what holds the preferences.

    A batch that carries `preferences` (B, K) as one more input sets them itself. Without `train_all`, the model
    gets PEFT's `disable_adapter()`, within which it is the backbone. UserError when the model has no linear layer to
    adapt (GPT-2 keeps its matrices in another class).
    """
    preferences, head = Preferences(config.objectives), model.get_output_embeddings()
    children = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    places = [(p, name, child) for p, name, child in children if type(child) is nn.Linear and child is not head]
    if not places:
        raise UserError(f"a {model.config.model_type} model has no linear layer for a conditioned adapter; use a llama")
    model.requires_grad_(config.train_all)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for parent, name, layer in places:
            setattr(parent, name, LAYERS[config.kind](layer, preferences, config).to(layer.weight.device))

    def take(
        _: nn.Module, args: tuple[Tensor, ...], inputs: dict[str, Tensor]
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]] | None:
        if "preferences" not in inputs:
            return None
        preferences.set(inputs["preferences"])
        return args, {name: value for name, value in inputs.items() if name != "preferences"}

    model.register_forward_pre_hook(take, with_kwargs=True)
    if not config.train_all:
        model.disable_adapter = preferences.off
    return preferences


def adapted_layers(model: PreTrainedModel) -> dict[str, ConditionedLinear]:
    """Every adapted layer by the name that its frozen layer had in the plain model."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, ConditionedLinear)}


def trained(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name: those of the layers, and with `train_all` all others that are not adapted."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def multiplied_parameters(model: PreTrainedModel, *, tokens_per_preference: float) -> float:
    """By how many parameters a token is multiplied in a pass: lookup tables cost nothing, and dense directions are
    mixed once for all tokens that share a preference.
    """
    directions = sum(layer.D.numel() for layer in adapted_layers(model).values() if isinstance(layer, DenseLinear))
    return count_parameters(model, embeddings=False) - directions * (1 - 1 / tokens_per_preference)


def save_adapter(model: PreTrainedModel, config: AdapterConfig, folder: Path, *, base: str) -> None:
    """Write the adapter's parameters and its configuration; `base` is the checkpoint that they change."""
    from safetensors.torch import save_file

    checks.finite_weights(model)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: p.detach().contiguous().cpu() for name, p in trained(model).items()}
    save_file(state, folder / STATE_FILE, {"format": "pt"})
    write_json(folder / ADAPTER_FILE, {**asdict(config), "base": base})


def load_adapter(folder: str | Path, *, base: str) -> tuple[PreTrainedModel, Preferences]:
    """The adapted model in memory, and its preferences; UserError when the files do not fit together."""
    from safetensors.torch import load_file

    place = Path(folder)
    if not (place / STATE_FILE).is_file() or not (place / ADAPTER_FILE).is_file():
        missing = STATE_FILE if not (place / STATE_FILE).is_file() else ADAPTER_FILE
        raise UserError(f"{place} holds no conditioned adapter (no {missing}); train it again")
    try:
        content = json.loads((place / ADAPTER_FILE).read_text(encoding="utf-8"))
        config = AdapterConfig(**{name_today(name): value for name, value in content.items() if name != "base"})
        state = load_file(place / STATE_FILE)
    except UserError:
        raise
    except Exception as error:  # safetensors has an error of its own for a damaged file
        raise UserError(f"the adapter in {place} is damaged ({error}); train it again") from error
    model = load_model(base)
    preferences = attach(model, config)
    own = {name: p.shape for name, p in trained(model).items()}
    odd = sorted(name for name in {*state, *own} if name not in state or state[name].shape != own.get(name))
    if odd:
        raise UserError(f"{place} does not fit {base}: {odd[0]} is missing on one side or has another shape")
    model.load_state_dict(state, strict=False)
    return model.eval(), preferences


def merge(folder: str | Path, *, base: str, weights: Sequence[float], out: Path) -> str:
    """The plain checkpoint `W + dW(weights)` in `out`, made unless it is there already from the same adapter."""
    stamp = (Path(folder) / STATE_FILE).stat()
    record = {"weights": list(weights), "adapter": fingerprint([stamp.st_size, stamp.st_mtime_ns])}

    def make(place: Path) -> None:
        adapted, _ = load_adapter(folder, base=base)
        plain = load_model(base)
        merge_into(plain, adapted, weights=weights)
        save_model(plain, load_tokenizer(base), place)

    return derive(out, record=record, file=MERGED_FILE, make=make)


def merge_into(plain: PreTrainedModel, adapted: PreTrainedModel, *, weights: Sequence[float]) -> None:
    """Turn `plain`, a copy of the backbone, into the adapted model at `weights`."""
    layers = adapted_layers(adapted)
    with torch.no_grad():
        for name, p in trained(adapted).items():
            if not any(name.startswith(f"{layer}.") for layer in layers):
                plain.get_parameter(name).copy_(p)
        for name, layer in layers.items():
            w_K = torch.tensor(list(weights), dtype=layer.base.weight.dtype, device=layer.base.weight.device)
            plain.get_submodule(name).weight += layer.delta(w_K).to(plain.device)


@dataclass(frozen=True)
class ConditionedFamily:
    """A policy for every point of the simplex; plain checkpoints are merged when asked for, in `folder/merged`."""

    method: str
    adapter: str
    base: str
    objectives: int
    folder: Path
    preferences: tuple[Preference, ...] = ()
    optimises: dict[str, str] = field(default_factory=dict)
    point_cost: str = "merge"

    @property
    def domain(self) -> str:
        return f"all weights of {self.objectives} objectives"

    def policy(self, preference: Preference) -> ModelPolicy:
        """The merged policy at `preference`; UserError for anything but K weights."""
        if not isinstance(preference, Weights) or len(preference) != self.objectives:
            raise UserError(f"{self.method} answers {self.objectives} weights, not {preference.label}")
        place = Path(self.folder) / "merged" / preference.label
        path = merge(self.adapter, base=self.base, weights=preference.values, out=place)
        return ModelPolicy(path, name=f"{self.method}@{preference.label}")

    def save(self, folder: Path) -> None:
        """Write `family.json`; the adapter is stored relative to it where it lies below `folder`."""
        write_family(
            self,
            folder,
            kind="conditioned",
            adapter=relative_path(Path(self.adapter), folder),
            base=stored_model(model_dir(self.base) if Path(self.base).is_dir() else self.base, folder),
            objectives=self.objectives,
        )

    @classmethod
    def from_json(cls, folder: Path, content: Mapping[str, Any]) -> ConditionedFamily:
        """The family that `save` wrote into `folder`."""
        return cls(
            **shared_fields(content),
            adapter=str(folder / content["adapter"]),
            base=found_model(content["base"], folder),
            objectives=content["objectives"],
            folder=Path(folder),
        )
