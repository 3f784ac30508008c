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
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.config import parse
from recipes.suites.options import Chosen, Options, check, chosen_suites, folders_of

if TYPE_CHECKING:
    from evals.backends.base import Backend
    from evals.backends.reward_model import RewardBackend
    from evals.measure.cells import Evaluated


def measure(
    suites: Sequence[Chosen], *, options: Options, backend: Backend | RewardBackend, out: Path
) -> dict[str, Evaluated]:
    """Suite -> its evaluated cells, every value of them in the store below `out`."""
    from evals.measure.cells import Evaluated, ask
    from evals.measure.engine import Engine, to_stderr
    from evals.measure.store import locked
    from evals.tables.export import export_file
    from recipes.suites.making import measurements_for
    from recipes.suites.shifts import shifts_of

    for kind in options.export:
        for one in suites:
            export_file(out, suite=one.suite.name, kind=kind)  # a name that cannot be written to is refused now
    names = [name for one in suites for name in one.measures]
    measurements = measurements_for(names, options=options, backend=backend)
    results = {}
    with locked(out / "cells.jsonl") as store:
        shifts = shifts_of(options, out=out)
        engine = Engine(backend, store=store, batch=options.batch_size, progress=to_stderr)
        for one in suites:
            cells = ask(one.items, suite=one.suite.name, shifts=shifts, samples=options.samples)
            answered = engine.run(cells, measurements=[measurements[name] for name in one.measures])
            results[one.suite.name] = Evaluated(one.suite, answered)
    return results


def evaluate(model: str, suites: Sequence[Chosen], *, options: Options, out: Path, command: str) -> None:
    """Measure one model, and write its cells, table, outcomes, exports, summary and report."""
    from align.runs import write_json
    from evals.tables.suite_outcomes import write_outcomes
    from recipes.pipeline.provenance import provenance, publish
    from recipes.suites.making import backend_for
    from recipes.suites.summary import summary_of, table_of

    start, options = time.monotonic(), dataclasses.replace(options, model=model, out=str(out))
    backend = backend_for(model, options)
    results = measure(suites, options=options, backend=backend, out=out)
    table = table_of(results, backend=backend, max_missing=options.max_missing)
    write_json(out / "table.json", table)
    facts = provenance(options, seed=0)
    write_json(out / "provenance.json", facts)
    write_outcomes(results, out / "outcomes.jsonl")
    for kind in options.export:
        export(results, kind=kind, backend=backend, out=out)
    cells = sum(len(result.cells) * len(result.measurements) for result in results.values())
    summary = summary_of(table, results, options=options, facts=facts, command=command)
    seconds = time.monotonic() - start
    publish(summary, out=out, words=f"{backend.name}: {cells} cells, {seconds:.0f} s, table {table['hash']}")


def export(results: dict[str, Evaluated], *, kind: str, backend: Backend | RewardBackend, out: Path) -> None:
    """The cells of each suite in another format, a file a suite."""
    from evals.tables.export import export_file, full_rows, write_rows

    for name, result in results.items():
        rows = full_rows(result.cells, model=backend.name, fingerprint=backend.fingerprint)
        file = export_file(out, suite=name, kind=kind)
        if kind == "inspect":
            from evals.bridges.inspect_export import write_inspect_log

            write_inspect_log(rows, file)
        else:
            write_rows(rows, file)


def main(argv: Sequence[str] | None = None) -> int:
    options, where = parse(Options, argv, program="align suites", about=__doc__ or "", positional=("model",))
    check(options, where=where)
    from recipes.pipeline.provenance import command_line
    from recipes.suites.making import note_unsent_keys
    from recipes.suites.shifts import check_shifts

    note_unsent_keys(options)
    check_shifts(options)
    suites = chosen_suites(options, where=where)
    for model, out in folders_of(options, where=where).items():
        evaluate(model, suites, options=options, out=out, command=command_line("align suites", argv))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("suites")
