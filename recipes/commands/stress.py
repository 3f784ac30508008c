"""Durability: a policy and its reference are fine-tuned further on the same rows, and what the policy had is measured.

align stress runs/dpo --reference runs/sft --rows alpaca.jsonl --steps 10 100 --suite xstest --data ../shared/data
align stress runs/dpo --reference runs/sft --rows mine.jsonl --suite xstest --objectives harmless=runs/judge

The rows are benign demonstrations, or harmful ones of your own. Each number of steps is a fine-tuning of its own from
the model as it is, with its learning rate constant; the reference, fine-tuned alike, is the control.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from align.data.sources import demonstrations
from align.errors import UserError
from align.preferences import parse_preference
from align.runs import Ledger, Metrics, run_stage
from evals.items import Json
from recipes.commands import suites
from recipes.commands.asked import Asked
from recipes.config import option, parse, section_field
from recipes.pipeline.inputs import content_key

if TYPE_CHECKING:
    from align.training.sft import SFTConfig_
    from evals.measure.cells import Evaluated

DEFAULTS = Path(__file__).parents[1] / "configs" / "stress.yaml"
SIDES = ("policy", "reference")


@dataclass(frozen=True, kw_only=True)
class Config(Asked):
    rows: str = option(help="demonstrations to fine-tune on (prompt, completion): file, directory or hub id")
    steps: tuple[int, ...] = option((10, 100), help="numbers of optimiser steps; 0, the models as they are, is added")
    objectives: tuple[str | Mapping[str, object], ...] = option((), help="NAME=RUN or NAME=KIND: rewards measured too")
    out: str = option("runs/stress", help="folder of the models, the evaluations and the numbers")
    training: SFTConfig_ = section_field("align.training.sft:SFTConfig_", help="keys of align.training.sft.SFTConfig_")


def fine_tuned(start: str, *, steps: int, config: Config, out: Path) -> str:
    """The model after so many steps from `start`; a finished one is used again."""
    if steps == 0:
        return start
    training, drops = replace(config.training, max_steps=steps), Counter[str]()
    rows = demonstrations(config.rows, limit=None, drops=drops)

    def body(folder: Path, ledger: Ledger) -> Metrics:
        from align.training.sft import sft

        return {"rows": len(rows), **sft(training, model=start, rows=rows, out=folder, ledger=ledger)}

    inputs = {"model": content_key(start), "data": content_key(config.rows)}
    return str(run_stage(out, stage="sft", config={"training": training}, body=body, inputs=inputs).path)


def values_of(
    results: Mapping[str, Evaluated], *, objectives: Sequence[str]
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Number -> item -> value: shares refused on each side, mean rewards; and each item's base item."""
    from evals.tables.outcomes import shares
    from evals.tables.safety.depth import SIDES as REFUSING
    from evals.tables.suite_outcomes import outcomes_of
    from evals.tables.suite_tables import item_means

    values: dict[str, dict[str, float]] = {}
    clusters: dict[str, str] = {}
    for suite, result in results.items():
        outcomes = [
            replace(one, item=f"{suite} {one.item}", cluster=f"{suite} {one.cluster}")
            for one in outcomes_of(result.cells)
        ]
        clusters |= {one.item: one.cluster for one in outcomes}
        for side, verdict in REFUSING.items():
            own = [one for one in outcomes if one.harmful is (side == "harmful")]
            values[f"{suite}, {side}: refused"] = shares(own, verdict=verdict)
        for name in objectives:
            for found in item_means(result.cells, "rewards", f"{name}.plain").values():
                values[f"{suite}: {name}"] = {f"{suite} {item}": value for item, value in found.items()}
    return {name: found for name, found in values.items() if found}, clusters


def lines_of(numbers: Mapping[str, Sequence[Json]]) -> list[str]:
    """What the terminal shows."""
    from evals.report.words import interval, num, share, signed

    lines = []
    for name, points in numbers.items():
        lines.append(
            f"{name}: policy, reference fine-tuned alike, lead, share of the lead kept, n = {points[0]['lead']['n']}"
        )
        for p in points:
            kept = "-" if p["kept"] is None else f"{share(p['kept']['value'])} {interval(p['kept']['ci'])}"
            lead = f"{signed(p['lead']['value'])} {interval(p['lead']['ci'])}"
            lines.append(f"  {p['steps']:>6} steps  {num(p['policy']):>8} {num(p['reference']):>8}  {lead:26} {kept}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(
        Config, argv, program="align stress", about=__doc__ or "", positional=("model",), defaults=DEFAULTS
    )
    options = config.options(out=config.out, title="Durability")
    measures = ("completion", "verdict", *(["rewards"] if config.objectives else []))
    options = replace(options, measure=measures, objectives=config.objectives)
    suites.check(options, where=where)
    if config.reference is None:
        raise UserError(
            f"{where}: durability is against a reference that is fine-tuned alike; name it with --reference"
        )
    if any(steps < 0 for steps in config.steps):
        raise UserError(f"{where}: --steps are numbers of optimiser steps, not {list(config.steps)}")
    from align.policies.export import model_at
    from evals.tables.safety.durability import Stressed, durability
    from recipes.pipeline.numbers import write_numbers
    from recipes.pipeline.provenance import command_line

    chosen = suites.suites_of(options, where=where)
    preference = None if config.weights is None else parse_preference(config.weights)
    starts = dict(zip(SIDES, (model_at(config.model, preference), model_at(config.reference, None)), strict=True))
    out, names = Path(config.out), [str(one).partition("=")[0] for one in config.objectives]
    found: dict[int, dict[str, dict[str, dict[str, float]]]] = {}
    clusters: dict[str, str] = {}
    for steps in sorted({0, *config.steps}):
        for side, start in starts.items():
            model = fine_tuned(start, steps=steps, config=config, out=out / f"{side}-{steps}")
            asked = replace(options, weights=None, reference=None)
            results = suites.evaluate(
                model,
                chosen,
                options=asked,
                out=out / "suites" / f"{side}-{steps}",
                command=command_line("align stress", argv),
            )
            values, clusters = values_of(results, objectives=names)
            found.setdefault(steps, {})[side] = values
    numbers = {
        name: durability(
            [Stressed(n, both["policy"][name], both["reference"][name]) for n, both in found.items()],
            clusters=clusters, share=name.endswith("refused"),
        )
        for name in found[0]["policy"]
    }  # fmt: skip
    print("\n".join(lines_of(numbers)))
    write_numbers(out / "stress.json", {"series": numbers}, kind="stress", config=config, seed=config.training.seed)
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("stress")
