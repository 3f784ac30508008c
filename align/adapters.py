"""Adapters whose weight change depends on the preference, row by row in a batch: SVD-LoRA, PBLoRA, dense directions.

Every linear layer but the output computes `x W^T + x dW(w)^T` with dW = 0 at the start, so training begins at the
frozen backbone. For one preference `dW(w)` is a plain matrix: `merge` writes an ordinary checkpoint, so that a point of
the family costs nothing at decoding. Legend: B rows, K objectives, I and O features in and out, R rank, J directions.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align.errors import UserError
from align.policies import FAMILY_FILE, ModelPolicy, relative_path
from align.preferences import Preference, Weights, parse_preference
from align.runs import fingerprint, model_dir, write_json

ADAPTER_FILE, STATE_FILE = "conditioned.json", "conditioned.safetensors"


@dataclass(frozen=True)
class AdapterConfig:
    """Which conditioned adapter: `rank` shared directions; for pblora also `preference_rank` conditioned ones."""

    kind: str = "svd"
    objectives: int = 2
    rank: int = 8
    preference_rank: int = 4  # pblora only: r2 of Lin et al. 2025
    alpha: float = 16.0  # svd: scale alpha / rank; pblora: scale alpha / preference_rank, as their code has it

    def __post_init__(self) -> None:
        if self.kind not in LAYERS:
            raise UserError(f"adapter kind {self.kind!r} is not one of {', '.join(LAYERS)}")
        if min(self.objectives, self.rank, self.preference_rank) < 1 or not self.alpha > 0:
            raise UserError("an adapter needs objectives, rank and preference_rank of at least 1 and alpha above 0")


class Preferences:
    """The preference of each row that the adapted layers read next; shared by all layers of a model."""

    def __init__(self) -> None:
        self.rows_BK: Tensor | None = None

    def set(self, rows_BK: Any) -> None:
        """(B, K) preferences of the rows to come, or (1, K) for all of them."""
        self.rows_BK = torch.as_tensor(rows_BK, dtype=torch.float32)

    def of(self, x: Tensor) -> Tensor:
        """(B, K) of a batch `x` (B, ..., I); RuntimeError when none was set, or for another number of rows."""
        if self.rows_BK is None:
            raise RuntimeError("no preference was set for this conditioned model")
        rows_BK = self.rows_BK.to(x.device, x.dtype)
        if rows_BK.shape[0] not in (1, x.shape[0]):
            raise RuntimeError(f"{rows_BK.shape[0]} preferences for a batch of {x.shape[0]} rows")
        return rows_BK.expand(x.shape[0], -1)


class ConditionedLinear(nn.Module, ABC):
    """A frozen linear layer and a change of its weight that depends on the preference."""

    def __init__(self, base: nn.Linear, preferences: Preferences, config: AdapterConfig) -> None:
        super().__init__()
        self.base, self.preferences, self.config = base.requires_grad_(False), preferences, config
        self.build(base.in_features, base.out_features)

    @abstractmethod
    def build(self, i: int, o: int) -> None:
        """Make the parameters for a layer of `i` features in and `o` out."""

    @abstractmethod
    def change(self, x: Tensor, w_BK: Tensor) -> Tensor:
        """`x dW(w)^T` for each row of `x` (B, T, I), (B, T, O)."""

    def delta(self, w_K: Tensor) -> Tensor:
        """dW(w) as a matrix (O, I)."""
        i = self.base.in_features
        eye = torch.eye(i, dtype=w_K.dtype, device=w_K.device)[None]
        return self.change(eye, w_K[None])[0].T

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.change(x, self.preferences.of(x))


class SVDLinear(ConditionedLinear):
    """`dW(w) = U diag(sigma_1..sigma_R, s w_1..s w_K) V^T`: SVD-LoRA of Panacea (Zhong et al. 2024, equation 6).

    sigma and s start at 0, U and V as random orthonormal-scale matrices, so that the start is the backbone and both
    kinds of singular values have a gradient.
    """

    def build(self, i: int, o: int) -> None:
        """sigma and s at 0, U and V at random."""
        width = self.config.rank + self.config.objectives
        self.V = nn.Parameter(torch.randn(width, i) / math.sqrt(i))
        self.U = nn.Parameter(torch.randn(o, width) / math.sqrt(o))
        self.sigma = nn.Parameter(torch.zeros(self.config.rank))
        self.s = nn.Parameter(torch.zeros(()))

    def change(self, x: Tensor, w_BK: Tensor) -> Tensor:
        """Both kinds of singular values scale the R + K coordinates of `V x`."""
        scale_BR = torch.cat([self.sigma.expand(len(w_BK), -1), self.s * w_BK], -1)
        return ((x @ self.V.T) * scale_BR[:, None]) @ self.U.T * (self.config.alpha / self.config.rank)


class PBLinear(ConditionedLinear):
    """`dW(w) = s (B1 W1 A1 + B2 W2(w) A2)`, W2 linear in w: PBLoRA of PARM (Lin et al. 2025), s = alpha / r2.

    A, W1 and the table of W2 start at random, B at 0. `rank` is r1, `preference_rank` r2.
    """

    def build(self, i: int, o: int) -> None:
        """B at 0, the rest at random."""
        r1, r2, k = self.config.rank, self.config.preference_rank, self.config.objectives
        self.A = nn.Parameter(torch.empty(r1 + r2, i))
        self.W1 = nn.Parameter(torch.empty(r1, r1))
        self.W2 = nn.Parameter(torch.empty(k, r2 * r2))
        for table in (self.A, self.W1, self.W2):
            nn.init.kaiming_uniform_(table, a=math.sqrt(5))
        self.B = nn.Parameter(torch.zeros(o, r1 + r2))

    def change(self, x: Tensor, w_BK: Tensor) -> Tensor:
        """The shared part through W1, the conditioned one through W2(w) of its row."""
        r1, r2 = self.config.rank, self.config.preference_rank
        z = x @ self.A.T
        mixed_Brr = (w_BK @ self.W2).view(-1, r2, r2)
        hidden = torch.cat([z[..., :r1] @ self.W1.T, z[..., r1:] @ mixed_Brr.transpose(1, 2)], -1)
        return hidden @ self.B.T * (self.config.alpha / r2)


class DenseLinear(ConditionedLinear):
    """`dW(w) = sum_k w_k D_k + 4 sum_{j<k} w_j w_k D_jk`: full-rank directions, soups of jointly trained specialists.

    Ours. Without the products it is a rewarded soup whose specialists are trained for the inside of the simplex, too.
    """

    def build(self, i: int, o: int) -> None:
        """All directions at 0."""
        k = self.config.objectives
        self.pairs = [(a, b) for a in range(k) for b in range(a + 1, k)]
        self.D = nn.Parameter(torch.zeros(k + len(self.pairs), o, i))

    def features(self, w_BK: Tensor) -> Tensor:
        """(B, J): the weights, and four times the product of each pair of them."""
        products = [4 * w_BK[:, a] * w_BK[:, b] for a, b in self.pairs]
        return torch.cat([w_BK, torch.stack(products, -1)], -1) if products else w_BK

    def change(self, x: Tensor, w_BK: Tensor) -> Tensor:
        """The mixed direction of each row, applied to it."""
        weight_BOI = torch.einsum("bj,joi->boi", self.features(w_BK), self.D)
        return x @ weight_BOI.transpose(1, 2)


LAYERS: dict[str, type[ConditionedLinear]] = {"svd": SVDLinear, "pblora": PBLinear, "dense": DenseLinear}


def attach(model: Any, config: AdapterConfig, *, seed: int = 0) -> Preferences:
    """Freeze `model` and put an adapter on each linear layer but the output; returns what holds the preferences.

    UserError when the model has no linear layer to adapt (GPT-2 keeps its matrices in another class).
    """
    preferences, head = Preferences(), model.get_output_embeddings()
    model.requires_grad_(False)
    children = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    places = [(p, name, child) for p, name, child in children if type(child) is nn.Linear and child is not head]
    if not places:
        raise UserError(f"a {model.config.model_type} model has no linear layer for a conditioned adapter; use a llama")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for parent, name, layer in places:
            setattr(parent, name, LAYERS[config.kind](layer, preferences, config).to(layer.weight.device))
    return preferences


def adapted_layers(model: Any) -> dict[str, ConditionedLinear]:
    """Every adapted layer by the name that its frozen layer had in the plain model."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, ConditionedLinear)}


def save_adapter(model: Any, config: AdapterConfig, folder: Path, *, base: str) -> None:
    """Write the adapters' parameters and their configuration; `base` is the checkpoint that they change."""
    from safetensors.torch import save_file

    from align import checks

    checks.finite_weights(model)
    folder.mkdir(parents=True, exist_ok=True)
    state = {n: p.detach().contiguous().cpu() for n, p in model.named_parameters() if p.requires_grad}
    save_file(state, folder / STATE_FILE, {"format": "pt"})
    write_json(folder / ADAPTER_FILE, {**asdict(config), "base": base})


def load_adapter(folder: str | Path, *, base: str) -> tuple[Any, Preferences]:
    """The adapted model in memory, and its preferences; UserError when the files do not fit together."""
    from safetensors.torch import load_file

    from align.models import load_model

    place = Path(folder)
    if not (place / STATE_FILE).is_file():
        raise UserError(f"{place} holds no conditioned adapter (no {STATE_FILE}); train it again")
    content = json.loads((place / ADAPTER_FILE).read_text(encoding="utf-8"))
    content.pop("base")
    model = load_model(base)
    preferences = attach(model, AdapterConfig(**content))
    state, own = load_file(place / STATE_FILE), {n for n, p in model.named_parameters() if p.requires_grad}
    if set(state) != own:
        raise UserError(f"{place} does not fit {base}: {sorted(set(state) ^ own)[0]} is on one side only")
    model.load_state_dict(state, strict=False)
    return model.eval(), preferences


def merge(folder: str | Path, *, base: str, weights: Sequence[float], out: Path) -> str:
    """The plain checkpoint `W + dW(weights)` in `out`, made unless it is there already from the same adapter."""
    from align.models import load_model, load_tokenizer, save_model

    stamp = (Path(folder) / STATE_FILE).stat()
    record = {"weights": list(weights), "adapter": fingerprint([stamp.st_size, stamp.st_mtime_ns])}
    marker = out / "merged.json"
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == record:
        return str(out)
    adapted, _ = load_adapter(folder, base=base)
    plain = load_model(base)
    layers = dict(plain.named_modules())
    with torch.no_grad():
        for name, layer in adapted_layers(adapted).items():
            layers[name].weight += layer.delta(torch.tensor(list(weights), dtype=layer.base.weight.dtype))
    temporary = out.with_name(f"{out.name}.partial-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        save_model(plain, load_tokenizer(base), temporary)
        write_json(temporary / marker.name, record)
        shutil.rmtree(out, ignore_errors=True)
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return str(out)


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
        content = {
            "kind": "conditioned",
            "method": self.method,
            "adapter": relative_path(Path(self.adapter), folder),
            "base": relative_path(Path(model_dir(self.base)), folder) if Path(self.base).is_dir() else self.base,
            "objectives": self.objectives,
            "preferences": [preference.label for preference in self.preferences],
            "optimises": self.optimises,
            "point_cost": self.point_cost,
        }
        write_json(Path(folder) / FAMILY_FILE, content)

    @classmethod
    def from_json(cls, folder: Path, content: Mapping[str, Any]) -> ConditionedFamily:
        """The family that `save` wrote into `folder`."""
        values = {name: content[name] for name in ("method", "objectives", "point_cost")}
        base = content["base"]
        return cls(
            **values,
            adapter=str(folder / content["adapter"]),
            base=str(folder / base) if (folder / base).is_dir() else base,
            folder=Path(folder),
            preferences=tuple(parse_preference(label) for label in content["preferences"]),
            optimises=dict(content["optimises"]),
        )
