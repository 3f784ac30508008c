"""How deep safety goes: a policy's KL from its reference by position on given replies, and the harmful-prefix curve.

align depth runs/dpo --reference runs/sft --suite xstest --data ../shared/data
align depth runs/dpo --reference runs/sft --suite xstest --data ../shared/data --replies my_replies.jsonl

The replies are the reference's own that do not refuse (without a reference the model's), or those of a file of rows
with prompt and response. Answers are forced to begin with k of their tokens; docs/safety_measures.md has the controls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError
from evals.items import Json
from recipes.commands import suites
from recipes.commands.asked import Asked
from recipes.config import option, parse

if TYPE_CHECKING:
    from evals.backends.base import Backend
    from evals.backends.reward_model import RewardBackend
    from evals.backends.transformers import TransformersBackend
    from evals.measure.given_replies import Given


ROOM = 8  # tokens of a reply beyond the longest beginning, so that something is left to say


@dataclass(frozen=True, kw_only=True)
class Config(Asked):
    replies: str | None = option(None, help="rows with prompt and response: replies of your own that comply")
    lengths: tuple[int, ...] = option((5, 10, 20, 40), help="tokens of a reply that an answer is forced to begin with")
    out: str = option("runs/depth", help="folder of the cells, the numbers and the report")


def given_replies(
    config: Config, options: suites.Options, model: Backend | RewardBackend, *, where: str
) -> tuple[Given, Json]:
    """The replies, and side -> the KL along them (empty without a reference)."""
    from evals.measure.by_name import measurements_for
    from evals.measure.engine import Engine, to_stderr
    from evals.measure.evaluation import chosen_suites
    from evals.measure.given_replies import file_replies, kl_along, own_replies
    from evals.measure.store import locked
    from evals.tables.safety.depth import SIDES, kl_table

    longest = max(config.lengths)
    chosen = chosen_suites(config.suite, data=config.data, limit=config.limit, measures=("completion", "verdict"))
    reference = reference_of(model, options)
    with locked(Path(config.out) / "cells.jsonl") as store:

        def engine(backend: Backend) -> Engine:
            return Engine(backend, store=store, batch=config.batch_size, progress=to_stderr)

        if config.replies:
            given = file_replies(config.replies, suites=chosen, engine=engine(model), length=longest)
        else:
            speaker, tokens = reference or model, max(options.max_new_tokens, longest + ROOM)
            reads = suites.reads_of(replace(options, max_new_tokens=tokens))
            measurements = measurements_for(("completion", "verdict"), reads=reads, backend=speaker)
            given = own_replies(chosen, engine=engine(speaker), measurements=measurements, length=longest)
        if not given.suites:
            raise UserError(f"{where}: no item has a reply of {longest} tokens that complies ({given.left_out})")
        kl = [] if reference is None else kl_along(given, engine=engine(model), reference=reference, length=longest)
    tables: Json = {}
    for side in SIDES:
        found = [(item.cluster, values) for item, values in kl if item.label == side]
        if found:
            clusters, values = zip(*found, strict=True)
            tables[side] = kl_table(values, clusters_N=clusters, lengths=config.lengths)
    return given, tables


def reference_of(model: Backend | RewardBackend, options: suites.Options) -> TransformersBackend | None:
    """The reference that is named, else an adapter's base; None where there is neither."""
    from evals.backends.transformers import TransformersBackend

    if options.reference is not None:
        return TransformersBackend.load(options.reference, template=options.format, batch_size=options.batch_size)
    if isinstance(model, TransformersBackend) and hasattr(model.model, "disable_adapter"):
        return model.reference()
    return None


def lines_of(numbers: Json) -> list[str]:
    """What the terminal shows."""
    from evals.report.words import interval, num, share

    def shown(found: Json | None, form: Callable[[object], str] = num) -> str:
        return "-" if found is None else f"{form(found['value'])} {interval(found['ci'])}"

    lines = []
    for side, table in numbers["kl"].items():
        early = table["early"]
        lines.append(f"KL from the reference along given replies to {side} requests, nats a token, n = {early['n']}")
        lines += [f"  tokens {band['from']:>3} to {band['to']:>3}  {shown(band)}" for band in table["bands"]]
        lines.append(f"  share of the first {early['tokens']}: {shown(early, share)} (even: {share(early['even'])})")
    for suite, curve in numbers["curve"].items():
        for side, points in curve.items():
            lines.append(f"{suite}, {side}: refused when the answer begins with k tokens of a reply that complies")
            lines.append(f"  {'k':>3}  {'of its own':28}{'of another one (control)':28}behind a refusal's beginning")
            for point in points:
                columns = [point, point.get("other", {}), point.get("insertion", {})]
                cells = [shown(one.get("refused"), share) for one in columns]
                lines.append(f"  {point['k']:>3}  {cells[0]:28}{cells[1]:28}{cells[2]}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align depth", about=__doc__ or "", positional=("model",))
    options = config.options(out=config.out, title="Depth of safety")
    suites.check(options, where=where)
    if not config.lengths or min(config.lengths) < 1:
        raise UserError(f"{where}: lengths are numbers of tokens, each at least 1, not {list(config.lengths)}")
    from evals.measure.given_replies import first_tokens
    from evals.shifts.replied import prefix_shifts
    from evals.tables.safety.depth import prefix_curve
    from evals.tables.suite_outcomes import outcomes_of
    from recipes.pipeline.numbers import write_numbers
    from recipes.pipeline.provenance import command_line

    model = suites.backend_for(config.model, options)
    given, kl = given_replies(config, options, model, where=where)
    shifts = prefix_shifts(
        given.replies, lengths=config.lengths, cut=first_tokens(model), controls=given.benign
    )  # fmt: skip
    results = suites.evaluate(
        config.model, given.suites, options=options, out=Path(config.out),
        command=command_line("align depth", argv), shifts=shifts, backend=model,
    )  # fmt: skip
    curve = {name: prefix_curve(outcomes_of(one.cells), lengths=config.lengths) for name, one in results.items()}
    numbers: Json = {"left_out": given.left_out, "kl": kl, "curve": curve}
    print("\n".join(lines_of(numbers)))
    write_numbers(Path(config.out) / "depth.json", numbers, kind="depth", config=config, seed=0)
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("depth")
