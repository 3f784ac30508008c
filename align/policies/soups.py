"""Weight-space soups: one model `sum_k w_k theta_k` of K specialists, merged in a named way, and the family of them.

Full checkpoints are averaged tensor by tensor. Adapters are merged in one of three ways. exact: the sum of their weight
changes `sum_k w_k s_k B_k A_k`, again an adapter, of the ranks' sum (no base is read). full: each into its base, then
full weights are averaged; the same model up to rounding, as a full checkpoint. factors: A and B are averaged apart,
which published code does (RS, MOD's baseline, P-Soups) and PEFT calls "linear": `s (sum_k w_k B_k)(sum_k w_k A_k)` has
cross terms and is no soup of the weights; here to measure what it loses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.policies.base import ModelPolicy, Policy, relative_path, shared_fields, write_family
from align.policies.merging import ADAPTER_MERGES, average_checkpoints, carry_format, check_mergeable, on_disk
from align.preferences import Preference, Weights
from align.runs import fingerprint
from align.runs.derived import derive

SOUP_FILE = "soup.json"


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
    sources = [on_disk(path) for path in specialists]
    record = {"weights": list(weights), "extrapolated": extrapolated, "sources": _stamp(sources)}
    record["adapter_merge"] = adapter_merge

    def make(folder: Path) -> None:
        kind = check_mergeable(sources, adapter_merge=adapter_merge)
        folder.mkdir(parents=True)
        write = average_checkpoints if kind == "full" else ADAPTER_MERGES[adapter_merge]
        write(sources, weights=weights, out=folder)
        carry_format(sources, folder)

    return derive(Path(out), record=record, file=SOUP_FILE, make=make)


def _stamp(sources: Sequence[Path]) -> str:
    """Fingerprint of the weight files of specialists and their bases: name, size and time of change, but no place.

    (A run may be moved as a whole.)
    """
    configs = [source / "adapter_config.json" for source in sources]
    bases = {json.loads(c.read_text(encoding="utf-8")).get("base_model_name_or_path") for c in configs if c.is_file()}
    folders = [*sources, *(Path(base) for base in sorted(filter(None, bases)))]
    files = [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]
    return fingerprint([[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files])
