"""The page of trainers on the conformance world: what `align conformance` wrote -> conformance.json and conformance.md.

    align conformance trl:RLOOTrainer trl:GRPOTrainer trl:DPOTrainer trl:KTOTrainer ours:ppo
    python -m benchmarks.conformance.page runs/conformance

Nothing is trained here: every verdict and number is that of a trainer's own `conformance.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from align.errors import UserError, guarded
from benchmarks.pages import filled, render, write
from evals.items import Json
from recipes.config import option, parse

KEPT = ("target", "options", "case", "predicted", "predicted_regret", "predicted_distance", "cpu_seconds", "replies")


def table(folder: Path) -> Json:
    """The examined trainers of a folder, those at their defaults first; UserError where there is none."""
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*/conformance.json"))]
    if not rows:
        raise UserError(f"{folder} has no TRAINER/conformance.json; run `align conformance TRAINER --out {folder}`")
    rows.sort(key=lambda row: (bool(row["options"]), row["target"].startswith("ours:"), row["target"]))
    trainers = [{key: row[key] for key in KEPT} | {"diagnosis": row["diagnosis"]} for row in rows]
    cases = [row["case"] for row in trainers]
    if any(case != cases[0] for case in cases):
        raise UserError(f"{folder} mixes weights, betas, budgets or seeds; give each its own --out")
    versions = {name: rows[0]["provenance"]["versions"][name] for name in ("torch", "transformers", "trl")}
    return {"case": cases[0], "trainers": trainers, "versions": versions}


def command(row: Json) -> str:
    """What examines this trainer again."""
    options = "".join(f" --set options.{key}={value}" for key, value in sorted(row["options"].items()))
    return f"align conformance {row['target']}{options}"


def page(result: Json) -> str:
    """The Markdown page; a function of the JSON alone."""
    template = Path(__file__).with_name("page.md.j2")
    cpu = sum(row["cpu_seconds"] for row in result["trainers"])
    return filled(render(template, result=result, command=command, cpu=cpu))


@dataclass(frozen=True, kw_only=True)
class Config:
    runs: Path = option(Path("runs/conformance"), help="folder that `align conformance` wrote")
    machine: str = option("", help="the machine that it ran on, in words")
    out: Path = option(Path("docs/results"), help="folder of the numbers and the page")


def main(argv: Sequence[str] | None = None) -> int:
    about = __doc__ or ""
    config, _ = parse(Config, argv, program="python -m benchmarks.conformance.page", about=about, positional=("runs",))
    result = {**table(config.runs), "machine": config.machine}
    write(config.out, {"conformance.json": json.dumps(result, indent=1) + "\n", "conformance.md": page(result)})
    print(f"written: {config.out / 'conformance.json'} and conformance.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
