"""Linear layers whose weight change depends on the preference of each row: SVD-LoRA, PBLoRA, dense directions.

Each computes `x W^T + x dW(w)^T` with dW = 0 at the start. Legend: B rows, M distinct preferences of them, K
objectives, I and O features in and out, T tokens, R rank, J directions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from align.errors import UserError


@dataclass(frozen=True)
class AdapterConfig:
    """Which conditioned adapter: `rank` shared directions; for pblora also `preference_rank` conditioned ones.

    `train_all` trains the weights outside the adapted layers too (embeddings, norms, output), alike for every w:
    they then belong to the adapter, and the backbone is no longer what remains when it is turned off.
    """

    kind: str = "svd"
    objectives: int = 2
    rank: int = 8
    preference_rank: int = 4  # pblora only: r2 of Lin et al. 2025
    alpha: float = 16.0  # svd: scale alpha / rank; pblora: scale alpha / preference_rank, as their code has it
    products: bool = True  # dense only: a direction for each product of two weights, besides one for each weight
    train_all: bool = False

    def __post_init__(self) -> None:
        if self.kind not in LAYERS:
            raise UserError(f"adapter kind {self.kind!r} is not one of {', '.join(LAYERS)}")
        if min(self.objectives, self.rank, self.preference_rank) < 1 or not self.alpha > 0:
            raise UserError("an adapter needs objectives, rank and preference_rank of at least 1 and alpha above 0")


class Preferences:
    """The preference of each row that the adapted layers read next; shared by all layers of a model."""

    def __init__(self, objectives: int) -> None:
        self.objectives, self.on = objectives, True
        self.rows_BK: Tensor | None = None
        self.version = 0  # counts the calls of `set`: what layers keep between two passes is theirs until the next
        self._all_BK: Tensor | None = None
        self._groups: tuple[Tensor, Tensor | None] | None = None

    def set(self, rows_BK: Tensor | Sequence[Sequence[float]]) -> None:
        """(B, K) preferences of the rows to come, or (1, K) for all of them; ValueError on another shape."""
        rows_BK = torch.as_tensor(rows_BK, dtype=torch.float32)
        if rows_BK.ndim != 2 or rows_BK.shape[1] != self.objectives or not len(rows_BK):
            raise ValueError(f"preferences of shape {tuple(rows_BK.shape)} for {self.objectives} objectives")
        self._all_BK = rows_BK
        self._read(rows_BK)

    def only(self, model: nn.Module, rows: slice) -> None:
        """Let the next pass read these of the rows that were set: what `SequenceKL(select=...)` asks for."""
        if self._all_BK is None:
            raise RuntimeError("no preference was set for this conditioned model")
        self._read(self._all_BK if len(self._all_BK) == 1 else self._all_BK[rows])

    def _read(self, rows_BK: Tensor) -> None:
        self.rows_BK, self._groups, self.version = rows_BK, None, self.version + 1

    def of(self, x: Tensor) -> Tensor:
        """(B, K) of a batch `x` (B, ..., I); RuntimeError when none was set, or for another number of rows."""
        if self.rows_BK is None:
            raise RuntimeError("no preference was set for this conditioned model")
        if self.rows_BK.shape[0] not in (1, x.shape[0]):
            raise RuntimeError(f"{self.rows_BK.shape[0]} preferences for a batch of {x.shape[0]} rows")
        return self.rows_BK.to(x.device, x.dtype).expand(x.shape[0], -1)

    def groups(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(M, K) preferences such that the rows of `x`, taken in the order (B,) that comes with them, read them in M
        equal runs; None as order where the rows lie so already.
        """
        rows_BK = self.of(x)
        if self._groups is None:
            distinct_MK, which_B, counts_M = torch.unique(rows_BK, dim=0, return_inverse=True, return_counts=True)
            if bool((counts_M == counts_M[0]).all()):
                order_B = None if len(distinct_MK) == 1 else which_B.argsort(stable=True)
                self._groups = distinct_MK, order_B
            else:
                self._groups = rows_BK, None
        return self._groups

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within the block the adapted layers are those of the backbone."""
        self.on = False
        try:
            yield
        finally:
            self.on = True


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
        if not self.preferences.on:
            return self.base(x)
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
    A pass mixes one matrix for each distinct preference in its batch, not for each row.
    """

    def build(self, i: int, o: int) -> None:
        """All directions at 0."""
        k = self.config.objectives
        self.pairs = [(a, b) for a in range(k) for b in range(a + 1, k)] if self.config.products else []
        self.D = nn.Parameter(torch.zeros(k + len(self.pairs), o, i))
        self._kept: tuple[tuple[int, int], Tensor] | None = None

    def features(self, w_BK: Tensor) -> Tensor:
        """(B, J): the weights, and four times the product of each pair of them."""
        products = [4 * w_BK[:, a] * w_BK[:, b] for a, b in self.pairs]
        return torch.cat([w_BK, torch.stack(products, -1)], -1) if products else w_BK

    def mixture(self, w_MK: Tensor) -> Tensor:
        """(M, O, I) dW of each preference."""
        return torch.einsum("mj,joi->moi", self.features(w_MK), self.D)

    def change(self, x: Tensor, w_BK: Tensor) -> Tensor:
        """The mixed direction of each row, applied to it."""
        return x @ self.mixture(w_BK).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """`x (W + dW(w))^T`, one product for the rows of each preference."""
        if not self.preferences.on:
            return self.base(x)
        w_MK, order_B = self.preferences.groups(x)
        weight_MOI = self._weight(w_MK)
        if order_B is not None:
            x = x[order_B]
        rows = x.reshape(len(w_MK), -1, x.shape[-1])
        y = torch.bmm(rows, weight_MOI.transpose(1, 2).to(rows.dtype)).reshape(*x.shape[:-1], -1)
        if order_B is not None:
            y = torch.empty_like(y).index_copy(0, order_B, y)
        return y if self.base.bias is None else y + self.base.bias

    def _weight(self, w_MK: Tensor) -> Tensor:
        """(M, O, I), kept between the passes of one generation, where nothing it depends on can change."""
        if torch.is_grad_enabled():
            self._kept = None
            return self.base.weight + self.mixture(w_MK)
        key = (self.preferences.version, self.D._version)
        if self._kept is None or self._kept[0] != key:
            self._kept = key, self.base.weight + self.mixture(w_MK)
        return self._kept[1]


LAYERS: dict[str, type[ConditionedLinear]] = {"svd": SVDLinear, "pblora": PBLinear, "dense": DenseLinear}
