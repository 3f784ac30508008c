"""A policy of a run as an ordinary Hugging Face folder: one set of weights, its tokenizer and its prompt format."""

from __future__ import annotations

from pathlib import Path

from align.errors import UserError
from align.models import load_model, load_tokenizer, save_model
from align.models.stored.adapters import base_of, is_adapter
from align.policies.base import FAMILY_FILE, ModelPolicy
from align.policies.load import load_family
from align.policies.merging import carry_format
from align.preferences import Preference
from align.runs import model_dir


def model_at(source: str | Path, preference: Preference | None) -> str:
    """The model directory (or hub id) of a run, a model, or a family at `preference`.

    UserError for a family without a preference, a preference without a family, and a policy that is no single model (a
    mixture of decodings, best-of-n, a model that reads its preference as text).
    """
    if not (Path(source) / FAMILY_FILE).is_file():
        model = model_dir(source)  # first: a folder that is not there is no single model
        if preference is not None:
            raise UserError(f"{source} holds no policy family, so that weights choose nothing; leave them out")
        return model
    family = load_family(source)
    if preference is None:
        raise UserError(f"{source} is a policy family; give the weights of one point ({family.domain})")
    policy = family.policy(preference)
    if type(policy) is not ModelPolicy:
        raise UserError(
            f"{source} at {preference.label} is no single model, but a rule of decoding or a model that is told its "
            "weights; use it through align.policies.load.load_family"
        )
    return policy.path


def export(source: str | Path, *, preference: Preference | None, out: Path, dtype: str | None = None) -> Path:
    """Save the model in `out`, adapters merged in float32 and then stored as `dtype` (None: as its base is stored).

    UserError as `model_at`, and where `out` is there already.
    """
    import torch

    place = model_at(source, preference)
    if out.exists():
        raise UserError(f"{out} exists; give another --out, or move it away")
    model, tokenizer = load_model(place), load_tokenizer(place)
    wanted = dtype or stored_dtype(place)
    if not isinstance(getattr(torch, wanted, None), torch.dtype):
        raise UserError(f"dtype {wanted!r} is none of torch's; choose float32, bfloat16 or float16")
    partial = out.with_name(out.name + ".partial")
    save_model(model.to(getattr(torch, wanted)), tokenizer, partial)
    carry_format([Path(place)], partial)
    partial.rename(out)
    return out


def stored_dtype(place: str) -> str:
    """The type that a model, or the base of an adapter, is stored in; float32 where its config does not say."""
    from transformers import AutoConfig

    while is_adapter(place):
        place = base_of(place)
    return str(getattr(AutoConfig.from_pretrained(place), "dtype", None) or "float32").removeprefix("torch.")
