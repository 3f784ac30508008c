"""Paired differences of rows of a published testbed page, seed by seed: what a change of the method does to the share.

    python -m benchmarks.testbed.pairs docs/results/testbed.json

The rows of a pair share reference, comparisons, seeds and the budget of a run, and differ in one thing. Writes
`testbed_pairs.md` beside the numbers. The interval is a t interval over training seeds, 95 %, not corrected for the
number of pairs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import command
from benchmarks.pages import render, write
from evals.items import Fields
from evals.stats.intervals import Interval, paired_difference

# (row, row it is compared with, what differs)
PAIRS = (
    ("morlhf/grpo-token", "morlhf/grpo", "KL per token in the loss, not of the sequence in the reward"),
    ("morlhf/grpo-group", "morlhf/grpo-token", "advantages divided by their deviation in each group"),
    ("morlhf/grpo-batch", "morlhf/grpo-token", "advantages divided by their deviation in the batch"),
    ("morlhf/gdpo", "morlhf/grpo-token", "each objective z-scored per prompt before the weighted sum (GDPO)"),
    ("rewarded_soups/factors", "rewarded_soups/exact", "LoRA factors averaged, not the weight changes"),
    ("mod", "morlhf", "two specialists mixed token by token, not trained at the preference"),
    ("rewarded_soups", "morlhf", "two specialists interpolated, not trained at the preference"),
    ("morlhf@learned", "morlhf", "rewards learned from 4,000 comparisons, not gold"),
)


def shares(methods: Fields, *, row: str, world: str) -> dict[str, float]:
    """seed -> regret share."""
    return {seed: entry["regret_share"] for seed, entry in methods[row]["worlds"][world]["seeds"].items()}


def differences(methods: Fields) -> list[tuple[str, str, str, str, Interval]]:
    """(world, row, other, what differs, paired difference) for every pair that a world holds."""
    found = []
    for row, other, words in PAIRS:
        for world in methods.get(row, {}).get("worlds", {}):
            if world in methods.get(other, {}).get("worlds", {}):
                first, second = (shares(methods, row=name, world=world) for name in (row, other))
                both = sorted(set(first) & set(second))
                change = paired_difference(
                    {s: first[s] for s in both}, second={s: second[s] for s in both}, over="training seeds, paired"
                )
                found.append((world, row, other, words, change))
    return found


def lines(methods: Fields, *, command: str) -> list[str]:
    """The page."""
    return render(Path(__file__).with_name("pairs.md.j2"), pairs=differences(methods), command=command).splitlines()


def run(arguments: argparse.Namespace) -> None:
    found = command.read_table(arguments.numbers, hint="publish the benchmark first")
    page = "\n".join(lines(found["methods"], command=str(arguments.numbers))) + "\n"
    write(arguments.numbers.parent, {"testbed_pairs.md": page})
    print(page)


def main(argv: Sequence[str] | None = None) -> int:
    options = command.parser(__doc__ or "", module="benchmarks.testbed.pairs")
    options.add_argument("numbers", type=Path, help="a testbed.json that benchmarks/testbed/run.py published")
    return command.main(run, options, argv)


if __name__ == "__main__":
    sys.exit(main())
