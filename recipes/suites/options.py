"""The options of an evaluation on suites, what is wrong with them before any work, and the suites that they choose."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align import checks
from align.errors import UserError
from recipes.config import option

if TYPE_CHECKING:
    from evals.items import Item
    from evals.suites.base import Suite

MEASURES = (
    "completion", "verdict", "comprehension", "choices", "margin", "rewards", "against_reference", "bits",
    "pairs",
)  # fmt: skip
READS_COMPLETIONS = ("verdict", "rewards", "against_reference")
BY_KIND = {  # kind of suite -> what is measured where nothing else is asked for
    "safety": ("completion", "verdict", "comprehension"), "qa": ("completion",), "translation": ("completion",),
    "text": ("bits",), "choice": ("choices",), "classification": ("choices",), "reward_pairs": ("pairs",),
}  # fmt: skip
EXPORTS = {"jsonl": None, "parquet": None, "inspect": "inspect_ai"}  # format -> the package that it needs beside ours
MOST_SAMPLES = 10_000  # of one prompt; every sample is a cell in memory


@dataclass(frozen=True, kw_only=True)
class Options:
    model: str | tuple[str, ...] = option(
        help="a run, a Hugging Face folder or hub id, or a family's run (then add --weights); of several, each is "
        "evaluated into OUT/NAME"
    )
    suite: tuple[str, ...] = option(help="suites by name, or files of rows with prompt and label")
    shift: tuple[str, ...] = option(
        ("none",), help="shifts by name, family names, all, or a file of translations; the plain prompts are added"
    )
    shift_model: str | None = option(
        None, help="what makes the shifts that need a language model: a model, or llm:MODEL[@http://HOST/v1]"
    )
    data: str | None = option(None, help="folder of the suites' files")
    weights: str | None = option(None, help="the preference that a family is asked for")
    out: str = option("runs/suites", help="folder of the cells, the table and the report")
    measure: tuple[str, ...] = option(
        (), help=f"of {', '.join(MEASURES)} (default: what the suite's kind calls for)"
    )
    judge: tuple[str, ...] = option(("rules",), help="judges in turn: the next decides what is left unclear")
    objectives: tuple[str | Mapping[str, object], ...] = option(
        (), help="NAME=RUN or NAME=KIND, for the measurement rewards"
    )
    reference: str | None = option(None, help="the reference model (default for an adapter: the adapter switched off)")
    template: str = option("auto", help="auto (chat template, else HH transcript), chat, hh or plain")
    api: str | None = option(None, help="base URL of an OpenAI-compatible server; MODEL is then the model's name there")
    api_key_env: tuple[str, ...] = option(
        (), help="HOST=VARIABLE: which variable holds a server's key (OPENAI_API_KEY goes to OpenAI's own host only)"
    )
    samples: int = option(1, help="completions per prompt (more than 1 needs a temperature)")
    max_new_tokens: int = option(64, help="tokens of a completion at most")
    temperature: float = option(0.0, help="0 is greedy")
    batch_size: int = option(64, help="prompts per batch; halved when the memory is full")
    limit: int | None = option(None, help="only so many items of each suite, a fixed sample")
    max_missing: float = option(0.05, help="a rate with a larger share of missing cells is refused")
    export: tuple[str, ...] = option((), help="also write cells as jsonl, parquet or inspect")
    title: str = option("Evaluation under shift", help="title of the report")

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model,) if isinstance(self.model, str) else self.model


def check(options: Options, *, where: str) -> None:
    """UserError on what can be known to be wrong before a suite is read or a model is loaded."""
    for name in options.measure:
        if name not in MEASURES:
            raise UserError(f"{where}: no measurement {name!r}; choose from {', '.join(MEASURES)}")
    for name in options.export:
        if name not in EXPORTS:
            raise UserError(f"{where}: cannot export as {name!r}; choose from {', '.join(EXPORTS)}")
        package = EXPORTS[name]
        if package is not None and importlib.util.find_spec(package) is None:
            raise UserError(f"{where}: --export {name} needs the package {package}; install it, or export jsonl")
    checks.at_least(1, options, "samples", "max_new_tokens", "batch_size", "limit", place=f"{where}: ")
    if options.samples > MOST_SAMPLES:
        raise UserError(f"{where}: samples is {options.samples}; at most {MOST_SAMPLES} of a prompt fit")
    if not (math.isfinite(options.temperature) and options.temperature >= 0):
        raise UserError(f"{where}: temperature must be 0 (greedy) or above, not {options.temperature:g}")
    if options.samples > 1 and options.temperature == 0:
        raise UserError(f"{where}: {options.samples} greedy completions are the same; add --temperature 1")
    checks.shares(options, "max_missing", place=f"{where}: ")
    check_keys(options.api_key_env, where=where)
    if "rewards" in options.measure and not options.objectives:
        raise UserError(f"{where}: the measurement rewards needs --objectives NAME=RUN")
    if not options.models:
        raise UserError(f"{where}: no model is given; name a run, a Hugging Face folder or a hub id")
    folders_of(options, where=where)


def check_keys(entries: Sequence[str], *, where: str) -> None:
    """UserError where a named variable is not set. It shows no name: a key may stand in its place."""
    from evals.backends.keys import read_keys

    for host, variable in read_keys(entries).items():
        if not os.environ.get(variable):
            raise UserError(
                f"{where}: --api-key-env {host}=...: no environment variable of that name is set; give a variable's "
                "name, not the key"
            )


def folders_of(options: Options, *, where: str) -> dict[str, Path]:
    """Model -> the folder of its evaluation: OUT for one, OUT/NAME for each of several, whose names must differ."""
    out = Path(options.out)
    if len(options.models) == 1:
        return {options.models[0]: out}
    folders: dict[str, Path] = {}
    for model in options.models:
        folder = out / Path(model).name
        if folder in folders.values():
            raise UserError(f"{where}: two models are called {folder.name!r}; evaluate one of them with another --out")
        folders[model] = folder
    return folders


@dataclass(frozen=True)
class Chosen:
    """One suite with its items, and what is measured of each."""

    suite: Suite
    items: Sequence[Item]
    measures: Sequence[str]


def chosen_suites(options: Options, *, where: str) -> list[Chosen]:
    """The suites, read and checked. UserError where two share a name, one is empty, or a model does not fit one."""
    from evals.backends.reward_model import is_reward_model
    from evals.suites import load_suite

    chosen: dict[str, Chosen] = {}
    for name in options.suite:
        suite, items = load_suite(name, data=options.data, limit=options.limit)
        if suite.name in chosen:
            raise UserError(f"{where}: two suites are called {suite.name!r}; rename one file, or name a suite once")
        if not items:
            raise UserError(f"{where}: suite {suite.name} has no items; nothing would be measured")
        for model in options.models if options.api is None else ():
            if is_reward_model(model) != (suite.kind == "reward_pairs"):
                raise UserError(f"{where}: {_misfit(suite, model)}")
        chosen[suite.name] = Chosen(suite, items, measures_of(options, suite.kind))
    if not chosen:
        raise UserError(f"{where}: no suite is given; name at least one with --suite")
    return list(chosen.values())


def _misfit(suite: Suite, model: str) -> str:
    if suite.kind == "reward_pairs":
        return f"suite {suite.name} compares responses: evaluate a reward model on it, not {model}"
    return f"{model} is a reward model: evaluate it on comparisons, not on suite {suite.name}"


def measures_of(options: Options, kind: str) -> list[str]:
    """The measurements of a suite in an order that serves their needs, defaults by its kind."""
    names = options.measure or BY_KIND.get(kind, ())
    if not names:
        raise UserError(f"a suite of kind {kind} has no measurement here yet; name some with --measure")
    reads = any(name in READS_COMPLETIONS for name in names)
    return [name for name in MEASURES if name in names or (reads and name == "completion")]
