"""What an API sent back, read strictly: texts and log-probabilities of replies, meanings of errors, keys cut out."""

from __future__ import annotations

import json
import math
import re
import time
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import Any
from urllib.parse import quote

from evals.backends.retries import Failure
from evals.items import Missing

RETRIED = {408, 409, 425, 429}  # and every 5xx
_TOO_LONG = re.compile(r"(?i)maximum context length|context_length_exceeded|exceeds? the (available )?context")


class Faulty(Exception):
    """A reply that is no answer; becomes Missing(reason, detail)."""

    def __init__(self, reason: str, detail: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.missing = Missing(reason, detail, lasting)


class Secret:
    """An API key that does not show: not in repr, pickle or format; `cut` removes it from a text."""

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self) -> Any:
        raise TypeError("an API key is not pickled")

    def reveal(self) -> str:
        """The key, for the client alone."""
        return self._value

    def cut(self, text: str) -> str:
        """The text without the key, plain or quoted for an address."""
        if not self._value:
            return text
        return text.replace(self._value, "[key]").replace(quote(self._value, safe=""), "[key]")

    def line(self, text: object, *, limit: int = 200) -> str | None:
        """A short single line without the key; None for what is no text."""
        return " ".join(self.cut(text).split())[:limit] if isinstance(text, str) else None


def completion_text(reply: Any) -> tuple[str, bool]:
    """(Text, whether it ended by itself) of a chat reply. A refusal in its own field is the answer's text.

    Faulty: "malformed" (no choice, no text), "content_filter" (the server withheld it).
    """
    choices = getattr(reply, "choices", None)
    if not isinstance(choices, list) or not choices:
        raise Faulty("malformed", "the reply has no choices")
    reason = getattr(choices[0], "finish_reason", None)
    if reason == "content_filter":
        raise Faulty("content_filter", "the server's filter withheld the answer")
    message = getattr(choices[0], "message", None)
    texts = [getattr(message, "content", None), getattr(message, "refusal", None)]
    text = next((text for text in texts if isinstance(text, str) and text), "" if texts[0] == "" else None)
    if text is None:
        raise Faulty("malformed", "the reply's message has no text")
    return text, reason != "length"


def echoed_logprobs(reply: Any, *, text: str, continuation: str) -> tuple[float, int]:
    """(Sum in nats, tokens) of the continuation in a legacy completions reply that echoes `text + continuation`."""
    choices = getattr(reply, "choices", None)
    logprobs = getattr(choices[0], "logprobs", None) if isinstance(choices, list) and choices else None
    offsets, values = getattr(logprobs, "text_offset", None), getattr(logprobs, "token_logprobs", None)
    tokens = getattr(logprobs, "tokens", None)
    whole = text + continuation
    if not isinstance(offsets, list) or not isinstance(values, list) or not isinstance(tokens, list):
        raise Faulty("malformed", "the reply has no log-probabilities of tokens")
    if not len(offsets) == len(values) == len(tokens) or not str(getattr(choices[0], "text", "")).startswith(whole):  # type: ignore[index]
        raise Faulty("malformed", "the reply does not echo the prompt token by token")
    inside = [i for i, offset in enumerate(offsets) if len(text) <= offset < len(whole)]
    if not inside or offsets[inside[0]] != len(text):
        raise Faulty("token_boundary", "a token spans the end of the prompt", lasting=True)
    chosen = [values[i] for i in inside]
    if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in chosen):
        raise Faulty("malformed", "a token of the continuation has no log-probability")
    return float(sum(chosen)), len(chosen)


def meaning(error: Exception, openai: ModuleType, secret: Secret) -> Failure | None:
    """What an exception of the client means for this request and for the batch; None for a bug, which is raised."""
    if isinstance(error, Faulty):
        return Failure(error.missing)
    if isinstance(error, openai.APIStatusError):
        return _of_status(error, secret)
    if isinstance(error, openai.APITimeoutError):
        return Failure(Missing("timeout", "the server was silent for too long"), retry=True)
    if isinstance(error, openai.APIConnectionError):
        return Failure(Missing("connection", "no connection to the server"), retry=True)
    if isinstance(error, UnicodeEncodeError):
        return Failure(Missing("unencodable", "the prompt is no valid Unicode (a lone surrogate)", lasting=True))
    if isinstance(error, (openai.APIResponseValidationError, json.JSONDecodeError, UnicodeDecodeError)):
        return Failure(Missing("malformed", "the reply is not JSON of the protocol"))
    return None


def _of_status(error: Any, secret: Secret) -> Failure:
    status, code = int(error.status_code), str(getattr(error, "code", None) or "")
    body = error.body if isinstance(error.body, dict) else {}
    said = secret.line(body.get("message")) or ""
    slug = f"http_{status}"
    if status in (401, 403):  # such messages repeat parts of the key: never quoted
        none = "the server wants a key and none was sent: name its variable (--api-key-env HOST=VARIABLE)"
        said = "the server refuses the key, or this model with it" if secret.reveal() else none
        return Failure(Missing(slug, said), fatal=True)
    if status in (400, 413, 422) and (code == "context_length_exceeded" or _TOO_LONG.search(said)):
        return Failure(Missing("context", "the prompt does not fit in the model's context", lasting=True))
    if status == 429 and code == "insufficient_quota":
        return Failure(Missing(slug, "the account's quota is used up"), fatal=True)
    retry = status in RETRIED or status >= 500
    wait = asked_wait(error.response.headers, now=time.time()) if retry else None
    return Failure(Missing(slug, said), retry=retry, wait=wait)


def asked_wait(headers: Any, *, now: float) -> float | None:
    """Seconds that `retry-after-ms` or `Retry-After` (seconds or a date) asks for; None where neither can be read."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name)) / unit
        except (TypeError, ValueError):
            continue
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after")).timestamp() - now)
    except (TypeError, ValueError):
        return None
