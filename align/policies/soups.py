"""Weight-space soups: one model `sum_k w_k theta_k` of K specialists, merged in a named way, and the family of them.

Full checkpoints are averaged tensor by tensor. Adapters are merged in one of three ways. exact: the sum of their weight
changes `sum_k w_k s_k B_k A_k`, again an adapter (PEFT "cat": the ranks add up). full: each into its base, then full
weights are averaged; the same model up to rounding, as a full checkpoint. factors: A and B are averaged apart, which
published code does (RS, MOD's baseline, P-Soups) and PEFT calls "linear": `s (sum_k w_k B_k)(sum_k w_k A_k)` has cross
terms and is no soup of the weights; here to measure what it loses.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import UserError
from align.models import load_model, load_tokenizer, save_model
from align.models.formats import shared_format, store, stored_format
from align.policies.base import ModelPolicy, Policy, relative_path, shared_fields, write_family
from align.preferences import Preference, Weights
from align.runs import fingerprint, model_dir
from align.runs.derived import derive

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

SOUP_FILE = "soup.json"
ADAPTER_MERGES = ("exact", "full", "factors")
_WEIGHT_FILES = (".safetensors", ".bin", ".safetensors.index.json")
_CONFIG_KEYS_IGNORED = (
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
    "attention_dropout",  # switched off by training, and no part of the weights
    "pad_token_id",  # written by training; they say where texts end, which the prompt format compares
    "bos_token_id",
    "eos_token_id",
)


@dataclass(frozen=True)
class SoupFamily:
    """A policy for every point of the simplex; merged models are made when asked for and kept in `folder/soups`.

    `uniform` averages the specialists of the objectives with weight above 0 evenly, whatever the sizes of the weights.
    """

    specialists: tuple[str, ...]
    folder: Path
    preferences: tuple[Weights, ...] = ()
    optimises: dict[str, str] = field(default_factory=dict)
    method: str = "rewarded_soups"
    point_cost: str = "merge"
    adapter_merge: str = "exact"
    uniform: bool = False

    @property
    def domain(self) -> str:
        answered = "every set of objectives, as the weights above 0," if self.uniform else "all weights"
        return f"{answered} of {len(self.specialists)} objectives"

    def policy(self, preference: Preference) -> Policy:
        """The soup at `preference`, the specialist itself at a vertex; UserError for anything but K weights."""
        if not isinstance(preference, Weights) or len(preference) != len(self.specialists):
            raise UserError(f"{self.method} answers {len(self.specialists)} weights, not {preference}")
        name, shares = f"{self.method}@{preference.label}", preference
        if self.uniform:
            chosen = [weight > 0 for weight in preference]
            shares = Weights(tuple(above / sum(chosen) for above in chosen))
        if shares.is_vertex:
            return ModelPolicy(self.specialists[shares.values.index(1.0)], name=name)
        place = self.folder / "soups" / shares.label
        soup = merge(self.specialists, weights=shares.values, out=place, adapter_merge=self.adapter_merge)
        return ModelPolicy(soup, name=name)

    def save(self, folder: Path) -> None:
        """Write `family.json`; specialists below `folder` are stored relative to it."""
        write_family(
            self,
            folder,
            kind="soup",
            specialists=[relative_path(Path(s), folder) for s in self.specialists],
            adapter_merge=self.adapter_merge,
            uniform=self.uniform,
        )

    @classmethod
    def from_json(cls, folder: Path, content: Mapping[str, Any]) -> SoupFamily:
        """The family that `save` wrote into `folder`."""
        return cls(
            **shared_fields(content),
            specialists=tuple(str(folder / path) for path in content["specialists"]),
            folder=Path(folder),
            adapter_merge=content["adapter_merge"],
            uniform=content["uniform"],
        )


def merge(
    specialists: Sequence[str],
    *,
    weights: Sequence[float],
    out: Path,
    adapter_merge: str = "exact",
    extrapolate: bool = False,
) -> str:
    """The directory of `sum_k weights_k theta_k`, made in `out` unless it is there already from the same specialists.

    Weights that are negative or do not sum to 1 leave the convex hull: UserError unless `extrapolate` says that this is
    meant, and `soup.json` then says so. UserError when the specialists do not fit together, or not for `adapter_merge`.
    """
    extrapolated = min(weights) < 0 or abs(sum(weights) - 1) > 1e-6
    if extrapolated and not extrapolate:
        raise UserError(f"soup weights {list(weights)} are not on the simplex; pass extrapolate=True if that is meant")
    if len(weights) != len(specialists):
        raise UserError(f"{len(weights)} weights for {len(specialists)} specialists")
    sources = [Path(model_dir(path)) for path in specialists]
    record = {"weights": list(weights), "extrapolated": extrapolated, "sources": _stamp(sources)}
    record["adapter_merge"] = adapter_merge

    def make(folder: Path) -> None:
        kind = check_mergeable(sources, adapter_merge=adapter_merge)
        folder.mkdir(parents=True)
        if kind == "full":
            _write_average(sources, weights=weights, out=folder, file="model.safetensors")
        elif adapter_merge == "factors":
            _write_average(sources, weights=weights, out=folder, file="adapter_model.safetensors")
        else:
            {"exact": merge_exactly, "full": merge_into_base}[adapter_merge](sources, weights=weights, out=folder)
        _carry_format(sources, folder)

    return derive(Path(out), record=record, file=SOUP_FILE, make=make)


def _carry_format(sources: Sequence[Path], folder: Path) -> None:
    """Let the soup carry the prompt format of its specialists, which the first of them may not have been given."""
    tokenizers = _tokenizers([*sources, folder])
    if str(folder) in tokenizers and any(stored_format(tokenizer) for tokenizer in tokenizers.values()):
        store(tokenizers[str(folder)], shared_format(tokenizers))
        tokenizers[str(folder)].save_pretrained(folder)


def _tokenizers(folders: Sequence[Path]) -> dict[str, PreTrainedTokenizerBase]:
    """The tokenizers of those that have one of their own."""
    return {str(f): load_tokenizer(f) for f in folders if (f / "tokenizer_config.json").is_file()}


def _stamp(sources: Sequence[Path]) -> str:
    """Fingerprint of the weight files of specialists and their bases: name, size and time of change, but no place.

    (A run may be moved as a whole.)
    """
    configs = [source / "adapter_config.json" for source in sources]
    bases = {json.loads(c.read_text(encoding="utf-8")).get("base_model_name_or_path") for c in configs if c.is_file()}
    folders = [*sources, *(Path(base) for base in sorted(filter(None, bases)))]
    files = [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]
    return fingerprint([[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files])


def check_adapter_merge(adapter_merge: str) -> None:
    """UserError for a way of merging adapters that has no name here."""
    if adapter_merge not in ADAPTER_MERGES:
        raise UserError(f"adapter_merge must be one of {', '.join(ADAPTER_MERGES)}, not {adapter_merge!r}; use exact")


def check_mergeable(specialists: Sequence[str | Path], *, adapter_merge: str = "exact") -> str:
    """ "full" or "adapter"; UserError naming the first difference that makes an interpolation meaningless."""
    check_adapter_merge(adapter_merge)
    folders = [Path(path) for path in specialists]
    kinds = ["adapter" if (folder / "adapter_config.json").is_file() else "full" for folder in folders]
    if len(set(kinds)) > 1:
        raise UserError(f"{folders[0]} is {kinds[0]} but another specialist is not; train all of them the same way")
    if kinds[0] == "full" and adapter_merge == "factors":
        raise UserError(f"factors are averaged of adapters, but {folders[0]} is a full model; use adapter_merge: exact")
    name = "adapter_config.json" if kinds[0] == "adapter" else "config.json"
    configs = []
    for folder in folders:
        if not (folder / name).is_file():
            raise UserError(f"specialist {folder} has no {name}; give a local model directory")
        configs.append(json.loads((folder / name).read_text(encoding="utf-8")))
    for folder, config in zip(folders, configs, strict=True):
        if kinds[0] == "adapter":
            _check_adapter(folder, config, first=configs[0], same_shape=adapter_merge == "factors")
            continue
        for key in sorted({*configs[0], *config} - {*_CONFIG_KEYS_IGNORED}):
            if config.get(key) != configs[0].get(key):
                raise UserError(f"{folders[0]} and {folder} differ in {key} of config.json; they cannot be averaged")
    vocabularies = {(f / "tokenizer.json").read_bytes() for f in folders if (f / "tokenizer.json").is_file()}
    if len(vocabularies) > 1:
        raise UserError(f"{folders[0]} and another specialist have different tokenizers; they cannot be averaged")
    if tokenizers := _tokenizers(folders):
        shared_format(tokenizers)
    return kinds[0]


def _check_adapter(
    folder: Path, config: Mapping[str, object], *, first: Mapping[str, object], same_shape: bool
) -> None:
    if config.get("peft_type") != "LORA":
        raise UserError(f"{folder} is a {config.get('peft_type')} adapter; only LoRA weight changes can be added up")
    if config.get("base_model_name_or_path") != first.get("base_model_name_or_path"):
        raise UserError(f"{folder} adapts another base model than the first specialist")
    for key, plain in (("use_rslora", False), ("use_dora", False), ("bias", "none"), ("modules_to_save", None)):
        if config.get(key, plain) != plain:
            raise UserError(
                f"{folder} was trained with {key} = {config[key]}, which does not merge exactly; train without it"
            )
    for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern"):
        if same_shape and config.get(key) != first.get(key):
            raise UserError(f"{folder} differs in {key} from the first specialist; factors of one shape are averaged")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a model or adapter directory; UserError when it holds no safetensors file."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} has no safetensors weights; save it with save_pretrained")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def merge_states(states: Sequence[Mapping[str, Tensor]], *, weights: Sequence[float]) -> dict[str, Tensor]:
    """`sum_k weights_k states_k` tensor by tensor, summed in float64; bit-identical to one state where it has weight 1.

    UserError on a key or shape that not all states share, or on integer tensors that differ.
    """
    import torch

    for state in states[1:]:
        odd = set(states[0]) ^ set(state)
        if odd:
            raise UserError(f"specialists do not share the tensor {sorted(odd)[0]}; they cannot be averaged")
    merged = {}
    used = [(w, state) for w, state in zip(weights, states, strict=True) if w != 0]
    for name, first in states[0].items():
        tensors = [state[name] for state in states]
        kind = functools.reduce(torch.promote_types, (t.dtype for t in tensors))  # a bf16 reference with what it became
        if any(t.shape != first.shape or t.is_floating_point() != first.is_floating_point() for t in tensors):
            raise UserError(f"specialists differ in the shape or type of tensor {name}; they cannot be averaged")
        if not first.is_floating_point():
            if not all(torch.equal(t, first) for t in tensors):
                raise UserError(f"specialists differ in the integer tensor {name}; they cannot be averaged")
            merged[name] = first
            continue
        total = torch.zeros_like(first, dtype=torch.float64)
        for weight, state in used:
            total += weight * state[name].double()
        merged[name] = total.to(kind)
    return merged


def _write_average(specialists: Sequence[Path], *, weights: Sequence[float], out: Path, file: str) -> None:
    """Write averaged tensors (of adapters: A and B apart); all else is copied from the first specialist."""
    from safetensors.torch import save_file

    merged = merge_states([read_weights(folder) for folder in specialists], weights=weights)
    _copy_others(specialists[0], out)
    tensors = {name: tensor.contiguous() for name, tensor in merged.items()}
    save_file(tensors, out / file, {"format": "pt"})


def _copy_others(source: Path, out: Path) -> None:
    """Copy the files of a model directory that hold no weights and are not in `out` yet."""
    for file in sorted(source.iterdir()):
        if file.is_file() and not (out / file.name).exists() and not file.name.endswith(_WEIGHT_FILES):
            shutil.copy2(file, out / file.name)


def merge_into_base(specialists: Sequence[Path], *, weights: Sequence[float], out: Path) -> None:
    """Merge each LoRA adapter into its base, write the average of the full models as a full checkpoint."""
    models = [load_model(folder) for folder in specialists]
    merged = merge_states([model.state_dict() for model in models], weights=weights)
    models[0].load_state_dict(merged)
    save_model(models[0], load_tokenizer(specialists[0]), out)


def merge_exactly(specialists: Sequence[Path], *, weights: Sequence[float], out: Path) -> None:
    """Write one LoRA adapter whose weight change is exactly `sum_k weights_k delta W_k`, of the ranks' sum."""
    from peft import PeftConfig, PeftModel

    keys = [set(read_weights(folder)) for folder in specialists]
    odd = {name for names in keys for name in names if any(name not in other for other in keys)}
    if odd:
        raise UserError(f"specialists do not share the tensor {sorted(odd)[0]}; they cannot be added up")
    base = load_model(PeftConfig.from_pretrained(str(specialists[0])).base_model_name_or_path)
    names = [f"specialist_{k}" for k in range(len(specialists))]
    model = PeftModel.from_pretrained(base, str(specialists[0]), adapter_name=names[0])
    for name, folder in list(zip(names, specialists, strict=True))[1:]:
        model.load_adapter(str(folder), adapter_name=name)
    used = [(name, w) for name, w in zip(names, weights, strict=True) if w != 0]
    model.add_weighted_adapter([n for n, _ in used], [w for _, w in used], combination_type="cat", adapter_name="soup")
    model.save_pretrained(out, selected_adapters=["soup"])
    for file in (out / "soup").iterdir():
        shutil.move(file, out / file.name)
    (out / "soup").rmdir()
    _copy_others(specialists[0], out)
