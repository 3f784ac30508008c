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
from evals.items import Fields, Missing

RETRIED = {408, 409, 425, 429}  # and every 5xx
_TOO_LONG = re.compile(r"(?i)maximum context length|context_length_exceeded|exceeds? the (available )?context")
# OpenAI's and Azure's codes, Alibaba's, and the words of OpenRouter's moderation.
_FILTERED = re.compile(r"(?i)content[_ ](filter|policy|management)|ResponsibleAI|data_inspection|requires moderation")
_QUOTED = re.compile(r"['\"`](\w+)['\"`]")
BROKEN_OFF = ("error", "abort")  # finish reasons of answers that an engine gave up


class Faulty(Exception):
    """A reply that is no answer; becomes Missing(reason, detail)."""

    def __init__(self, reason: str, detail: str, *, lasting: bool = False, retry: bool = False) -> None:
        super().__init__(reason)
        self.failure = Failure(Missing(reason, detail, lasting), retry=retry)

    @classmethod
    def of(cls, failure: Failure) -> Faulty:
        """The exception that means this failure."""
        made = cls(failure.missing.reason, failure.missing.detail)
        made.failure = failure
        return made


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


def completion_text(reply: Any, secret: Secret) -> tuple[str, bool]:
    """(Text, whether it ended by itself) of a chat reply. A refusal in its own field is the answer's text.

    Half of a surrogate pair, an emoji that the token limit cut, is U+FFFD. Faulty: an error that came with status 200,
    "server_error" (broken off), "malformed" (no choice, no text), "content_filter".
    """
    choices = getattr(reply, "choices", None)
    for part in (reply, choices[0] if isinstance(choices, list) and choices else None):
        error = getattr(part, "error", None)
        if error:
            body = error if isinstance(error, dict) else {"message": str(error)}
            raise Faulty.of(_failure(_number(body.get("code")), body, headers={}, secret=secret))
    if not isinstance(choices, list) or not choices:
        raise Faulty("malformed", "the reply has no choices")
    reason = getattr(choices[0], "finish_reason", None)
    if reason == "content_filter":
        raise Faulty("content_filter", "the server's filter withheld the answer")
    if reason in BROKEN_OFF:
        raise Faulty("server_error", f"the server broke the answer off ({reason})", retry=True)
    message = getattr(choices[0], "message", None)
    texts = [getattr(message, "content", None), getattr(message, "refusal", None)]
    text = next((text for text in texts if isinstance(text, str) and text), "" if texts[0] == "" else None)
    if text is None:
        raise Faulty("malformed", "the reply's message has no text")
    text = secret.cut(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
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
        return error.failure
    if isinstance(error, openai.APIStatusError):
        return _failure(int(error.status_code), _body(error), headers=error.response.headers, secret=secret)
    if isinstance(error, openai.APITimeoutError):
        return Failure(Missing("timeout", "the server was silent for too long"), retry=True)
    if isinstance(error, openai.APIConnectionError):
        return Failure(Missing("connection", "no connection to the server"), retry=True)
    if isinstance(error, UnicodeEncodeError):
        return Failure(Missing("unencodable", "the prompt is no valid Unicode (a lone surrogate)", lasting=True))
    unread = (openai.APIResponseValidationError, json.JSONDecodeError, UnicodeDecodeError, RecursionError)
    if isinstance(error, unread) or "integer string conversion" in str(error):  # brackets, digits by the thousands
        return Failure(Missing("malformed", "the reply is not JSON of the protocol"))
    return None


def refused_parameter(error: Any) -> str | None:
    """The parameter that a server does not support, in its own words; None where it says something else."""
    body = _body(error)
    said = f"{body.get('code')} {body.get('message')}"
    if "unsupported" not in said.lower() and "not supported" not in said:
        return None
    named = body.get("param") or next(iter(_QUOTED.findall(said)), None)
    return named if isinstance(named, str) else None


def _body(error: Any) -> Fields:
    return error.body if isinstance(error.body, dict) else {"message": error.body}


def _number(code: object) -> int | None:
    return int(code) if isinstance(code, (int, str)) and str(code).isdecimal() else None


def _failure(status: int | None, body: Fields, *, headers: Any, secret: Secret) -> Failure:
    """What an error means; `status` is None where it came with 200 and has no number of its own."""
    code = str(body.get("code") or "")
    told = next((body[key] for key in ("message", "detail", "error") if body.get(key)), None)
    said = secret.line(told if told is None or isinstance(told, str) else json.dumps(told, default=str)) or ""
    slug = "server_error" if status is None else f"http_{status}"
    if status is not None and 300 <= status < 400:
        return Failure(Missing(slug, "the server sends to another address; name the one that answers"), fatal=True)
    if status in (None, 400, 403, 422) and _FILTERED.search(f"{code} {said} {body.get('innererror')}"):
        return Failure(Missing("content_filter", "the server's filter withheld the answer"))
    if status in (401, 403):  # such messages repeat parts of the key: never quoted
        none = "the server wants a key and none was sent: name its variable (--api-key-env HOST=VARIABLE)"
        said = "the server refuses the key, or this model with it" if secret.reveal() else none
        return Failure(Missing(slug, said), fatal=True)
    if status in (None, 400, 413, 422) and (code == "context_length_exceeded" or _TOO_LONG.search(said)):
        return Failure(Missing("context", "the prompt does not fit in the model's context", lasting=True))
    if status == 429 and code == "insufficient_quota":
        return Failure(Missing(slug, "the account's quota is used up"), fatal=True)
    retry = status is None or status in RETRIED or status >= 500
    wait = asked_wait(headers, now=time.time()) if retry else None
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
