"""Policy families on held-out prompts: sampled trade-offs of every family, with objectives and shifts -> a report.

align evaluate runs/dpo runs/morlhf --data prompts.jsonl --out runs/evaluation
align evaluate --config recipes/configs/evaluate.yaml --data none=prompts.jsonl cipher=ciphered.jsonl
align evaluate runs/dpo --data none=prompts.jsonl cipher=ciphered.jsonl --parts 64     # why the drop: its four parts

Policies on suites are `align suites`.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from align.data.sources import prompt_rows, text_rows
from align.errors import UserError
from align.preferences import Weights, simplex_grid
from align.runs import RUN_FILE, Ledger, Metrics, Run, open_run, read_json, run_stage, write_json
from evals.measure.sampling import REFERENCE, Point, Sampling, sample_answers
from recipes.config import option, parse, read_yaml, section_field, with_flags
from recipes.pipeline.inputs import closing_line, content_key, joined_claims, named
from recipes.pipeline.objectives import answers_beside, is_learned, load_objectives, objective_keys, with_columns
from recipes.pipeline.sampled import sampled_summary

if TYPE_CHECKING:
    from align.objectives import Objective
    from align.policies.base import ModelPolicy, PolicyFamily


@dataclass(frozen=True, kw_only=True)
class Config:
    runs: tuple[str, ...] = option(
        help="runs made by `align finetune`, as RUN or ROW=RUN (the row's name in the tables)"
    )
    data: tuple[str, ...] = option(
        help="held-out prompts, as SOURCE, or SHIFT=SOURCE for each; the shift `none` is home"
    )
    objectives: tuple[str | Mapping[str, object], ...] = option(
        (), help="NAME=RUN or NAME=KIND (default: those of the first run)"
    )
    reference: str | None = option(None, help="the reference policy (default: that of the first run)")
    weights: tuple[str, ...] = option((), help="preferences to ask for (default: those a run was trained at, or 5)")
    text: str | None = option(None, help="held-out text for bits per byte before and after fine-tuning")
    headline: str | None = option(
        None, help="the objective whose gap under a shift heads the table (default: the last)"
    )
    parts: int | None = option(None, help="responses a prompt and source for the four parts of every drop")
    control: tuple[str, ...] = option((), help="SHIFT=CONTROL among --data, for --parts (default: a known shift's own)")
    beta: float | None = option(None, help="price of KL in --parts (default: the one that each run was trained at)")
    out: str = option("runs/evaluation", help="run directory to write")
    title: str = option("Trade-offs on held-out prompts", help="title of the report")
    limit: int | None = option(None, help="read only the first prompts of each source")
    seed: int | None = option(None, help="seed of sampling")
    sampling: Sampling = section_field(
        "evals.measure.sampling:Sampling", help="keys of sampling.Sampling: samples, max_new_tokens, batch_size"
    )


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is measured: runs by row, prompts (with their base item) by shift, what scores them, the preferences."""

    rows: Mapping[str, str]
    prompts: Mapping[str, Sequence[Mapping[str, str]]]
    objectives: Mapping[str, Objective]
    reference: str
    preferences: Sequence[Weights]


def question_of(config: Config, *, where: str) -> tuple[Question, dict[str, str]]:
    """The question that a config asks, everything in it read and checked, and the fingerprints of its inputs."""
    preferences = [Weights.parse(text) for text in config.weights]
    rows = rows_of(config.runs, where=where)
    first = next(iter(rows.values()), None)
    if first is None:
        raise UserError(f"{where}: no run is given; name at least one that align finetune made")
    facts: Mapping[str, object] = {} if config.objectives and config.reference else open_run(first).metrics
    shifts = {("none" if k == v else k): v for k, v in named(config.data, what="data").items()}
    if len(shifts) < len(config.data):
        raise UserError(f"{where}: --data names two sources of prompts in distribution; write SHIFT=SOURCE for one")
    if "none" not in shifts:
        raise UserError(f"{where}: --data names only shifts; add the prompts in distribution as none=SOURCE")
    entries = config.objectives or entries_of(facts, run=first)
    objectives = load_objectives(entries, folder=answers_beside(config.out))
    if config.headline is not None and config.headline not in objectives:
        raise UserError(f"{where}: headline {config.headline!r} is no objective; choose from {', '.join(objectives)}")
    reference = config.reference or facts.get("reference")
    if not isinstance(reference, str):
        raise UserError(f"{first} does not name its reference policy; give it with --reference")
    prompts = {shift: prompts_of(source, limit=config.limit) for shift, source in shifts.items()}
    objectives = with_columns(objectives, sources=shifts, limit=config.limit)
    for source in rows.values():
        family_of(source)  # a run of another stage is refused now, not after the reference has been sampled
    sources = {"reference": reference, "text": config.text, **rows, **{f"shift {k}": v for k, v in shifts.items()}}
    inputs = {name: content_key(source) for name, source in sources.items() if source is not None}
    asked = Question(
        rows=rows, prompts=prompts, objectives=objectives, reference=reference, preferences=preferences
    )  # fmt: skip
    return asked, inputs | objective_keys(entries)


def rows_of(runs: Sequence[str], *, where: str) -> dict[str, str]:
    """Row -> run; UserError where two rows would share a name, or one takes the reference's."""
    rows: dict[str, str] = {}
    for name, source in named(runs, what="run").items():
        row = Path(name).name if name == source else name
        if row in rows:
            raise UserError(f"{where}: two runs are called {row!r}; write ROW=RUN to give each a name of its own")
        if row == REFERENCE:
            raise UserError(f"{where}: a run is named {REFERENCE!r}, the reference policy's own row; write ROW=RUN")
        rows[row] = source
    return rows


def entries_of(metrics: Mapping[str, object], *, run: str) -> Sequence[str | Mapping[str, object]]:
    """The objectives that a run was trained with, as it recorded them; UserError where that is no list."""
    entries = metrics.get("objectives") or ()
    if not isinstance(entries, Sequence) or not all(isinstance(entry, (str, Mapping)) for entry in entries):
        raise UserError(f"{Path(run) / RUN_FILE}: objectives is no list of objectives; give them with --objectives")
    return entries


def prompts_of(source: str, *, limit: int | None) -> list[dict[str, str]]:
    """Distinct prompts with their base item: the row's `item`, else its id (two shifts pair their rows by it)."""
    first: dict[str, dict[str, str]] = {}
    for number, row in enumerate(prompt_rows(source, limit=limit), start=1):
        item = str(row.get("item", row.get("id", number)))
        first.setdefault(row["prompt"], {"prompt": row["prompt"], "item": item})
    return list(first.values())


def family_of(source: str) -> PolicyFamily:
    """The policy family of a run; best-of-n gets the objectives that its run names, for it decodes with them."""
    from align.policies.best_of_n import BestOfNFamily
    from align.policies.load import load_family

    family: PolicyFamily = load_family(source)
    if isinstance(family, BestOfNFamily) and (Path(source) / RUN_FILE).is_file():
        entries = entries_of(open_run(source).metrics, run=source)
        return family.with_objectives(load_objectives(entries)) if entries else family
    return family


def points_of(asked: Question, *, reference: ModelPolicy) -> list[Point]:
    """The reference, then every run at the preferences asked for, else at those it was trained at, else at 5."""
    grid = list(asked.preferences) or simplex_grid(len(asked.objectives), 4)
    points = [Point(REFERENCE, grid[0], reference)]
    for row, source in asked.rows.items():
        family = family_of(source)
        for weights in asked.preferences or getattr(family, "preferences", None) or grid:
            if not isinstance(weights, Weights):
                raise UserError(f"{source} answers {weights.label}; this table compares rows at weights only")
            points.append(Point(row, weights, family.policy(weights)))
    return points


def bits_of(points: Sequence[Point], *, text: str | None, limit: int | None) -> dict[str, dict[str, float]]:
    """Per row the reference's bits per byte on `text`, the row's mean over its preferences, and the change."""
    if text is None:
        return {}
    from align.training.bits import text_bits

    texts = [row["text"] for row in text_rows(text, limit=limit)]
    measured: dict[str, list[float]] = {}
    for point in points:
        value = text_bits(point.policy.model, point.policy.tokenizer, texts).per_byte
        measured.setdefault(point.row, []).append(value)
        point.policy.release()
    before = measured[REFERENCE][0]
    means = {row: sum(values) / len(values) for row, values in measured.items()}
    return {row: {"before": before, "after": after, "change": after - before} for row, after in means.items()}


def rewards_of(run: Run) -> str:
    """Which rewards trained a family: none (the labels that its pairs came with), learned, rule, or both."""
    training, objectives = run.config.get("training"), run.metrics.get("objectives")
    if not (isinstance(training, dict) and isinstance(objectives, list)):
        return "unknown"  # a stage of an experiment, which align finetune did not make
    if training.get("labels") == "given":
        return "none"
    return " and ".join(sorted({"learned" if is_learned(entry) else "rule" for entry in objectives}))


def info_of(
    rows: Mapping[str, str], *, bits: Mapping[str, Mapping[str, float]], names: Sequence[str]
) -> dict[str, dict[str, object]]:
    """What each row says about itself: what it optimises, its rewards, its alignment tax and what it cost."""
    info: dict[str, dict[str, object]] = {
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


def evaluate(config: Config, asked: Question, *, folder: Path, ledger: Ledger) -> Metrics:
    """Draw and score every cell, then write cells.jsonl, summary.json and report.html into `folder`."""
    from align.policies.base import ModelPolicy
    from evals.measure.answers import append_answers
    from evals.report import write_report
    from recipes.pipeline.provenance import ledger_table, provenance

    names = list(asked.objectives)
    base = ModelPolicy(asked.reference, name=REFERENCE)
    points = points_of(asked, reference=base)
    cost = Ledger()
    with cost.clock():  # the stage's own clock has not stopped when the summary is written
        answers = sample_answers(
            points, reference=base, prompts=asked.prompts, objectives=asked.objectives, sampling=config.sampling,
            folder=folder / "parts", ledger=cost,
        )  # fmt: skip
    ledger.add(samples_drawn=cost.samples_drawn, scores_read=cost.scores_read)
    (folder / "cells.jsonl").unlink(missing_ok=True)
    append_answers(folder / "cells.jsonl", answers)
    bits = bits_of(points, text=config.text, limit=config.limit)
    summary = sampled_summary(
        answers, title=config.title, names=names, headline=config.headline or names[-1],
        info=info_of(asked.rows, bits=bits, names=names), seed=config.sampling.seed,
    )  # fmt: skip
    costs = {row: open_run(run).ledger for row, run in asked.rows.items() if (Path(run) / RUN_FILE).is_file()}
    summary["ledger"] = ledger_table({**costs, "evaluate": dataclasses.asdict(cost)})
    summary["provenance"] = provenance(config, seed=config.sampling.seed)
    if config.parts is not None:
        summary["parts"] = parts_of(config, asked, points=points, conflict=conflicting(summary["conflict"]))
    write_json(folder / "summary.json", summary)
    write_report(folder / "summary.json", folder / "report.html")
    return {"cells": len(answers), "rows": len(asked.rows), "prompts": sum(map(len, asked.prompts.values()))}


def conflicting(found: object) -> bool:
    """Whether two objectives were seen to disagree on the reference's samples."""
    table = found.get("disagreement") if isinstance(found, Mapping) else None
    return any((value or 0) > 0 for i, row in enumerate(table or ()) for j, value in enumerate(row) if i != j)


def parts_of(config: Config, asked: Question, *, points: Sequence[Point], conflict: bool) -> list[dict[str, object]]:
    """The parts of every drop, `config.parts` responses a prompt and source."""
    from recipes.pipeline.drop_parts import Judged, beta_of, controls_of, drop_parts

    sampling = dataclasses.replace(config.sampling, samples=int(config.parts or 0))
    controls = controls_of(named(config.control, what="control"), shifts=list(asked.prompts), where="--control")
    judged = Judged(prompts=asked.prompts, controls=controls, objectives=asked.objectives, sampling=sampling)
    betas = {row: beta_of(run, given=config.beta) for row, run in asked.rows.items()}
    found = drop_parts(points, reference=points[0].policy, judged=judged, betas=betas, conflict=conflict)
    return [one.jsonable() for one in found]


def check_parts(config: Config, asked: Question, *, where: str) -> None:
    """UserError, before anything is drawn, where `--parts` lacks a shift, a control among the prompts, or a beta."""
    from recipes.pipeline.drop_parts import beta_of, controls_of

    if config.parts is None:
        if config.control or config.beta is not None:
            raise UserError(f"{where}: --control and --beta are for --parts N; add it, or leave them out")
        return
    if config.parts < 1 or (config.beta is not None and not config.beta > 0):
        raise UserError(f"{where}: --parts takes a number of responses from 1 on, and --beta a price above 0")
    if len(asked.prompts) < 2:
        raise UserError(f"{where}: --parts divides the drop under a shift; add prompts as --data SHIFT=SOURCE")
    controls_of(named(config.control, what="control"), shifts=list(asked.prompts), where=where)
    for run in asked.rows.values():
        beta_of(run, given=config.beta)


def names_a_suite(words: Sequence[str]) -> bool:
    """Whether the words, or a file behind --config, ask for suites: then it is the command `align suites`."""
    files = [b for a, b in pairwise([*words, ""]) if a == "--config"]
    files += [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    if any(word == "--suite" or word.startswith("--suite=") for word in words):
        return True
    return any("suite" in read_yaml(file) for file in files if Path(file).is_file())


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if names_a_suite(words):
        from recipes.commands import suites

        print(f"align: note: policies on suites are now: align suites {shlex.join(words)}", file=sys.stderr)
        return suites.main(words)
    config, where = parse(Config, words, program="align evaluate", about=__doc__ or "", positional=("runs",))
    config = dataclasses.replace(config, sampling=with_flags(config.sampling, seed=config.seed))
    asked, inputs = question_of(config, where=where)
    check_parts(config, asked, where=where)

    def body(folder: Path, ledger: Ledger) -> Metrics:
        return evaluate(config, asked, folder=folder, ledger=ledger)

    keyed = {"sampling": config.sampling, "preferences": asked.preferences, "limit": config.limit}
    keyed |= {"title": config.title, "headline": config.headline, "rows": list(asked.rows)}
    if config.parts is not None:
        keyed["parts"] = {"count": config.parts, "control": list(config.control), "beta": config.beta}
    run = run_stage(config.out, stage="evaluate", config=keyed, body=body, inputs=inputs)
    if config.parts is not None:
        summary = read_json(Path(config.out) / "summary.json")
        for entry in summary["parts"] if isinstance(summary, dict) else ():
            print(entry["line"])
    print(closing_line(run))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("evaluate")
