"""Policies on suites under shifts: every item x shift x measurement as a cell, then tables and a report.

align suites MODEL --suite xstest --shift all --data ../shared/data
align suites runs/dpo --weights 0.5,0.5 --suite xstest --shift base64 persona --measure completion verdict margin

MODEL is a run, a Hugging Face folder or hub id, or a family's run with --weights; a reward model's run is measured on
suites of comparisons (--suite hh_harmless rm_bench). Several models are evaluated in turn, each into OUT/NAME. Cells
that are in OUT/cells.jsonl are not measured again: the same command resumes, and one with more shifts, suites or
measurements adds to it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align import checks
from align.errors import UserError
from align.models.formats import Choice
from evals.backends.keys import named_for, read_keys, unsent
from evals.judges import read_options
from evals.measure.by_name import MEASURES, Reads, measurements_for
from recipes.config import option, parse
from recipes.pipeline.numbers import EVALUATION
from recipes.pipeline.objectives import answers_beside, load_objectives, objective_keys

if TYPE_CHECKING:
    from evals.backends.base import Backend
    from evals.backends.reward_model import RewardBackend
    from evals.measure.cells import Evaluated
    from evals.measure.evaluation import Chosen
    from evals.shifts.base import Shift

EXPORTS = {"jsonl": None, "parquet": None, "inspect": "inspect_ai"}  # format -> the package that it needs beside ours
MOST_SAMPLES, MOST_TOKENS = 10_000, 1_000_000  # of one prompt; every sample is a cell in memory


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
    measure: tuple[str, ...] = option((), help=f"of {', '.join(MEASURES)} (default: what the suite's kind calls for)")
    judge: tuple[str, ...] = option(("rules",), help="judges in turn: the next decides what is left unclear")
    judge_option: tuple[str, ...] = option(
        (), help="KEY=VALUE for judges that generate: max_tokens=4096, structured=true, any parameter of an API"
    )
    objectives: tuple[str | Mapping[str, object], ...] = option(
        (), help="NAME=RUN or NAME=KIND, for the measurement rewards"
    )
    reference: str | None = option(None, help="the reference model (default for an adapter: the adapter switched off)")
    template: str = option(
        "auto", help="auto (what it was trained with, else chat template, else HH transcript), chat, hh or plain"
    )
    chat_template_kwargs: Mapping[str, object] | None = option(
        None, help='JSON for the chat template, such as {"enable_thinking": false} or {"date": "2025-01-31"}'
    )
    api: str | None = option(None, help="base URL of an OpenAI-compatible server; MODEL is then the model's name there")
    api_key_env: tuple[str, ...] = option(
        (), help="HOST=VARIABLE: which variable holds a server's key (OPENAI_API_KEY goes to OpenAI's own host only)"
    )
    samples: int = option(1, help="completions per prompt (more than 1 needs a temperature)")
    max_new_tokens: int = option(512, help="tokens of a completion at most")
    stop: tuple[str, ...] = option((), help=r"words at which a completion ends, as $'\n\nHuman:' for a base model")
    temperature: float = option(0.0, help="0 is greedy")
    batch_size: int = option(64, help="prompts per batch; halved when the memory is full")
    limit: int | None = option(None, help="only so many items of each suite, a fixed sample")
    max_missing: float = option(0.05, help="a rate with a larger share of missing cells is refused")
    export: tuple[str, ...] = option((), help="also write cells as jsonl, parquet or inspect")
    title: str = option("Evaluation under shift", help="title of the report")

    @property
    def format(self) -> Choice:
        """The prompt format that is asked for."""
        return Choice(self.template, self.chat_template_kwargs or {})

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
    checks.at_most(MOST_SAMPLES, options, "samples", place=f"{where}: ")
    checks.at_most(MOST_TOKENS, options, "max_new_tokens", place=f"{where}: ")
    if not (math.isfinite(options.temperature) and options.temperature >= 0):
        raise UserError(f"{where}: temperature must be 0 (greedy) or above, not {options.temperature:g}")
    if options.samples > 1 and options.temperature == 0:
        raise UserError(f"{where}: {options.samples} greedy completions are the same; add --temperature 1")
    checks.shares(options, "max_missing", place=f"{where}: ")
    check_keys(options.api_key_env, where=where)
    read_options(options.judge_option)
    Choice(options.template)  # an unknown one is refused
    if "rewards" in options.measure and not options.objectives:
        raise UserError(f"{where}: the measurement rewards needs --objectives NAME=RUN")
    if not options.models:
        raise UserError(f"{where}: no model is given; name a run, a Hugging Face folder or a hub id")
    for out in folders_of(options, where=where).values():
        check_folder(out)


def check_folder(out: Path) -> None:
    """UserError for a folder that holds a file of a name that this command writes, but no store of its cells."""
    if not any((out / name).exists() for name in ("cells.jsonl", "cells.jsonl.lock")):
        for name in EVALUATION:
            if os.path.lexists(out / name):
                raise UserError(f"{out} holds {name}, which no evaluation of suites wrote there; give another --out")


def check_keys(entries: Sequence[str], *, where: str) -> None:
    """UserError where a named variable is not set. It shows no name: a key may stand in its place."""
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


def suites_of(options: Options, *, where: str) -> list[Chosen]:
    """The suites, read and checked; UserError for a policy on comparisons, or a reward model on anything else."""
    from evals.backends.reward_model import is_reward_model
    from evals.measure.evaluation import chosen_suites

    suites = chosen_suites(options.suite, data=options.data, limit=options.limit, measures=options.measure)
    for model in options.models if options.api is None else ():
        scores = is_reward_model(model)
        for suite in (one.suite for one in suites):
            if suite.kind.of_pairs and not scores:
                raise UserError(
                    f"{where}: suite {suite.name} compares responses: evaluate a reward model on it, not {model}"
                )
            if not suite.kind.of_pairs and scores:
                raise UserError(
                    f"{where}: {model} is a reward model: evaluate it on comparisons, not on suite {suite.name}"
                )
    return suites


def note_unsent_keys(options: Options) -> None:
    """A line on stderr for each server that OPENAI_API_KEY is not sent to although it is set."""
    specs = [*options.judge, *([options.shift_model] if options.shift_model else [])]
    addresses = [f"http{s.partition('@http')[2]}" for s in specs if s.startswith("llm:") and "@http" in s]
    for address in dict.fromkeys([*([options.api] if options.api else []), *addresses]):
        line = unsent(address, read_keys(options.api_key_env))
        if line is not None:
            print(f"align: note: {line}", file=sys.stderr)


def backend_for(model: str, options: Options) -> Backend | RewardBackend:
    """The model in memory, or the server's."""
    if options.api is not None:
        from evals.backends.openai_api import Endpoint, OpenAIBackend

        key = named_for(options.api, read_keys(options.api_key_env))
        return OpenAIBackend(model, endpoint=Endpoint(options.api, key))
    from evals.backends.policies import backend_of
    from evals.backends.reward_model import RewardBackend, is_reward_model

    if is_reward_model(model):
        return RewardBackend.load(model, template=options.format, batch_size=options.batch_size)
    return backend_of(model, weights=options.weights, template=options.format, batch_size=options.batch_size)


def reads_of(options: Options) -> Reads:
    """What the measurements are made with; the objectives are loaded here."""
    from evals.backends.base import Generation

    keys = {k.removeprefix("objective "): v for k, v in objective_keys(options.objectives).items()}
    return Reads(
        generation=Generation(options.max_new_tokens, options.temperature, options.stop), judge=options.judge,
        keys=read_keys(options.api_key_env), judge_options=read_options(options.judge_option),
        objectives=load_objectives(options.objectives, folder=answers_beside(options.out)) if keys else {},
        objective_keys=keys, reference=options.reference, template=options.format, batch_size=options.batch_size,
    )  # fmt: skip


def measure(
    suites: Sequence[Chosen], *, options: Options, backend: Backend | RewardBackend, out: Path,
    shifts: Sequence[Shift] = (),
) -> dict[str, Evaluated]:  # fmt: skip
    """Suite -> its evaluated cells, every value of them in the store below `out`; `shifts`: beside those named."""
    from evals.measure.engine import Engine, to_stderr
    from evals.measure.evaluation import Session, evaluated
    from evals.measure.store import locked
    from evals.shifts.requested import requested_shifts
    from evals.tables.export import export_file

    for kind in options.export:
        for one in suites:
            export_file(out, suite=one.suite.name, kind=kind)  # a name that cannot be written to is refused now
    keys, names = read_keys(options.api_key_env), [name for one in suites for name in one.measures]
    measurements = measurements_for(names, reads=reads_of(options), backend=backend)
    with locked(out / "cells.jsonl") as store:
        named = requested_shifts(options.shift, model=options.shift_model, keys=keys, answers=out / "shifts.jsonl")
        engine = Engine(backend, store=store, batch=options.batch_size, progress=to_stderr)
        return evaluated(suites, session=Session(engine, [*named, *shifts], options.samples, measurements))


def template_of(backend: Backend | RewardBackend) -> dict[str, object]:
    """The template of a model in memory with its arguments; a server's is its own."""
    renderer = getattr(backend, "renderer", None)
    if renderer is None:
        return {"template": "the server's"}
    return {"template": renderer.template, "chat_template_kwargs": dict(renderer.choice.chat_kwargs)}


def evaluate(
    model: str, suites: Sequence[Chosen], *, options: Options, out: Path, command: str, shifts: Sequence[Shift] = (),
    backend: Backend | RewardBackend | None = None,
) -> dict[str, Evaluated]:  # fmt: skip
    """Measure one model, and write its cells, table, outcomes, exports, summary and report; returns the cells.

    `shifts` are asked beside those that the options name; `backend` is the model where it is loaded already.
    """
    from align.runs import write_json
    from evals.report.suite_summary import summary_of
    from evals.tables.export import export_cells
    from evals.tables.suite_outcomes import write_outcomes
    from evals.tables.suite_tables import table_of
    from recipes.pipeline.provenance import provenance, publish

    start, options = time.monotonic(), dataclasses.replace(options, model=model, out=str(out))
    backend = backend or backend_for(model, options)
    results = measure(suites, options=options, backend=backend, out=out, shifts=shifts)
    table = table_of(results, backend=backend, max_missing=options.max_missing)
    write_json(out / "table.json", table)
    facts = provenance(options, seed=0)
    write_json(out / "provenance.json", facts)
    write_outcomes(results, out / "outcomes.jsonl")
    for kind in options.export:
        export_cells(results, kind=kind, backend=backend, out=out)
    cells = sum(len(result.cells) * len(result.measurements) for result in results.values())
    summary = summary_of(
        table, results, title=options.title, judge=options.judge, max_missing=options.max_missing
    ) | {"command": command, "provenance": facts}  # fmt: skip
    summary["how"]["template"] = template_of(backend)
    seconds = time.monotonic() - start
    publish(summary, out=out, words=f"{backend.name}: {cells} cells, {seconds:.0f} s, table {table['hash']}")
    return results


def main(argv: Sequence[str] | None = None) -> int:
    options, where = parse(Options, argv, program="align suites", about=__doc__ or "", positional=("model",))
    check(options, where=where)
    from evals.shifts.requested import check_shifts, promises
    from recipes.pipeline.provenance import command_line

    note_unsent_keys(options)
    check_shifts(options.shift, model=options.shift_model)
    for line in promises(options.shift):
        print(f"align: note: {line}", file=sys.stderr)
    suites = suites_of(options, where=where)
    for model, out in folders_of(options, where=where).items():
        evaluate(model, suites, options=options, out=out, command=command_line("align suites", argv))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("suites")
