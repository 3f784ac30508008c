"""What every measurement of one policy on suites is asked with: the options of `align suites` that they all have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recipes.commands.suites import Options
from recipes.config import option


@dataclass(frozen=True, kw_only=True)
class Questioned:
    """A policy and the suites that it is asked, without a judge."""

    model: str = option(help="a run, a Hugging Face folder or hub id, or a family's run (then add --weights)")
    suite: tuple[str, ...] = option(help="suites by name, or files of rows with prompt and label")
    data: str | None = option(None, help="folder of the suites' files")
    weights: str | None = option(None, help="the preference that a family is asked for")
    template: str = option("auto", help="auto, chat, hh or plain, as in align suites")
    chat_template_kwargs: Mapping[str, object] | None = option(None, help="JSON for the chat template")
    batch_size: int = option(64, help="prompts per batch; halved when the memory is full")
    limit: int | None = option(None, help="only so many items of each suite, a fixed sample")

    def shared(self, kind: type[Questioned]) -> dict[str, Any]:
        """The options that `kind` has, by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(kind)}


@dataclass(frozen=True, kw_only=True)
class Asked(Questioned):
    reference: str | None = option(None, help="the reference model (default for an adapter: the adapter switched off)")
    judge: tuple[str, ...] = option(("rules",), help="judges in turn: the next decides what is left unclear")
    api_key_env: tuple[str, ...] = option((), help="HOST=VARIABLE: which variable holds a judge's key")
    max_new_tokens: int = option(512, help="tokens of a completion at most")
    max_missing: float = option(0.05, help="a rate with a larger share of missing cells is refused")

    def options(self, *, out: str, title: str) -> Options:
        """The same as options of `align suites`."""
        return Options(**self.shared(Asked), out=out, title=title)
