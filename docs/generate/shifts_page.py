"""The page docs/shifts.md from SHIFTS: a table per family, and where a shift differs from the paper that it is from."""

from __future__ import annotations

from collections.abc import Mapping

from evals.shifts.base import FAMILIES, Shift, same

_WORDS = "in our own words"
_HARMLESS = "all examples are harmless, so the attack is weaker than one with harmful examples"
DEVIATIONS: dict[str, str] = {
    "none": "none",
    "prefix_injection": _WORDS,
    "prefix_injection_hello": _WORDS,
    "refusal_suppression": f"{_WORDS}; a shorter list of banned words",
    "refusal_suppression_inv": _WORDS,
    "style_injection_short": _WORDS,
    "style_injection_json": _WORDS,
    "few_shot_json": _HARMLESS,
    "distractors": f"{_WORDS}; other tasks",
    "distractors_negated": f"{_WORDS}; another task",
    "poems": f"{_WORDS}; other verses",
    "wikipedia": _WORDS,
    "wikipedia_with_title": _WORDS,
    "base64": _WORDS,
    "base64_input_only": _WORDS,
    "base64_output_only": _WORDS,
    "base64_raw": "none",
    "rot13": _WORDS,
    "disemvowel": "none",
    "leetspeak": "word rules at word boundaries; the letters a e i o s t g z change",
    "combination_1": "built from our own parts",
    "combination_2": "built from our own parts",
    "combination_3": "built from our own parts",
    "aim": f"{_WORDS}, and shorter",
    "dev_mode_v2": f"{_WORDS}, and shorter",
    "dev_mode_with_rant": f"{_WORDS}, and shorter",
    "evil_confidant": f"{_WORDS}, and shorter",
    "evil_system_prompt": _WORDS,
    "best_of_n": "one draw; success in any of N is a table over samples",
    "past_tense": "by rules, not by a model; what is no order and no how-to question is quoted",
    "future_tense": "by rules, not by a model; what is no order and no how-to question is quoted",
    "many_shot_1": _HARMLESS,
    "many_shot_4": _HARMLESS,
    "many_shot_16": _HARMLESS,
    "in_context_attack": _HARMLESS,
    "in_context_defence": "refused requests are generic",
    "payload_splitting": "words by length, not by a model (`auto_payload_splitting` asks a model)",
    "masked_word": "one word; a numbered list as the side task",
    "cipher_chat": "one cipher, harmless demonstrations",
    "code_chameleon": "one of its four codes (odd and even places)",
    "prefill_5": "words that agree and say no more; no harmful beginning",
    "prefill_10": "words that agree and say no more; no harmful beginning",
    "prefill_20": "words that agree and say no more; no harmful beginning",
    "prefill_40": "words that agree and say no more; no harmful beginning",
}

_HEAD = """# Shifts

<!-- The tables are generated from evals/shifts by `make docs`. -->

A shift turns the request of an item into a prompt. The judge sees the original request and the decoded response.
Harmful and benign items go through the same words. A draw is seeded by item and shift, so one more shift changes no
other prompt.

- **mode**: what the literature expects to fail: *competing* objectives, *mismatched* generalization, *both*; a
  *control* is the twin of an attack. It is a hypothesis to measure, not a finding.
- **decoder**: what becomes of a response before it is judged. What cannot be decoded stays as it is.
- **probe**: a harmless question under the same disguise, which tells "did not refuse" from "cannot read".
- **placebo**: the twin with the same surface and no adversarial content; **ablates** names the attack of a control.
- **needs**: a policy or caller without it gets a Missing cell with the reason, never the plain request.
- A shift that would leave a request as it is gives Missing (`unchanged`).

`--shift` takes names, families, `jailbroken` (the list of Wei, Haghtalab & Steinhardt 2023) and `all`. Attack templates
are of the published structure, in our own words; to measure a verbatim one, build it with
`evals.shifts.building.framed` from your own file.
"""


_BY_MODEL = """## Made by a language model

They are named one by one, and take a backend. When it fails, declines or answers in another form, the cell is Missing.
"""
_TRANSLATIONS = """## From parallel translations

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
    head = "| shift | mode | what it does | decoder | probe | placebo or ablates | needs | differs from its paper |"
    return "\n".join([head, "|" + " --- |" * 8, *map(_row, rows)]) + "\n"


def _row(shift: Shift) -> str:
    decoder = "" if shift.decode is same else (shift.decode.__doc__ or "").strip()
    twin = shift.placebo or (f"ablates {shift.ablates}" if shift.ablates else "")
    cells = (
        shift.name, shift.mode, shift.about, decoder, "yes" if shift.probe else "", twin,
        ", ".join(sorted(shift.needs)), DEVIATIONS.get(shift.name, ""),
    )  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
