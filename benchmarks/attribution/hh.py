"""The page of attributions on a real model: what `align attribute` wrote -> attribution_hh.md; no prompt is on it.

align attribute runs/hh/sft --suite xstest --shift jailbroken --data ../shared/data --out runs/attribution/sft ...
python -m benchmarks.attribution.hh runs/attribution/sft --publish docs/results
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks import command
from benchmarks.pages import Entry, render, write
from evals.attribution.benign import mean_over

SIGNALS = ("comprehension", "recognition", "pull", "distance")
SHOWN = ("run", "suite", "shift", "reference", "judge", "limit", "max_new_tokens", "training_limit")
PLACES = ("run", "data", "out", "reference", "training", "thresholds")


def page(results: Sequence[Entry]) -> str:
    """The page as Markdown: per model the bounds, and a row per shift, attacks first and controls after them."""
    models = [(result, facts(result)) for result in results]
    return render(Path(__file__).with_name("hh.md.j2"), models=models, signals=SIGNALS)


def facts(result: Entry) -> Entry:
    """What the page says of one model besides what stands in its table."""
    shifts, config = result["shifts"], result["provenance"]["config"]
    means = [mean_over(shifts, name) for name in ("refused", "refused_plain", "taken_for_harmful")]
    return {
        "run": config["run"],
        "options": {k: v for k, v in config.items() if v not in (None, [], "") and k in SHOWN},
        "regions": Counter(entry["region"] for entry in shifts.values()).most_common(),
        "new": sum(entry["new_failures"] for entry in shifts.values()),
        "judges": " ".join(config.get("judge") or ()),
        "blind": all(entry["fails"]["value"] is None for entry in shifts.values()),  # no failure can be established
        "unread": [name for name, entry in shifts.items() if entry["region"] == "capability"],
        "benign": None if None in means else means,  # harmless requests that look harmful, means over shifts
        "shifts": sorted(shifts.items(), key=lambda item: item[1]["mode"] == "control"),
    }


def run(arguments: argparse.Namespace) -> None:
    hint = "run `align attribute` first"
    results = [command.read_table(folder / "attribution.json", hint=hint) for folder in arguments.folders]
    for result in results:  # where a run lay on the machine is nobody's business
        config = result["provenance"]["config"]
        result["provenance"]["config"] = {
            k: "/".join(Path(v).parts[-2:]) if k in PLACES and v else v for k, v in config.items()
        }
    write(arguments.publish, {"attribution_hh.md": page(results)})
    numbers = {r["provenance"]["config"]["run"]: r for r in results}
    command.write_table(arguments.publish / "attribution_hh.json", numbers)


def main(argv: Sequence[str] | None = None) -> int:
    options = command.parser(__doc__ or "", module="benchmarks.attribution.hh")
    options.add_argument("folders", nargs="+", type=Path, help="folders with an attribution.json")
    options.add_argument("--publish", type=Path, required=True, help="folder of the page")
    return command.main(run, options, argv)


if __name__ == "__main__":
    sys.exit(main())
