"""Where a summary comes from: command, commit, ledger, and the report written beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from align.runs import Run


def ledger_table(stages: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Stage -> ledger, and `total`: sums, but of memory the largest."""
    names = {name for ledger in stages.values() for name in ledger}
    total = {
        name: (max if name == "peak_memory_mb" else sum)(ledger.get(name, 0) for ledger in stages.values())
        for name in sorted(names)
    }
    return {**{stage: dict(ledger) for stage, ledger in stages.items()}, "total": total}


def provenance(config: object, *, seed: int, runs: Iterable[Run] = ()) -> dict[str, object]:
    """Where the numbers come from: config, versions, seed, commit, platform, threads.

    `commit` is that of this summary; `run_commits` those at which the runs behind it were made, which differ when
    finished stages were reused after a change of the code.
    """
    from align.runs import commit, environment, jsonable

    facts = environment()
    versions = facts["versions"] if isinstance(facts["versions"], dict) else {}
    return {
        "config": jsonable(config),
        "versions": {"python": facts["python"], **versions},
        "seed": seed,
        "commit": commit(),
        "run_commits": sorted({str(run.environment.get("commit")) for run in runs}),
        "platform": facts["platform"],
        "threads": facts["threads"],
    }


def command_line(program: str, argv: Sequence[str] | None) -> str:
    """The command as a shell takes it."""
    import shlex
    import sys

    return f"{program} {shlex.join(sys.argv[1:] if argv is None else list(argv))}"


def publish(summary: Mapping[str, object], *, out: Path, words: str) -> None:
    """Write `summary.json` and `report.html` of a finished recipe, and say so on the terminal after `words`."""
    from align.runs import write_json
    from align.runs.derived import keep_strangers
    from evals.report import write_report

    keep_strangers(out / "summary.json", out / "report.html", like=summary)
    write_json(out / "summary.json", summary)
    write_report(out / "summary.json", out / "report.html")
    print(f"{words}\nreport: {out / 'report.html'}\nnumbers: {out / 'summary.json'}")
