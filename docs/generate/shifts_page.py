"""The page docs/shifts.md from SHIFTS: a table per family, and where a shift differs from the paper that it is from."""

from __future__ import annotations

from collections.abc import Mapping

from evals.shifts.base import FAMILIES, Shift, same

_HEAD = """# Shifts

<!-- The tables are generated from evals/shifts by `make docs`. -->

A shift turns the request of an item into a prompt. The judge sees the original request and the decoded response.
Harmful and benign items get the same words. What is random is seeded by item and shift, so adding a shift changes no
other prompt.

- **mode**: what the literature expects to fail: *competing* objectives, *mismatched* generalization, *both*; a
  *control* is the matched control of an attack. It is a hypothesis to measure, not a finding.
- **decoder**: what is done to a response before it is judged. What cannot be decoded stays as it is.
- **probe**: a harmless question under the same disguise, which separates "did not refuse" from "cannot read".
- **matched control**: the same surface without adversarial content; a control names the attack that it belongs to.
- **needs**: a policy or caller without it gets a Missing cell with the reason, never the plain request.
- A shift that would leave a request as it is gives Missing (`unchanged`).

`--shift` takes names, families, `jailbroken` (the list of Wei, Haghtalab & Steinhardt 2023) and `all`. Attack templates
have the published structure, in our own words; to measure a verbatim one, build it with
`evals.shifts.building.framed` from your own file.
"""


_BY_MODEL = """## Made by a language model

They are named one by one, and take a backend. When it fails, declines or answers in another form, the cell is Missing.
"""
_TRANSLATIONS = """## From rows of yours

`--shift like:ROWS` dresses requests like the rows: in the system turn, and between the beginning and the end, that all
of them have in common (`like_rows`; control: the same words shuffled). `--shift many_shot:FILE[:K,K]` puts K of your
demonstrations before the request, by default 1, 4, 16, ... and all (`many_shot_own_K`; control: as many turns of
general knowledge, with replacement). What does not fit into the context is left out and counted. See
[safety measures](safety_measures.md).

## From parallel translations

`evals.shifts.language.read_translations(FILE)` gives a shift `translated_XX` for each language column of your file. A
request without a translation is Missing (`no_translation`). Responses are judged in their language.
"""


def page(shifts: Mapping[str, Shift], *, made_by_model: Mapping[str, Shift]) -> str:
    """The whole page as Markdown; `made_by_model` are the shifts that need a language model."""
    parts = [_HEAD]
    for family in FAMILIES:
        rows = [shift for shift in shifts.values() if shift.family == family]
        if rows:
            parts.append(f"## {family}\n\n{_table(rows)}")
    parts.append(f"{_BY_MODEL}\n{_table(list(made_by_model.values()))}")
    return "\n".join([*parts, _TRANSLATIONS])


def _table(rows: list[Shift]) -> str:
    head = "| shift | mode | what it does | decoder | probe | matched control | needs | differs from its paper |"
    return "\n".join([head, "|" + " --- |" * 8, *map(_row, rows)]) + "\n"


def _row(shift: Shift) -> str:
    decoder = "" if shift.decode is same else (shift.decode.__doc__ or "").strip()
    control = shift.control or (f"control of {shift.control_of}" if shift.control_of else "")
    cells = (
        shift.name, shift.mode, shift.about, decoder, "yes" if shift.probe else "", control,
        ", ".join(sorted(shift.needs)), shift.differs,
    )  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
