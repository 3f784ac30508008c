"""Published numbers of the testbed benchmark and a new sitting's as one table: no machine must hold every run."""

from __future__ import annotations

from benchmarks.testbed.table import over_seeds
from evals.items import Fields, Json


def merge(new: Fields, *, published: Fields) -> tuple[Json, list[str]]:
    """The new table with every (row, world, seed) that only the published one has, and what could not be kept.

    A seed is kept where row key and world hash are the new table's or the new table has neither; where both have it,
    the new sitting's numbers stand. The second value names each (row, world) left out because it means something else
    now.
    """
    worlds, methods, lost = dict(new["worlds"]), dict(new["methods"]), []
    for name, about in published["worlds"].items():
        worlds.setdefault(name, about)
    for row, old in published["methods"].items():
        here = methods.get(row)
        kept = dict(here["worlds"]) if here else {}
        for world, entry in old["worlds"].items():
            same_row = here is None or here["key"] == old["key"]
            if not same_row or worlds[world]["hash"] != published["worlds"][world]["hash"]:
                lost.append(f"{row} on {world}")
                continue
            kept[world] = _joined(kept.get(world), old=entry)
        if kept:
            methods[row] = {**(here or old), "worlds": kept}
    order = [*published["methods"], *new["methods"]]
    seeds = sorted({*new["seeds"], *published["seeds"]})
    commits = list(dict.fromkeys([*commits_of(published), *commits_of(new)]))
    table = {**new, "worlds": worlds, "seeds": seeds, "commits": commits}
    table["methods"] = {row: methods[row] for row in dict.fromkeys(order) if row in methods}
    return table, lost


def commits_of(table: Fields) -> list[str]:
    """The commits whose sittings a table holds."""
    return list(table.get("commits", [table["commit"]]))


def _joined(new: Fields | None, *, old: Fields) -> Json:
    """One row on one world over the seeds of both; the split of regret is that of the lowest seed."""
    seeds = {int(seed): entry for seed, entry in old["seeds"].items()}
    if new is None:
        return dict(old)
    fresh = {int(seed): entry for seed, entry in new["seeds"].items()}
    seeds |= fresh
    lowest = min(seeds)
    source = new if lowest in fresh else old
    parts = {name: source[name] for name in ("wrong_objective", "unfinished")}
    return over_seeds({seed: seeds[seed] for seed in sorted(seeds)}) | parts
