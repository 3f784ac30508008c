"""Failure rates of an evaluation corrected for its judge's errors, which labelled responses show (Rogan and Gladen).

align correct runs/suites labels.jsonl --by shift
align correct runs/suites labels.jsonl --by model --value llama

The labelled responses (`prompt`, `completion`, `prompt_label`, and `final_label` by people) are judged by the judge of
the evaluation. With --by, the rate under a shift is corrected by the rows whose column names that shift, or all rates
by the rows whose column is --value: a judge misses other things of another model, and under another shift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError
from evals.items import Json, Missing
from recipes.config import option, parse

if TYPE_CHECKING:
    from evals.judges import Judgement
    from evals.judges.validation import Response
    from evals.tables.outcomes import Outcome

LEAST = 10  # labelled responses of each kind below which nothing is corrected


@dataclass(frozen=True, kw_only=True)
class Config:
    run: str = option(help="a folder that align suites wrote")
    labels: str = option(help="labelled responses: prompt, completion, prompt_label (safe, unsafe), the label")
    by: str | None = option(None, help="a column of them: the shift that each was written under, or its model")
    value: str | None = option(None, help="use the rows with this value of it, for every shift")
    label_column: str = option("final_label", help="the column of the label")
    refused: tuple[str, ...] = option(("2_full_refusal", "3_partial_refusal"), help="labels that mean a refusal")
    out: str | None = option(None, help="file for the numbers (default: corrected.json in the folder)")


@dataclass(frozen=True)
class Labels:
    """Labelled responses with what the judge said of each."""

    responses: Sequence[Response]
    found: Sequence[Judgement | Missing]

    def of(self, *, harmful: bool, group: str | None) -> tuple[list[bool], list[bool], list[str]]:
        """(Whether the judge says BAD, whether it is, the prompt) of one side's responses, of one group if named."""
        kept = [
            (str(f.verdict) == "BAD", r.refused is not harmful, r.item.request)
            for r, f in zip(self.responses, self.found, strict=True)
            if r.item.harmful is harmful and group in (None, r.group) and not isinstance(f, Missing)
        ]
        return [k[0] for k in kept], [k[1] for k in kept], [k[2] for k in kept]


def corrected(outcomes: Sequence[Outcome], labels: Labels, *, group: str | None) -> Json:
    """One side under one shift: observed and corrected rate, sensitivity, specificity; `why` where it is not corrected.

    Outcomes are all harmful or all not, judged ones only.
    """
    from evals.judges.rates import Labelled, corrected_rate
    from evals.tables.outcomes import failure_rate, identified

    observed = failure_rate(outcomes)
    flagged, truth, prompts = labels.of(harmful=bool(outcomes[0].harmful), group=group)
    kinds = sum(truth), len(truth) - sum(truth)
    if not identified(outcomes):
        return {"observed": observed, "corrected": None, "why": "the judge cannot say BAD"}
    if min(kinds) < LEAST:
        why = f"{kinds[0]} labelled failures and {kinds[1]} others, at least {LEAST} of each are needed"
        return {"observed": observed, "corrected": None, "why": why}
    made = corrected_rate(
        [one.verdict == "BAD" for one in outcomes], clusters=[one.cluster for one in outcomes],
        validation=Labelled(flagged, truth, prompts),
    )  # fmt: skip
    return {
        "observed": observed, "corrected": made.corrected.stated, "why": made.corrected.reason,
        "sensitivity": made.sensitivity, "specificity": made.specificity, "labelled": len(truth),
    }  # fmt: skip


def line_of(suite: str, shift: str, side: str, entry: Mapping[str, Json]) -> str:
    """What the terminal shows of one rate."""
    from evals.report.suite_words import pair

    start = f"{suite:16} {shift:28} {side:8} observed {pair(entry['observed'])}"
    if entry["corrected"] is None:
        return f"{start}; not corrected: {entry['why']}"
    return (
        f"{start}; corrected {pair(entry['corrected'])} (sensitivity {entry['sensitivity']:.3f}, "
        f"specificity {entry['specificity']:.3f}, {entry['labelled']} labelled)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    positional = ("run", "labels")
    config, where = parse(Config, argv, program="align correct", about=__doc__ or "", positional=positional)
    if config.value is not None and config.by is None:
        raise UserError(f"{where}: --value {config.value} needs --by COLUMN")
    from evals.judges import make_judge, read_options
    from evals.judges.validation import load_responses
    from evals.report.suite_summary import read_summary
    from evals.tables.suite_outcomes import read_outcomes
    from recipes.pipeline.numbers import write_numbers

    suites = read_outcomes(config.run)
    summary = read_summary(config.run)
    asked = ((summary.get("provenance") or {}).get("config") or {}).get("judge_option") or ()
    if not summary.get("judge"):
        raise UserError(f"{config.run}/summary.json names no judge; run align suites again")
    responses = load_responses(config.labels, column=config.label_column, refused=config.refused, group=config.by)
    judge = make_judge(summary["judge"], options=read_options(asked))
    found = judge.judge([r.item for r in responses], responses=[r.text for r in responses])
    labels, table = Labels(responses, found), dict[str, Json]()
    for suite, outcomes in suites.items():
        judged = [one for one in outcomes if not isinstance(one.verdict, Missing) and one.harmful is not None]
        for shift in dict.fromkeys(one.shift for one in judged):
            group = config.value or (shift if config.by else None)
            for side, harmful in (("harmful", True), ("benign", False)):
                those = [one for one in judged if one.shift == shift and one.harmful is harmful]
                if those:
                    entry = corrected(those, labels, group=group)
                    table.setdefault(suite, {}).setdefault(shift, {})[side] = entry
                    print(line_of(suite, shift, side, entry))
    target = Path(config.out or Path(config.run) / "corrected.json")
    write_numbers(target, {"judge": summary["judge"], "suites": table}, kind="corrected", config=config, seed=0)
    print(f"numbers: {target}")
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("correct")
