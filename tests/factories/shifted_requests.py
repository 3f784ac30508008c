"""A request under a shift: its prompt, its text, and its words put together again."""

from __future__ import annotations

import json
import re
from random import Random

from evals.items import Prompt
from evals.shifts import SHIFTS
from evals.shifts.base import Shift

BREAD = "How do I bake bread at home?"


def prompt(shift: Shift | str, request: str = BREAD, seed: int = 0) -> Prompt:
    found = (SHIFTS[shift] if isinstance(shift, str) else shift).encode(request, Random(seed))
    assert isinstance(found, Prompt)
    return found


def text(shift: Shift | str, request: str = BREAD, seed: int = 0) -> str:
    return prompt(shift, request, seed).turns[-1].content


def rebuilt(shown: str) -> str:
    """The second request with its words put together from the variables."""
    block = shown.split("Response 1:")[1]
    parts = {key: json.loads(value) for key, value in re.findall(r'^(a_\d+) = (".*")$', block, flags=re.M)}
    request = re.search(r"Request 2: (.*)\nResponse 2:$", block, flags=re.S)
    assert request
    return re.sub(r"\[(a_\d+) \+ (a_\d+)\]", lambda m: parts[m[1]] + parts[m[2]], request[1])
