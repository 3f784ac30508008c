"""Weighted sums of checkpoints and of LoRA adapters on disk: which may be added up, and each way of doing so.

An adapter is added up by its factors alone where its settings are known to mean `W + s B A`; all others are refused.
The adapters' own base may stand among them: its weight change is 0.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import UserError
from align.models import load_model, load_tokenizer, save_model
from align.models.formats import shared_format, store, stored_format
from align.models.stored.adapters import ADAPTER_FILE, BASE_NOTE, base_of, is_adapter, noted_base, odd_setting, shapes
from align.runs import model_dir

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_WEIGHT_FILES = (".safetensors", ".bin", ".safetensors.index.json")
# Of config.json: what says nothing of the weights, and what a trainer writes (special tokens, those of the tokenizer).
_CONFIG_KEYS_IGNORED = (
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
    "attention_dropout",  # switched off by training
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
_RIGHT_IN_FULL = ("init_lora_weights", "trainable_token_indices", "lora_bias", "modules_to_save")
_PREFIX = "base_model.model."


def on_disk(path: str | Path) -> Path:
    """The folder of a run, a model directory, or a hub id that was loaded before; UserError where there is none."""
    from transformers.utils import cached_file

    source = model_dir(path)
    if Path(source).is_dir():
        return Path(source)
    try:
        file = cached_file(source, "config.json", local_files_only=True)
    except OSError as error:
        raise UserError(f"{path} is no model directory, and not among the models loaded from the hub") from error
    return Path(str(file)).parent


# ------------------------------------------------------------------------------------------------- what may be added up


def check_adapter_merge(adapter_merge: str) -> None:
    """UserError for a way of merging adapters that has no name here."""
    if adapter_merge not in ADAPTER_MERGES:
        raise UserError(f"adapter_merge must be one of {', '.join(ADAPTER_MERGES)}, not {adapter_merge!r}; use exact")


def check_mergeable(specialists: Sequence[str | Path], *, adapter_merge: str = "exact") -> str:
    """ "full" or "adapter"; UserError naming the first difference that makes an interpolation meaningless."""
    check_adapter_merge(adapter_merge)
    folders = [Path(path) for path in specialists]
    kinds = ["adapter" if is_adapter(folder) else "full" for folder in folders]
    adapted = [folder for folder in folders if is_adapter(folder)]
    if adapted and adapter_merge != "factors":
        base = _place(base_of(adapted[0]))
        folders = [folder for folder in folders if is_adapter(folder) or _place(folder) != base]
        kinds = ["adapter" if is_adapter(folder) else "full" for folder in folders]
    if len(set(kinds)) > 1:
        raise UserError(f"{folders[0]} is {kinds[0]} but another specialist is not; train all of them the same way")
    if kinds[0] == "full" and adapter_merge == "factors":
        raise UserError(f"factors are averaged of adapters, but {folders[0]} is a full model; use adapter_merge: exact")
    if kinds[0] == "adapter":
        _check_adapters(folders, adapter_merge=adapter_merge)
    else:
        _check_configs(folders)
    vocabularies = [_vocabulary(folder) for folder in folders if (folder / "tokenizer.json").is_file()]
    if any(one != vocabularies[0] for one in vocabularies):
        raise UserError(f"{folders[0]} and another specialist have different tokenizers; they cannot be averaged")
    if tokenizers := _tokenizers(folders):
        shared_format(tokenizers)
    return kinds[0]


def carry_format(sources: Sequence[Path], folder: Path) -> None:
    """Let the soup carry the prompt format of its specialists, which the first of them may not have been given."""
    tokenizers = _tokenizers([*sources, folder])
    if str(folder) in tokenizers and any(stored_format(tokenizer) for tokenizer in tokenizers.values()):
        store(tokenizers[str(folder)], shared_format(tokenizers))
        tokenizers[str(folder)].save_pretrained(folder)


def _tokenizers(folders: Sequence[Path]) -> dict[str, PreTrainedTokenizerBase]:
    """The tokenizers of those that have one of their own."""
    return {str(f): load_tokenizer(f) for f in folders if (f / "tokenizer_config.json").is_file()}


def _place(path: str | Path) -> str:
    return str(Path(path).resolve()) if Path(path).is_dir() else str(path)


def _vocabulary(folder: Path) -> object:
    """What decides a tokenizer's ids; how it pads and cuts is left out."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return {name: part for name, part in content.items() if name not in ("truncation", "padding")}


def _json(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).is_file():
        raise UserError(f"specialist {folder} has no {name}; give a local model directory")
    return json.loads((folder / name).read_text(encoding="utf-8"))


def _check_configs(folders: Sequence[Path]) -> None:
    """UserError for the first key in which two models differ, as transformers reads their configs today."""
    from transformers import AutoConfig

    configs = []
    for folder in folders:
        _json(folder, "config.json")
        try:
            configs.append(AutoConfig.from_pretrained(folder).to_dict())
        except Exception as error:
            raise UserError(
                f"{folder / 'config.json'} cannot be read ({error!r:.200}); save the model again"
            ) from error
    for folder, config in zip(folders, configs, strict=True):
        for key in sorted({*configs[0], *config} - {*_CONFIG_KEYS_IGNORED}):
            if config.get(key) != configs[0].get(key):
                raise UserError(f"{folders[0]} and {folder} differ in {key} of config.json; they cannot be averaged")


def _check_adapters(folders: Sequence[Path], *, adapter_merge: str) -> None:
    configs = [_json(folder, ADAPTER_FILE) for folder in folders]
    first = configs[0]
    for folder, config in zip(folders, configs, strict=True):
        if config.get("peft_type") != "LORA":
            raise UserError(
                f"{folder} is a {config.get('peft_type')} adapter; only LoRA weight changes can be added up"
            )
        if _place(str(config.get("base_model_name_or_path"))) != _place(str(first.get("base_model_name_or_path"))):
            raise UserError(f"{folder} adapts another base model than the first specialist")
        odd = odd_setting(config)
        if odd is not None and not (adapter_merge == "full" and odd in _RIGHT_IN_FULL):
            fix = "use adapter_merge: full" if odd in _RIGHT_IN_FULL else "train without it"
            raise UserError(f"{folder} was trained with {odd} = {config[odd]}, which does not merge exactly; {fix}")
        whole = [name for name in shapes(folder) if "lora_" not in name]
        if whole and adapter_merge != "full":
            raise UserError(
                f"{folder} holds {whole[0]} beside its factors, which do not add up; use adapter_merge: full"
            )
        for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern"):
            if adapter_merge == "factors" and config.get(key) != first.get(key):
                raise UserError(
                    f"{folder} differs in {key} from the first specialist; factors of one shape are averaged"
                )


# ------------------------------------------------------------------------------------------------------- weighted sums


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a model or adapter directory; UserError when it holds no safetensors file."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} has no safetensors weights; save it with save_pretrained")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def merge_states(states: Sequence[Mapping[str, Tensor]], *, weights: Sequence[float]) -> dict[str, Tensor]:
    """`sum_k weights_k states_k` tensor by tensor, summed in float64; bit-identical to one state where it has weight 1.

    Of several number types the widest is kept. UserError on a key or shape that not all states share, or on integer
    tensors that differ.
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
        floats = first.is_floating_point()
        if any(t.shape != first.shape or t.is_floating_point() != floats for t in tensors):
            raise UserError(f"specialists differ in the shape or type of tensor {name}; they cannot be averaged")
        if not floats:
            if not all(torch.equal(t, first) for t in tensors):
                raise UserError(f"specialists differ in the integer tensor {name}; they cannot be averaged")
            merged[name] = first
            continue
        total = torch.zeros_like(first, dtype=torch.float64)
        for weight, state in used:
            total += weight * state[name].double()
        merged[name] = total.to(functools.reduce(torch.promote_types, (t.dtype for t in tensors)))
    return merged


def average_checkpoints(specialists: Sequence[Path], *, weights: Sequence[float], out: Path) -> None:
    """Write averaged tensors; all else is copied from the first specialist.

    Where files name their tensors differently (an older version wrote them), the models are loaded and averaged.
    """
    if len({frozenset(shapes(folder)) for folder in specialists}) == 1:
        _write_average(specialists, weights=weights, out=out, file="model.safetensors")
    else:
        merge_into_base(specialists, weights=weights, out=out)


def average_scorers(scorers: Sequence[str | Path], *, out: Path) -> None:
    """Write the equal average of whole reward models, as a model folder (WARM, Rame et al. 2024).

    They must come of one backbone. UserError for adapters, language models, and models that cannot be averaged.
    """
    folders = [on_disk(path) for path in scorers]
    for folder in folders:
        if is_adapter(folder) or not any("score" in n or "classifier" in n for n in shapes(folder)):
            raise UserError(f"{folder} is no whole reward model; give runs of align reward-model with merged weights")
    check_mergeable(folders)
    out.mkdir(parents=True, exist_ok=True)
    _write_average(folders, weights=[1 / len(folders)] * len(folders), out=out, file="model.safetensors")


def average_factors(specialists: Sequence[Path], *, weights: Sequence[float], out: Path) -> None:
    """Write adapters averaged by their factors, A and B apart; all else is copied from the first specialist."""
    _write_average(specialists, weights=weights, out=out, file="adapter_model.safetensors")


def _write_average(specialists: Sequence[Path], *, weights: Sequence[float], out: Path, file: str) -> None:
    from safetensors.torch import save_file

    merged = merge_states([read_weights(folder) for folder in specialists], weights=weights)
    _copy_others(specialists[0], out)
    tensors = {name: tensor.contiguous() for name, tensor in merged.items()}
    save_file(tensors, out / file, {"format": "pt"})


def _copy_others(source: Path, out: Path) -> None:
    """Copy the files of a model directory that hold no weights and are not in `out` yet."""
    for file in sorted(source.iterdir()):
        known = file.name == BASE_NOTE or file.name.endswith(_WEIGHT_FILES)
        if file.is_file() and not (out / file.name).exists() and not known:
            shutil.copy2(file, out / file.name)
    if is_adapter(source):
        noted_base(base_of(source), out)


def merge_into_base(specialists: Sequence[Path], *, weights: Sequence[float], out: Path) -> None:
    """Merge each LoRA adapter into its base, write the average of the full models as a full checkpoint."""
    models = [load_model(folder) for folder in specialists]
    untied = [model for model in models if not model.config.tie_word_embeddings]
    whole = (untied or models)[0]  # a sum with a model of two matrices has two
    whole.load_state_dict(merge_states([model.state_dict() for model in models], weights=weights))
    save_model(whole, load_tokenizer(specialists[0]), out)


def merge_exactly(specialists: Sequence[Path], *, weights: Sequence[float], out: Path) -> None:
    """Write one LoRA adapter whose weight change is exactly `sum_k weights_k delta W_k`, of the ranks' sum.

    Its A are those of the specialists below one another, its B theirs side by side, each times `weights_k s_k`.
    """
    import torch
    from safetensors.torch import save_file

    pairs = [(folder, w) for folder, w in zip(specialists, weights, strict=True) if is_adapter(folder)]
    states = [read_weights(folder) for folder, _ in pairs]
    odd = {name for state in states for name in state if any(name not in other for other in states)}
    if odd:
        raise UserError(f"specialists do not share the tensor {sorted(odd)[0]}; they cannot be added up")
    configs = [_json(folder, ADAPTER_FILE) for folder, _ in pairs]
    used = [k for k, (_, w) in enumerate(pairs) if w != 0] or [0]
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name in sorted(states[0]):
        if "lora_A" not in name and "lora_embedding_A" not in name:
            continue
        layer = re.split(r"\.lora_(?:embedding_)?A", name)[0]
        other = name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")
        rows = [states[k][name].shape[0] for k in used]
        scales = [pairs[k][1] * _alpha(configs[k], layer) / rank for k, rank in zip(used, rows, strict=True)]
        tensors[name] = torch.cat([states[k][name] for k in used], 0).contiguous()
        columns = [
            (scale * states[k][other].double()).to(states[k][other].dtype)
            for k, scale in zip(used, scales, strict=True)
        ]
        tensors[other] = torch.cat(columns, 1).contiguous()
        ranks[layer.removeprefix(_PREFIX)] = sum(rows)
    save_file(tensors, out / "adapter_model.safetensors", {"format": "pt"})
    (out / ADAPTER_FILE).write_text(json.dumps(_summed(configs[0], ranks), indent=2, sort_keys=True), encoding="utf-8")
    _copy_others(pairs[0][0], out)


def _alpha(config: Mapping[str, Any], layer: str) -> float:
    """The alpha of a layer, by the patterns of names that PEFT would match."""
    from peft.utils.other import get_pattern_key

    pattern = config.get("alpha_pattern") or {}
    return float(pattern.get(get_pattern_key(list(pattern), layer.removeprefix(_PREFIX)), config["lora_alpha"]))


def _summed(config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, Any]:
    """The settings of a sum: its scale, alpha over rank, is 1 in every layer."""
    most = max(ranks.values())
    others = {re.escape(layer): rank for layer, rank in ranks.items() if rank != most}
    changed = {"r": most, "lora_alpha": most, "rank_pattern": others, "alpha_pattern": others}
    return {**config, **changed, "init_lora_weights": True}


ADAPTER_MERGES: Mapping[str, Callable[..., None]] = {
    "exact": merge_exactly,
    "full": merge_into_base,
    "factors": average_factors,
}
