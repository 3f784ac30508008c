"""One policy on suites under shifts: every item x shift x measurement as a cell, then tables and a report.

align evaluate MODEL --suite xstest --shift all --data ../shared/data
align evaluate runs/dpo --weights 0.5,0.5 --suite xstest --shift base64 persona --measure completion verdict margin

MODEL is a run, a Hugging Face folder or hub id, or a family's run with --weights; a reward model's run is measured on
suites of comparisons (--suite hh_harmless rm_bench). Cells that are in OUT/cells.jsonl are
not measured again: the same command resumes, and one with more shifts, suites or measurements adds to it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import UserError
from recipes.config import option, parse
from recipes.pipeline.inputs import load_objectives, objective_keys

MEASURES = (
    "completion", "verdict", "comprehension", "choices", "margin", "rewards", "against_reference", "bits",
    "pairs",
)  # fmt: skip
READS_COMPLETIONS = ("verdict", "rewards", "against_reference")


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str = option(help="a run, a Hugging Face folder or hub id, or a family's run (then add --weights)")
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
    objectives: tuple[str | dict[str, Any], ...] = option((), help="NAME=RUN or NAME=KIND, for the measurement rewards")
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


def check(config: Config, *, where: str) -> None:
    """UserError on what can be known to be wrong before a model is loaded."""
    from evals.backends.keys import read_keys

    for name in config.measure:
        if name not in MEASURES:
            raise UserError(f"{where}: no measurement {name!r}; choose from {', '.join(MEASURES)}")
    for name in config.export:
        if name not in ("jsonl", "parquet", "inspect"):
            raise UserError(f"{where}: cannot export as {name!r}; choose from jsonl, parquet, inspect")
    if config.samples < 1 or config.max_new_tokens < 1 or config.batch_size < 1:
        raise UserError(f"{where}: samples, max_new_tokens and batch_size must be at least 1")
    if config.limit is not None and config.limit < 1:
        raise UserError(f"{where}: limit must be at least 1, not {config.limit}")
    if config.samples > 1 and config.temperature <= 0:
        raise UserError(f"{where}: {config.samples} greedy completions are the same; add --temperature 1")
    read_keys(config.api_key_env)
    if not 0 <= config.max_missing < 1:
        raise UserError(f"{where}: max_missing is a share in [0, 1), not {config.max_missing}")
    if "rewards" in config.measure and not config.objectives:
        raise UserError(f"{where}: the measurement rewards needs --objectives NAME=RUN")


def measures_of(config: Config, kind: str) -> list[str]:
    """The measurements of a suite in an order that serves their needs, defaults by its kind."""
    chosen = list(config.measure) or {
        "safety": ["completion", "verdict", "comprehension"], "qa": ["completion"], "translation": ["completion"],
        "text": ["bits"], "choice": ["choices"], "classification": ["choices"],
        "reward_pairs": ["pairs"],
    }.get(kind, [])  # fmt: skip
    if not chosen:
        raise UserError(f"a suite of kind {kind} has no measurement here yet; name some with --measure")
    if any(name in READS_COMPLETIONS for name in chosen):
        chosen = ["completion", *chosen]
    return [name for name in MEASURES if name in chosen]


def backend_for(config: Config) -> Any:
    """The model in memory, or the server's."""
    if config.api is not None:
        from evals.backends.keys import named_for, read_keys
        from evals.backends.openai_api import Endpoint, OpenAIBackend

        endpoint = Endpoint(config.api, named_for(config.api, read_keys(config.api_key_env)))
        return OpenAIBackend(config.model, endpoint=endpoint)
    from evals.backends.policies import backend_of
    from evals.backends.reward_model import RewardBackend, is_reward_model

    if is_reward_model(config.model):
        return RewardBackend.load(config.model, template=config.template, batch_size=config.batch_size)
    return backend_of(config.model, weights=config.weights, template=config.template, batch_size=config.batch_size)


def measurements_for(config: Config, names: Sequence[str], *, backend: Any) -> list[Any]:
    """The measurements by name."""
    from evals.backends.base import Generation
    from evals.measure.measurements import Choices, CompletionOf, Comprehension, RefusalMargin
    from evals.measure.model_measurements import AgainstReference, BitsPerByte
    from evals.measure.pair_scores import PairScores

    generation = Generation(config.max_new_tokens, config.temperature)
    makers = {
        "completion": lambda: CompletionOf(generation),
        "verdict": lambda: _verdict(config),
        "comprehension": lambda: Comprehension(generation),
        "choices": Choices,
        "margin": RefusalMargin,
        "rewards": lambda: _rewards(config, backend),
        "against_reference": lambda: AgainstReference(_reference(config, backend)),
        "bits": BitsPerByte,
        "pairs": PairScores,
    }
    return [makers[name]() for name in names]


def _verdict(config: Config) -> Any:
    from evals.backends.keys import read_keys
    from evals.judges import make_judge
    from evals.measure.verdict import Verdict

    return Verdict(make_judge(config.judge, keys=read_keys(config.api_key_env)))


def _rewards(config: Config, backend: Any) -> Any:
    from evals.measure.model_measurements import Rewards

    keys = {k.removeprefix("objective "): v for k, v in objective_keys(config.objectives).items()}
    return Rewards(load_objectives(config.objectives), keys, backend.renderer)


def _reference(config: Config, backend: Any) -> Any:
    from evals.backends.transformers import TransformersBackend

    if config.reference is None:
        if not isinstance(backend, TransformersBackend):
            raise UserError("against_reference needs --reference MODEL")
        return backend.reference()
    return TransformersBackend.load(config.reference, template=config.template, batch_size=config.batch_size)


def measure(config: Config, *, backend: Any, out: Path) -> dict[str, Any]:
    """Suite -> its evaluated cells, every value of them in the store below `out`."""
    from evals.measure.cells import Evaluated, ask
    from evals.measure.engine import Engine, to_stderr
    from evals.measure.store import locked
    from evals.suites import load_suite
    from evals.tables.export import export_file
    from recipes.suites.shifts import shifts_of

    results = {}
    with locked(out / "cells.jsonl") as store:
        shifts = shifts_of(config, out=out)
        engine = Engine(backend, store=store, batch=config.batch_size, progress=to_stderr)
        for name in config.suite:
            suite, items = load_suite(name, data=config.data, limit=config.limit)
            check_fits(suite, backend=backend)
            for kind in config.export:
                export_file(out, suite=suite.name, kind=kind)  # a name that cannot be written to is refused now
            cells = ask(items, suite=suite.name, shifts=shifts, samples=config.samples)
            wanted = measurements_for(config, measures_of(config, suite.kind), backend=backend)
            results[suite.name] = Evaluated(suite, engine.run(cells, measurements=wanted))
    return results


def check_fits(suite: Any, *, backend: Any) -> None:
    """UserError for a policy on comparisons, or a reward model on anything else."""
    from evals.backends.reward_model import RewardBackend

    scores = isinstance(backend, RewardBackend)
    if suite.kind == "reward_pairs" and not scores:
        raise UserError(f"suite {suite.name} compares responses: evaluate a reward model on it, not {backend.name}")
    if suite.kind != "reward_pairs" and scores:
        raise UserError(f"{backend.name} is a reward model: evaluate it on comparisons, not on suite {suite.name}")


def tell_unsent_keys(config: Config) -> None:
    """A line on stderr for each server that OPENAI_API_KEY is not sent to although it is set."""
    import sys

    from evals.backends.keys import read_keys, unsent

    specs = [*config.judge, *([config.shift_model] if config.shift_model else [])]
    addresses = [f"http{s.partition('@http')[2]}" for s in specs if s.startswith("llm:") and "@http" in s]
    for address in dict.fromkeys([*([config.api] if config.api else []), *addresses]):
        line = unsent(address, read_keys(config.api_key_env))
        if line is not None:
            print(f"align: note: {line}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align suites", about=__doc__ or "", positional=("model",))
    check(config, where=where)
    tell_unsent_keys(config)
    from align.runs import write_json
    from evals.tables.suite_outcomes import write_outcomes
    from recipes.pipeline.provenance import command_line, provenance, publish
    from recipes.suites.summary import summary_of, table_of

    out, start = Path(config.out), time.monotonic()
    backend = backend_for(config)
    results = measure(config, backend=backend, out=out)
    table = table_of(results, backend=backend, max_missing=config.max_missing)
    write_json(out / "table.json", table)
    facts = provenance(config, seed=0)
    write_json(out / "provenance.json", facts)
    write_outcomes(results, out / "outcomes.jsonl")
    _export(config, results, backend=backend, out=out)
    cells = sum(len(result.cells) * len(result.measurements) for result in results.values())
    seconds = time.monotonic() - start
    summary = summary_of(table, results, config=config, facts=facts, command=command_line("align evaluate", argv))
    publish(summary, out=out, words=f"{backend.name}: {cells} cells, {seconds:.0f} s, table {table['hash']}")
    return 0


def _export(config: Config, results: Mapping[str, Any], *, backend: Any, out: Path) -> None:
    from evals.tables.export import export_file, full_rows, write_rows

    for kind in config.export:
        for name, result in results.items():
            rows = full_rows(result.cells, model=backend.name, fingerprint=backend.fingerprint)
            file = export_file(out, suite=name, kind=kind)
            if kind == "inspect":
                from evals.bridges.inspect_export import write_inspect_log

                write_inspect_log(rows, file)
            else:
                write_rows(rows, file)
