"""The file that `--out` of a command names: checked before any work, and no file of anybody else's is overwritten."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from align.errors import UserError

# what `align suites` writes into the folder of an evaluation
EVALUATION = ("cells.jsonl", "table.json", "provenance.json", "outcomes.jsonl", "summary.json", "report.html")


def files_of(folders: Iterable[str | Path]) -> list[Path]:
    """The files that are an evaluation's own, of every folder."""
    return [Path(folder) / name for folder in folders for name in EVALUATION]


def check_target(target: Path, *, inputs: Iterable[str | Path], where: str) -> None:
    """UserError when `target` is one of the inputs or a folder, or when the folder that it goes into is missing."""
    for source in inputs:
        if target.resolve() == Path(source).resolve() or (target.exists() and _same(target, Path(source))):
            raise UserError(f"{where}: --out would overwrite {source}, which this command reads; give another --out")
    if target.is_dir():
        raise UserError(f"{where}: {target} is a folder; --out names a file")
    if not target.parent.is_dir():
        raise UserError(f"{where}: {target} cannot be written: there is no folder {target.parent}; make it first")


def write_numbers(target: Path, numbers: Mapping[str, object], *, kind: str, config: object, seed: int) -> None:
    """Write a command's numbers with their kind and provenance; a file that is not of this kind is set aside."""
    from align.runs import write_json
    from align.runs.derived import keep_strangers
    from recipes.pipeline.provenance import provenance

    content = {**numbers, "kind": kind, "provenance": provenance(config, seed=seed)}
    keep_strangers(target, like=content)
    write_json(target, content)


def _same(target: Path, source: Path) -> bool:
    return source.exists() and target.samefile(source)
