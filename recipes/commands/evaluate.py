"""Evaluation: policy families + held-out prompts + objectives -> cells.jsonl, summary.json and report.html.

align evaluate runs/dpo runs/morlhf --data prompts.jsonl --out runs/evaluation
python -m recipes.commands.evaluate --config recipes/configs/evaluate.yaml --data none=prompts.jsonl
    cipher=ciphered.jsonl
align evaluate MODEL --suite xstest --shift all --data FOLDER      (paired cells: recipes/commands/suites.py)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.policies.best_of_n import BestOfNFamily
from align.preferences import Weights, simplex_grid
from align.runs import RUN_FILE, Ledger, Run, open_run, run_stage, write_json
from recipes.config import option, parse, read_yaml
from recipes.pipeline.inputs import (
    closing_line,
    content_key,
    joined_claims,
    load_objectives,
    named,
    objective_keys,
    section,
    text_rows,
)
from recipes.pipeline.sampling import REFERENCE, Point, Sampling, sample_cells, sampled_summary


@dataclass(frozen=True, kw_only=True)
class Config:
    runs: tuple[str, ...] = option(
        help="runs made by `align finetune`, as RUN or ROW=RUN (the row's name in the tables)"
    )
    data: tuple[str, ...] = option(
        help="held-out prompts, as SOURCE, or SHIFT=SOURCE for each; the shift `none` is home"
    )
    objectives: tuple[str | dict[str, Any], ...] = option(
        (), help="NAME=RUN or NAME=KIND (default: those of the first run)"
    )
    reference: str | None = option(None, help="the reference policy (default: that of the first run)")
    weights: tuple[str, ...] = option((), help="preferences to ask for (default: those a run was trained at, or 5)")
    text: str | None = option(None, help="held-out text for bits per byte before and after fine-tuning")
    headline: str | None = option(
        None, help="the objective whose gap under a shift heads the table (default: the last)"
    )
    out: str = option("runs/evaluation", help="run directory to write")
    title: str = option("Trade-offs on held-out prompts", help="title of the report")
    limit: int | None = option(None, help="read only the first prompts of each source")
    seed: int | None = option(None, help="seed of sampling")
    sampling: dict[str, Any] = option({}, help="keys of sampling.Sampling: samples, max_new_tokens, batch_size")


def resolve(config: Config, *, where: str) -> dict[str, Any]:
    """The sections and preferences of this recipe, checked."""
    return {
        "sampling": section(Sampling, config.sampling, where=where, name="sampling", seed=config.seed),
        "preferences": [Weights.parse(text) for text in config.weights],
    }


def prompts_of(source: str, *, limit: int | None) -> list[dict[str, str]]:
    """Distinct prompts with their base item: the row's `item`, else its id (two shifts pair their rows by it)."""
    from align.data import load_rows

    found: dict[str, dict[str, str]] = {}
    for number, row in enumerate(load_rows(source, columns=("prompt",), limit=limit), start=1):
        if not isinstance(row["prompt"], str) or not row["prompt"].strip():
            raise UserError(f"{source} row {number}: the prompt is empty or not text; mend or delete that row")
        item = str(row.get("item", row.get("id", number)))
        found.setdefault(row["prompt"], {"prompt": row["prompt"], "item": item})
    return list(found.values())


def family_of(source: str) -> Any:
    """The policy family of a run; best-of-n gets the objectives that its run names, for it decodes with them."""
    from align.policies.load import load_family

    family = load_family(source)
    if isinstance(family, BestOfNFamily):
        entries = open_run(source).metrics.get("objectives") if (Path(source) / RUN_FILE).is_file() else None
        family = family.with_objectives(load_objectives(entries) if entries else family.objectives)
    return family


def points_of(rows: Mapping[str, str], *, asked: Sequence[Weights], objectives: int, reference: Any) -> list[Point]:
    """The reference, then every run at the preferences asked for, else at those it was trained at, else at 5."""
    grid = list(asked) or simplex_grid(objectives, 4)
    points = [Point(REFERENCE, grid[0], reference)]
    for row, source in rows.items():
        family = family_of(source)
        for weights in asked or getattr(family, "preferences", None) or grid:
            if not isinstance(weights, Weights):
                raise UserError(f"{source} answers {weights.label}; this table compares rows at weights only")
            points.append(Point(row, weights, family.policy(weights)))
    return points


def bits_of(points: Sequence[Point], *, text: str | None, limit: int | None) -> dict[str, dict[str, Any]]:
    """Per row the reference's bits per byte on `text`, the row's mean over its preferences, and the change."""
    if text is None:
        return {}
    from align.training.bits import bits_per_byte

    texts = [row["text"] for row in text_rows(text, limit=limit)]
    measured: dict[str, list[float]] = {}
    for point in points:
        value = bits_per_byte(point.policy.model, point.policy.tokenizer, texts)
        measured.setdefault(point.row, []).append(value)
        point.policy.release()
    before = measured[REFERENCE][0]
    means = {row: sum(values) / len(values) for row, values in measured.items()}
    return {row: {"before": before, "after": after, "change": after - before} for row, after in means.items()}


def rewards_of(run: Run) -> str:
    """Which rewards trained a family: none (the labels that its pairs came with), learned, rule, or both."""
    from align.objectives import OBJECTIVES

    if run.config["training"].get("labels") == "given":
        return "none"
    sources = [e["kind"] if isinstance(e, dict) else e.partition("=")[2] or e for e in run.metrics["objectives"]]
    rules = {kind for kind in OBJECTIVES if kind not in ("reward_model", "shared_reward_model", "implicit")}
    return " and ".join(sorted({"rule" if source in rules else "learned" for source in sources}))


def info_of(rows: Mapping[str, str], *, bits: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What each row says about itself: what it optimises, its rewards, its alignment tax and what it cost."""
    info: dict[str, dict[str, Any]] = {
        REFERENCE: {"optimises": "likelihood of the demonstrations", "note": "", "rewards": "none", "ledger": None}
    }
    for row, source in rows.items():
        family = family_of(source)
        run = open_run(source) if (Path(source) / RUN_FILE).is_file() else None
        optimises = joined_claims(getattr(family, "optimises", {})) or f"see {family.method}"
        info[row] = {"optimises": optimises, "note": family.domain, "ledger": run and run.ledger}
        info[row]["rewards"] = "unknown" if run is None else rewards_of(run)
        info[row]["samples_per_response"] = getattr(family, "samples_per_response", 1)
    for row in info:
        info[row]["bits_per_byte"] = bits.get(row)
        info[row]["objectives"] = list(names)
    return info


def names_a_suite(argv: Sequence[str] | None) -> bool:
    """Whether the command or its --config file asks for suites: then recipes/commands/suites.py answers."""
    import sys

    words = list(sys.argv[1:] if argv is None else argv)
    files = [b for a, b in pairwise([*words, ""]) if a == "--config"] + [
        a.removeprefix("--config=") for a in words if a.startswith("--config=")
    ]
    if any(word == "--suite" or word.startswith("--suite=") for word in words):
        return True
    return any("suite" in read_yaml(file) for file in files if Path(file).is_file())


def main(argv: Sequence[str] | None = None) -> int:
    if names_a_suite(argv):
        from recipes.commands import suites as evaluate_suites

        return evaluate_suites.main(argv)
    config, where = parse(Config, argv, program="align evaluate", about=__doc__ or "", positional=("runs",))
    settings = resolve(config, where=where)
    rows = {(Path(k).name if k == v else k): v for k, v in named(config.runs, what="run").items()}
    if REFERENCE in rows:
        raise UserError(f"{where}: a run is named {REFERENCE!r}, the reference policy's own row; write ROW=RUN")
    first = next(iter(rows.values()))
    facts = {} if config.objectives and config.reference else open_run(first).metrics
    shifts = {("none" if k == v else k): v for k, v in named(config.data, what="data").items()}
    if "none" not in shifts:
        raise UserError(f"{where}: --data names only shifts; add the prompts in distribution as none=SOURCE")
    entries = config.objectives or tuple(facts.get("objectives") or ())
    objectives = load_objectives(entries)
    reference = config.reference or facts.get("reference")
    if reference is None:
        raise UserError(f"{first} does not say its reference policy; give it with --reference")
    prompts = {shift: prompts_of(source, limit=config.limit) for shift, source in shifts.items()}
    for source in rows.values():
        family_of(source)  # a run of another stage is told now, not after the reference has been sampled

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        return evaluate(
            config, settings, rows=rows, prompts=prompts, objectives=objectives, reference=reference,
            folder=folder, ledger=ledger,
        )  # fmt: skip

    sources = {"reference": reference, "text": config.text, **rows, **{f"shift {k}": v for k, v in shifts.items()}}
    inputs = {name: content_key(source) for name, source in sources.items() if source is not None}
    choices = {"limit": config.limit, "title": config.title, "headline": config.headline, "rows": list(rows)}
    stage = {**settings, **choices}
    run = run_stage(config.out, stage="evaluate", config=stage, body=body, inputs=inputs | objective_keys(entries))
    print(closing_line(run))
    return 0


def evaluate(
    config: Config,
    settings: Mapping[str, Any],
    *,
    rows: Mapping[str, str],
    prompts: Mapping[str, Sequence[Mapping[str, str]]],
    objectives: Mapping[str, Any],
    reference: str,
    folder: Path,
    ledger: Ledger,
) -> dict[str, Any]:
    """Draw and score every cell, then write cells.jsonl, summary.json and report.html into `folder`."""
    from align.policies.base import ModelPolicy
    from evals.measure.front_cells import append_cells
    from evals.report import write_report
    from recipes.pipeline.provenance import ledger_table, provenance

    names = list(objectives)
    base = ModelPolicy(reference, name=REFERENCE)
    points = points_of(rows, asked=settings["preferences"], objectives=len(names), reference=base)
    cost = Ledger()
    with cost.clock():  # the stage's own clock has not stopped when the summary is written
        cells = sample_cells(
            points,
            reference=base,
            prompts=prompts,
            objectives=objectives,
            sampling=settings["sampling"],
            folder=folder / "parts",
            ledger=cost,
        )
    ledger.add(samples_drawn=cost.samples_drawn, scores_read=cost.scores_read)
    (folder / "cells.jsonl").unlink(missing_ok=True)
    append_cells(folder / "cells.jsonl", cells)
    bits = bits_of(points, text=config.text, limit=config.limit)
    summary = sampled_summary(
        cells,
        title=config.title,
        names=names,
        headline=config.headline or names[-1],
        info=info_of(rows, bits=bits, names=names),
        seed=settings["sampling"].seed,
    )
    costs = {row: open_run(source).ledger for row, source in rows.items() if (Path(source) / RUN_FILE).is_file()}
    summary["ledger"] = ledger_table({**costs, "evaluate": dataclasses.asdict(cost)})
    summary["provenance"] = provenance(config, seed=settings["sampling"].seed)
    write_json(folder / "summary.json", summary)
    write_report(folder / "summary.json", folder / "report.html")
    return {"cells": len(cells), "rows": len(rows), "prompts": sum(map(len, prompts.values()))}


if __name__ == "__main__":
    from recipes.cli import script

    script("evaluate")
