"""Which environment variable's key goes to which host: the usual one to OpenAI, to any other only one that is named."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from align.errors import UserError
from evals.items import Fields

OFFICIAL, USUAL = "api.openai.com", "OPENAI_API_KEY"
AUTO = "auto"  # the usual variable at the official host, no key anywhere else


def host_of(base_url: str) -> str:
    """Host and port: the part of an address that may stand in keys and reports."""
    parts = urlsplit(base_url)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def variable_for(base_url: str, *, named: str | None = AUTO) -> str | None:
    """The name of the variable whose key may be sent to this address, or None: no key is."""
    if named != AUTO:
        return named
    parts = urlsplit(base_url)
    official = parts.scheme == "https" and parts.hostname == OFFICIAL and parts.port in (None, 443)
    return USUAL if official else None


def read_keys(entries: Sequence[str]) -> dict[str, str]:
    """{host: variable} from entries HOST=VARIABLE; UserError for another form, or a host that is named twice."""
    keys: dict[str, str] = {}
    for entry in entries:
        host, equals, variable = entry.partition("=")
        if not equals or not host or "/" in host or not variable.isidentifier():
            raise UserError(
                "--api-key-env takes HOST=VARIABLE, the variable's name and not the key, as localhost:8000=MY_KEY"
            )
        if host in keys:
            raise UserError(f"--api-key-env names the host {host} twice; keep one")
        keys[host] = variable
    return keys


def named_for(base_url: str, keys: Mapping[str, str]) -> str:
    """What to give an endpoint at this address: the variable that the user named for its host, else `AUTO`."""
    return keys.get(host_of(base_url), AUTO)


def unsent(base_url: str, keys: Mapping[str, str], *, environment: Fields = os.environ) -> str | None:
    """A line where the usual key is set and not sent to this address; None where there is nothing to say."""
    if named_for(base_url, keys) != AUTO or variable_for(base_url) is not None or not environment.get(USUAL):
        return None
    host = host_of(base_url)
    return f"{USUAL} is not sent to {host}; if that wants a key, name its variable: --api-key-env {host}=VARIABLE"
