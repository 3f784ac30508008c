"""The answer in a response: what stands after the reasoning that a model writes before it."""

from __future__ import annotations

import re

_OPEN = re.compile(r"\s*(?:<(?:think|thinking|reasoning|thought)>|\[THINK\])", re.IGNORECASE)
_CLOSE = re.compile(r"(?:</(?:think|thinking|reasoning|thought)>|\[/THINK\])\s*", re.IGNORECASE)


def answer_of(response: str) -> str:
    """The response less a block of reasoning at its beginning; empty where the reasoning never ended.

    A block whose opening mark stood in the prompt ends at its closing mark alone.
    """
    closed = _CLOSE.search(response)
    if closed:
        return response[closed.end() :]
    return "" if _OPEN.match(response) else response
