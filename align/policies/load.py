"""Reading the policy family that a run holds, whatever its kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.policies.base import FAMILY_FILE, PointFamily
from align.policies.best_of_n import BestOfNFamily
from align.policies.conditioned import ConditionedFamily
from align.policies.guided import GuidedFamily
from align.policies.mixed import MixedFamily
from align.policies.soups import SoupFamily
from align.policies.tagged import TaggedFamily

KINDS: dict[str, Any] = {
    "points": PointFamily,
    "soup": SoupFamily,
    "tagged": TaggedFamily,
    "conditioned": ConditionedFamily,
    "mixed": MixedFamily,
    "guided": GuidedFamily,
    "best_of_n": BestOfNFamily,
}


def load_family(path: str | Path) -> Any:
    """Read the policy family of a run; UserError when the folder holds none."""
    folder = Path(path)
    file = folder / FAMILY_FILE
    if not file.is_file():
        raise UserError(f"{folder} holds no policy family (no {FAMILY_FILE}); give a run made by `align finetune`")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return KINDS[content["kind"]].from_json(folder, content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({repr(error)[:200]}); run its `align finetune` again") from error
