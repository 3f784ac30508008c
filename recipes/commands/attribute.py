"""Why a policy fails under shifts: competing objectives, mismatched generalization, or what it cannot read.

align attribute runs/suites                              (what `align suites MODEL --suite ... --out runs/suites` wrote)
align attribute MODEL --suite xstest --shift jailbroken --data ../shared/data --out runs/attribution

MODEL is a run or a Hugging Face folder; what has not been measured yet is measured now, into the same cells. Writes
attribution.json and attribution.html. Bounds come from the controls among the shifts, or from --thresholds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from align import checks
from align.errors import UserError
from recipes.commands.suites import Options, backend_for, check, measure, suites_of
from recipes.config import build, option, parse

MEASURES = ("completion", "verdict")  # what attribution reads of every cell
CONTROLS = ("prefix_injection_hello", "refusal_suppression_inv")  # added where the shifts asked for have no control


@dataclass(frozen=True, kw_only=True)
class Config:
    run: str = option(help="a folder that `align suites` wrote, or a model to evaluate first")
    suite: tuple[str, ...] = option(("xstest",), help="suites with harmful and benign requests (for a model)")
    shift: tuple[str, ...] = option(("jailbroken",), help="shifts (for a model); their matched controls are added")
    data: str | None = option(None, help="folder of the suites' files")
    weights: str | None = option(None, help="the preference that a family is asked for")
    reference: str | None = option(None, help="the model before alignment: recognition is then the implicit reward")
    training: str | None = option(None, help="rows with the fine-tuning prompts (else distance is from plain requests)")
    thresholds: str | None = option(None, help="JSON file of frozen bounds (default: from this run's controls)")
    judge: tuple[str, ...] = option(("rules",), help="judges in turn: the next decides what is left unclear")
    judge_option: tuple[str, ...] = option((), help="KEY=VALUE for judges that generate, as of align suites")
    template: str = option("auto", help="auto, chat, hh or plain")
    chat_template_kwargs: Mapping[str, object] | None = option(None, help="JSON for the chat template")
    layer: int | None = option(None, help="hidden layer that recognition is read at (default: two thirds up)")
    max_new_tokens: int = option(512, help="tokens of a completion at most")
    stop: tuple[str, ...] = option((), help="words at which a completion ends")
    batch_size: int = option(64, help="prompts per batch")
    limit: int | None = option(None, help="only so many items of each suite, a fixed sample")
    training_limit: int = option(1000, help="fine-tuning prompts that distance is measured from")
    out: str | None = option(None, help="folder (default: RUN itself, or runs/attribution for a model)")


def evaluation_of(config: Config) -> tuple[Options, Path]:
    """The evaluation to read or to make, with all that attribution needs, and its folder."""
    file = Path(config.run) / "provenance.json"
    if file.is_file() and (Path(config.run) / "cells.jsonl").is_file():
        try:
            written = json.loads(file.read_text(encoding="utf-8"))["config"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: not what align suites wrote ({error}); evaluate into it again") from error
        if "suite" not in written:
            raise UserError(f"{config.run} was not written by align suites; name such a folder, or a model")
        options = build(Options, written, where=str(file))
        measures = tuple(dict.fromkeys((*options.measure, *MEASURES)))
        return dataclasses.replace(options, measure=measures, shift=with_controls(options.shift)), Path(config.run)
    out = Path(config.out or "runs/attribution")
    options = Options(
        model=config.run, suite=config.suite, shift=with_controls(config.shift), data=config.data,
        weights=config.weights, out=str(out), measure=MEASURES, judge=config.judge,
        judge_option=config.judge_option, template=config.template,
        chat_template_kwargs=config.chat_template_kwargs, max_new_tokens=config.max_new_tokens, stop=config.stop,
        batch_size=config.batch_size, limit=config.limit,
    )  # fmt: skip
    return options, out


def with_controls(names: Sequence[str]) -> tuple[str, ...]:
    """The shifts with plain text, their matched controls, and at least two controls in plain letters.

    A shift that needs more than its name (a language model, translations) stays as it is named, without a control.
    """
    from evals.shifts import SHIFTS, parse_shifts

    families = {shift.family for shift in SHIFTS.values()}
    known = [name for name in names if name in (*SHIFTS, *families, "all", "jailbroken")]
    shifts = {s.name: s for s in parse_shifts(known)} if known else {}
    controls = [s.control for s in shifts.values() if s.control and s.control not in shifts]
    return tuple(dict.fromkeys(("none", *shifts, *(n for n in names if n not in known), *controls, *CONTROLS)))


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align attribute", about=__doc__ or "", positional=("run",))
    from align.data.sources import text_prompts
    from align.runs import write_json, write_text
    from align.runs.derived import keep_strangers
    from evals.attribution.from_cells import (
        at_most,
        harmful_and_benign,
        read_thresholds,
        refusing,
        result_of,
        tables_of,
    )
    from evals.backends.transformers import TransformersBackend
    from evals.report.attribution import page
    from evals.shifts.requested import check_shifts
    from recipes.pipeline.numbers import check_target
    from recipes.pipeline.provenance import provenance

    options, folder = evaluation_of(config)
    out = Path(config.out) if config.out else folder
    if out.exists() and not out.is_dir():
        raise UserError(f"{where}: {out} is a file; --out names a folder")
    if out.is_dir():
        reads = [file for file in (config.thresholds, config.training) if file]
        for file in (out / "attribution.json", out / "attribution.html"):
            check_target(file, inputs=reads, where=where)
    bounds = read_thresholds(config.thresholds) if config.thresholds else None  # before anything is measured
    checks.at_least(1, config, "training_limit", place=f"{where}: ")
    checks.at_least(0, config, "layer", place=f"{where}: ")
    check(options, where=where)
    check_shifts(options.shift, model=options.shift_model)
    suites = suites_of(options, where=where)
    backend = backend_for(options.models[0], options)
    if not isinstance(backend, TransformersBackend):
        raise UserError(f"{where}: attribution reads hidden states, which only a model in memory has")
    reference = None
    if config.reference:
        reference = TransformersBackend.load(config.reference, template=options.format, batch_size=options.batch_size)
    training = text_prompts(config.training, limit=config.training_limit) if config.training else []
    results = measure(suites, options=options, backend=backend, out=folder)
    cells = harmful_and_benign(results)
    tables, origins = tables_of(cells, backend=backend, reference=reference, training=training, layer=config.layer)
    shifts = list({cell.shift.name: cell.shift for cell in cells}.values())
    result = result_of(
        tables, shifts=shifts, model=backend.name, origins=origins, refused=refusing(cells), bounds=bounds,
        at_most=at_most(cells),
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    numbers = {**result, "kind": "attribution", "provenance": provenance(config, seed=0)}
    keep_strangers(out / "attribution.json", out / "attribution.html", like=numbers)
    write_json(out / "attribution.json", numbers)
    write_text(out / "attribution.html", page(result))
    if not (folder / "provenance.json").is_file():
        write_json(folder / "provenance.json", provenance(options, seed=0))
    for entry in result["shifts"].values():
        print(entry["sentence"])
    print(f"distance is measured from {result['distance_from']}")
    print(f"report: {out / 'attribution.html'}\nnumbers: {out / 'attribution.json'}")
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("attribute")
