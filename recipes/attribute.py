"""Why a policy fails under shifts: competing objectives, mismatched generalization, or what it cannot read.

align attribute runs/suites                            (what `align evaluate MODEL --suite ... --out runs/suites` wrote)
align attribute MODEL --suite xstest --shift jailbroken --data ../shared/data --out runs/attribution

MODEL is a run or a Hugging Face folder; what has not been measured yet is measured now, into the same cells. Writes
attribution.json and attribution.html. Bounds come from the controls among the shifts, or from --thresholds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import UserError
from recipes import evaluate_suites
from recipes.config import build, option, parse

MEASURES = ("completion", "verdict")
CONTROLS = ("prefix_injection_hello", "refusal_suppression_inv")  # added where the shifts asked for have no control


@dataclass(frozen=True, kw_only=True)
class Config:
    run: str = option(help="a folder that `align evaluate --suite` wrote, or a model to evaluate first")
    suite: tuple[str, ...] = option(("xstest",), help="suites with harmful and benign requests (for a model)")
    shift: tuple[str, ...] = option(("jailbroken",), help="shifts (for a model); their placebo twins are added")
    data: str | None = option(None, help="folder of the suites' files")
    weights: str | None = option(None, help="the preference that a family is asked for")
    reference: str | None = option(None, help="the model before alignment: recognition is then the implicit reward")
    training: str | None = option(None, help="rows with the fine-tuning prompts, from which distance is measured")
    thresholds: str | None = option(None, help="JSON file of frozen bounds (default: from this run's controls)")
    judge: tuple[str, ...] = option(("rules",), help="judges in turn: the next decides what is left unclear")
    template: str = option("auto", help="auto, chat, hh or plain")
    layer: int | None = option(None, help="hidden layer that recognition is read at (default: two thirds up)")
    max_new_tokens: int = option(64, help="tokens of a completion at most")
    batch_size: int = option(64, help="prompts per batch")
    limit: int | None = option(None, help="only so many items of each suite, a fixed sample")
    training_limit: int = option(1000, help="fine-tuning prompts that distance is measured from")
    out: str | None = option(None, help="folder (default: RUN itself, or runs/attribution for a model)")


def evaluation_of(config: Config) -> tuple[evaluate_suites.Config, Path]:
    """The evaluation to read or to make, with all that attribution needs, and its folder."""
    file = Path(config.run) / "provenance.json"
    if file.is_file() and (Path(config.run) / "cells.jsonl").is_file():
        try:
            written = json.loads(file.read_text(encoding="utf-8"))["config"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: not what align evaluate wrote ({error}); evaluate into it again") from error
        if "suite" not in written:
            raise UserError(f"{config.run} was not written by align evaluate --suite; name such a folder, or a model")
        found = build(evaluate_suites.Config, written, where=str(file))
        measures = tuple(dict.fromkeys((*found.measure, *MEASURES)))
        return dataclasses.replace(found, measure=measures, shift=with_twins(found.shift)), Path(config.run)
    out = Path(config.out or "runs/attribution")
    asked = evaluate_suites.Config(
        model=config.run, suite=config.suite, shift=with_twins(config.shift), data=config.data, weights=config.weights,
        out=str(out), measure=MEASURES, judge=config.judge, template=config.template,
        max_new_tokens=config.max_new_tokens, batch_size=config.batch_size, limit=config.limit,
    )  # fmt: skip
    return asked, out


def with_twins(names: Sequence[str]) -> tuple[str, ...]:
    """The shifts with plain text, their placebo twins, and at least two controls in plain letters.

    A shift that needs more than its name (a language model, translations) stays as it is named, without a twin.
    """
    from evals.shifts import SHIFTS, parse_shifts

    families = {shift.family for shift in SHIFTS.values()}
    known = [name for name in names if name in (*SHIFTS, *families, "all", "jailbroken")]
    shifts = {s.name: s for s in parse_shifts(known)} if known else {}
    twins = [s.placebo for s in shifts.values() if s.placebo and s.placebo not in shifts]
    return tuple(dict.fromkeys(("none", *shifts, *(n for n in names if n not in known), *twins, *CONTROLS)))


@dataclass(frozen=True)
class Measured:
    """All that was asked and found, suites together; items are named suite:id."""

    asked: list[Any]
    found: dict[str, list[Any]]
    names: list[str]  # of each asked, suite:id

    @property
    def named(self) -> list[Any]:
        """What was asked, its items called by these names."""
        return [
            dataclasses.replace(one, item=dataclasses.replace(one.item, id=name))
            for one, name in zip(self.asked, self.names, strict=True)
        ]


def measured_by(results: Mapping[str, Any]) -> Measured:
    """Cells of all suites in one list per measurement. UserError where no suite has harmful and benign requests."""
    asked: list[Any] = []
    found: dict[str, list[Any]] = {name: [] for name in MEASURES}
    names: list[str] = []
    for suite, more, cells in results.values():
        if suite.kind != "safety":
            continue
        asked += more
        names += [f"{suite.name}:{one.item.id}" for one in more]
        for name in MEASURES:
            found[name] += cells[name]
    labels = {one.item.harmful for one in asked}
    if labels != {True, False}:
        raise UserError("attribution needs harmful and benign requests; add a suite that has both, such as xstest")
    return Measured(asked, found, names)


def tables_of(measured: Measured, *, backend: Any, reference: Any, training: Sequence[str], layer: int | None) -> Any:
    """(Tables, what recognition is read from): every table that the signals are made of."""
    from evals.attribution_probes import default_layer, matching, readings_of, views_of
    from evals.attribution_signals import Tables
    named = measured.named
    sides: dict[bool, dict[str, str]] = {True: {}, False: {}}
    for one in named:
        sides[one.item.harmful][one.item.id] = f"{one.suite}:{one.item.cluster}"
    benign = {one.item.id: one.item.request for one in named if not one.item.harmful}
    depth = layer if layer is not None else default_layer(backend.model)
    states, margin = readings_of(backend, named, layer=depth)
    fine_tuning = training_states(backend, training, layer=depth)
    views = views_of(states, harmful=sides[True], benign=sides[False], training=fine_tuning)
    score, by = views.score, f"hidden layer {depth}"
    if reference is not None:
        _, before = readings_of(reference, named, layer=1)
        score = _difference(margin, before)
        margin, by = before, "the implicit reward of refusing, policy against reference"
    tables = Tables(
        failed=failing(named, measured.found["verdict"]), margin=margin, score=score, distance=views.distance,
        matched=matching(states, requests=benign), harmful=sides[True], benign=sides[False],
    )  # fmt: skip
    return tables, by


def training_states(backend: Any, prompts: Sequence[str], *, layer: int) -> list[Any]:
    """Hidden states of the fine-tuning prompts, as the policy was shown them."""
    from evals.model_measurements import last_hidden_states
    from evals.prompts import Missing, Prompt
    from evals.suites.safety import turns_of

    shown = []
    for text in prompts:
        before, request = turns_of(text)
        shown.append(Prompt((*before, *Prompt.user(request).turns)))
    states = last_hidden_states(backend, shown, layer=layer)
    return [state.double().numpy() for state in states if not isinstance(state, Missing)]


def failing(asked: Sequence[Any], verdicts: Sequence[Any]) -> dict[str, dict[str, float]]:
    """shift -> harmful item -> share of its judged samples that do not refuse (BAD, and UNCLEAR, which does not)."""
    return _shares(asked, verdicts, harmful=True, bad=lambda verdict: verdict != "GOOD")


def refusing(asked: Sequence[Any], verdicts: Sequence[Any]) -> dict[str, dict[str, float]]:
    """shift -> benign item -> share of its judged samples that refuse (BAD)."""
    return _shares(asked, verdicts, harmful=False, bad=lambda verdict: verdict == "BAD")


def _shares(
    asked: Sequence[Any], verdicts: Sequence[Any], *, harmful: bool, bad: Callable[[str], bool]
) -> dict[str, dict[str, float]]:
    from evals.prompts import Missing

    seen: dict[tuple[str, str], list[float]] = {}
    for one, cell in zip(asked, verdicts, strict=True):
        if one.item.harmful == harmful and not isinstance(cell.value, Missing):
            seen.setdefault((one.shift.name, one.item.id), []).append(float(bad(cell.value["verdict"])))
    table: dict[str, dict[str, float]] = {}
    for (shift, item), values in seen.items():
        table.setdefault(shift, {})[item] = sum(values) / len(values)
    return table


def _difference(a: Mapping[str, Mapping[str, float]], b: Mapping[str, Mapping[str, float]]) -> Any:
    return {s: {i: v - b[s][i] for i, v in row.items() if i in b.get(s, {})} for s, row in a.items()}


def read_thresholds(file: str) -> Any:
    """Frozen bounds from a JSON file (alone, or under "thresholds"); UserError naming file and fault."""
    from evals.attribution import Thresholds

    try:
        values = json.loads(Path(file).read_text(encoding="utf-8"))
        return Thresholds.parse(values.get("thresholds", values))
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file of thresholds; leave --thresholds out to calibrate them") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: {error}; write it with benchmarks/attribution.py") from error


def result_of(
    tables: Any, *, shifts: Sequence[Any], model: str, by: str, refused: Mapping[str, Any], bounds: Any = None
) -> dict[str, Any]:
    """attribution.json: bounds, and per shift the region, its shares, the signals and the sentence.

    `bounds` None: calibrated on the controls among the shifts.
    """
    from evals.attribution import attribute, calibrate
    from evals.attribution_benign import benign_behind
    from evals.attribution_signals import controls_of, recognition_auroc, signals_of
    from evals.attribution_words import sentence

    signals = signals_of(tables, shifts=shifts)
    if bounds is None:
        controls = controls_of(signals, shifts=shifts)
        try:
            bounds = calibrate(controls, what=", ".join(dict.fromkeys(c.shift for c in controls)))
        except ValueError as error:
            raise UserError(f"{model}: {error}; or give frozen bounds with --thresholds") from error
    modes = {shift.name: shift.mode for shift in shifts}
    entries = {}
    for found in attribute(signals, thresholds=bounds):
        extra = {"sentence": sentence(found), "mode": modes[found.shift]}
        extra["recognition_auroc"] = recognition_auroc(tables, found.shift)
        extra["benign"] = benign_behind(tables, found.shift, refused=refused)
        entries[found.shift] = {**found.jsonable(), **extra}
    unmeasured = [s.name for s in shifts if s.name != "none" and s.name not in entries]
    return {
        "model": model, "thresholds": bounds.jsonable(), "recognition_by": by, "shifts": entries,
        "recognition_auroc_plain": recognition_auroc(tables, "none"), "not_measured": unmeasured,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align attribute", about=__doc__ or "", positional=("run",))
    from align.runs import write_json
    from evals.backends.transformers import TransformersBackend
    from evals.report.attribution import page
    from recipes.report import provenance
    from recipes.stages import text_prompts

    asked, folder = evaluation_of(config)
    bounds = read_thresholds(config.thresholds) if config.thresholds else None  # before anything is measured
    evaluate_suites.check(asked, where=where)
    backend = evaluate_suites.backend_for(asked)
    if not isinstance(backend, TransformersBackend):
        raise UserError(f"{where}: attribution reads hidden states, which only a model in memory has")
    reference = None
    if config.reference:
        reference = TransformersBackend.load(config.reference, template=asked.template, batch_size=asked.batch_size)
    training = text_prompts(config.training, limit=config.training_limit) if config.training else []
    results = evaluate_suites.measure(asked, backend=backend, out=folder)
    measured = measured_by(results)
    tables, by = tables_of(measured, backend=backend, reference=reference, training=training, layer=config.layer)
    shifts = list({one.shift.name: one.shift for one in measured.asked}.values())
    refused = refusing(measured.named, measured.found["verdict"])
    result = result_of(
        tables, shifts=shifts, model=backend.name, by=by, refused=refused, bounds=bounds
    )  # fmt: skip
    out = Path(config.out) if config.out else folder
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "attribution.json", {**result, "provenance": provenance(config, seed=0)})
    (out / "attribution.html").write_text(page(result), encoding="utf-8")
    if not (folder / "provenance.json").is_file():
        write_json(folder / "provenance.json", provenance(asked, seed=0))
    for entry in result["shifts"].values():
        print(entry["sentence"])
    print(f"report: {out / 'attribution.html'}\nnumbers: {out / 'attribution.json'}")
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("attribute")
