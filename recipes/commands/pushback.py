"""Whether a policy gives up right answers when the user presses it without a reason, more and more, turn after turn.

align pushback MODEL --suite truthfulqa --data ../shared/data --limit 100
align pushback MODEL --suite mmlu --data ../shared/data --turns my_turns.jsonl

Closed questions, answered by likelihood. The control is a user who asks for the answer again and does not press.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.errors import UserError
from evals.items import Json
from recipes.commands import suites
from recipes.commands.asked import Questioned
from recipes.config import option, parse


@dataclass(frozen=True, kw_only=True)
class Config(Questioned):
    suite: tuple[str, ...] = option(help="multiple-choice suites by name, or files of rows with choices and label")
    turns: str | None = option(None, help="rows with pressing and calm: what the user says after each answer, in order")
    out: str = option("runs/pushback", help="folder of the cells and the numbers")


def turns_of(path: str | None) -> dict[str, list[str]]:
    """Side -> the user's turns, our own or those of a file; UserError for a row without a text for either."""
    from align.data.load import iterate_rows
    from evals.measure.dialogues import SIDES

    if path is None:
        return {side: list(texts) for side, texts in SIDES.items()}
    turns: dict[str, list[str]] = {side: [] for side in SIDES}
    for place, row in iterate_rows(path, columns=tuple(SIDES)):
        for side, texts in turns.items():
            if not isinstance(row[side], str) or not row[side].strip():
                raise UserError(f"{place}: column '{side}' is empty or no text; fill it in or delete the row")
            texts.append(row[side])
    return turns


def lines_of(table: Mapping[str, Json]) -> list[str]:
    """What the terminal shows."""
    from evals.report.words import interval, share

    def shown(found: Json | None) -> str:
        return "-" if found is None else f"{share(found['value'])} {interval(found['ci'])}"

    lines = []
    for suite, found in table.items():
        lines.append(f"{suite}: right at first {shown(found['right'])}, {found['right']['over']}")
        for kind, words in (("lost", "right answers given up"), ("gained", "wrong answers put right")):
            for row in found[kind]:
                lines.append(
                    f"  {words} after turn {row['turn']}: pressed {shown(row['pressing'])}, asked again "
                    f"{shown(row['calm'])}, change {shown(row['change'])}"
                )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align pushback", about=__doc__ or "", positional=("model",))
    from evals.measure.dialogues import dialogues
    from evals.measure.engine import Engine, to_stderr
    from evals.measure.evaluation import chosen_suites
    from evals.measure.store import locked
    from evals.tables.safety.flips import flip_table
    from recipes.pipeline.numbers import write_numbers

    turns = turns_of(config.turns)
    options = suites.Options(**config.shared(Questioned), out=config.out, measure=("choices",))
    suites.check(options, where=where)
    chosen = chosen_suites(config.suite, data=config.data, limit=config.limit, measures=("choices",))
    for one in chosen:
        if one.suite.aim != "up" or not all(item.choices for item in one.items):
            raise UserError(f"{where}: suite {one.suite.name} has no right answers to give up; name one of questions")
    backend, table = suites.backend_for(config.model, options), dict[str, Json]()
    with locked(Path(config.out) / "cells.jsonl") as store:
        engine = Engine(backend, store=store, batch=config.batch_size, progress=to_stderr)
        for one in chosen:
            held, lost = dialogues(one.items, suite=one.suite.name, engine=engine, turns=turns)
            if not held:
                raise UserError(f"{where}: no question of {one.suite.name} could be answered throughout ({lost})")
            table[one.suite.name] = flip_table(held) | {"left_out": lost}
    print("\n".join(lines_of(table)))
    write_numbers(Path(config.out) / "pushback.json", {"suites": table}, kind="pushback", config=config, seed=0)
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("pushback")
