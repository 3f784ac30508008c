"""Language shifts from parallel translations that the user has: one per language, Missing without a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

from align.data.load import load_rows
from align.errors import UserError
from evals.items import Fields, Missing, Prompt
from evals.shifts.base import Probe, Shift
from evals.shifts.probes import words_of

NEEDS = frozenset({"translations"})
NO_TRANSLATION = Missing("no_translation", "the file of translations does not hold this request", lasting=True)
# "What is the sum of {a} and {b}?" and "What is the product of {a} and {b}?": digits alone do not show which is asked.
_QUESTIONS = {
    "cs": ("Jaký je součet čísel {a} a {b}?", "Jaký je součin čísel {a} a {b}?"),
    "de": ("Was ist die Summe von {a} und {b}?", "Was ist das Produkt von {a} und {b}?"),
    "es": ("¿Cuál es la suma de {a} y {b}?", "¿Cuál es el producto de {a} y {b}?"),
    "fr": ("Quelle est la somme de {a} et {b} ?", "Quel est le produit de {a} et {b} ?"),
    "it": ("Qual è la somma di {a} e {b}?", "Qual è il prodotto di {a} e {b}?"),
    "nl": ("Wat is de som van {a} en {b}?", "Wat is het product van {a} en {b}?"),
    "pt": ("Qual é a soma de {a} e {b}?", "Qual é o produto de {a} e {b}?"),
    "ro": ("Care este suma numerelor {a} și {b}?", "Care este produsul numerelor {a} și {b}?"),
}


def read_translations(source: str | Path, *, original: str = "en", languages: Sequence[str] = ()) -> list[Shift]:
    """The shifts of a file with a column for each language; UserError as for `load_rows` and `translations`."""
    rows = load_rows(source, columns=(original, *languages))
    return translations(rows, original=original, languages=languages, where=str(source))


def translations(
    rows: Sequence[Fields], *, original: str = "en", languages: Sequence[str] = (),
    where: str = "translations",
) -> list[Shift]:  # fmt: skip
    """One shift `translated_<language>` for each language of parallel rows, in the order of `languages` or of columns.

    Args:
        rows: each maps a language's code to a text; further columns are ignored, a blank or absent text is none.
        original: the column that holds the requests as the suites have them (compared without outer whitespace).
        languages: columns to use; by default all two- or three-letter columns but the original.
    Raises:
        UserError: no rows, no such column, a text that is no string, or one request with two different translations.
    """
    known = dict.fromkeys(key for row in rows for key in row)
    if original not in known:
        have = ", ".join(known) or "none"
        raise UserError(f"{where}: no column {original!r} with the original requests (it has: {have}); name the column")
    chosen = list(languages) or [k for k in known if k != original and k.isalpha() and k != "id" and len(k) in (2, 3)]
    absent = next((code for code in chosen if code not in known), None)
    if absent is not None or not chosen:
        wanted = f"column {absent!r}" if absent is not None else "column named by a language's code"
        raise UserError(f"{where}: no {wanted} (it has: {', '.join(known)}); name the columns to use")
    return [_shift(code, _table(rows, original=original, code=code, where=where)) for code in chosen]


def _table(rows: Sequence[Fields], *, original: str, code: str, where: str) -> dict[str, str]:
    table: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        texts = [row.get(original), row.get(code)]
        if any(text is not None and not isinstance(text, str) for text in texts):
            raise UserError(f"{where}, row {number}: {original!r} and {code!r} must be texts")
        request, text = ((value or "").strip() for value in texts)
        if request and text and table.setdefault(request, text) != text:
            raise UserError(f"{where}, row {number}: a second, different {code!r} text for the same request; keep one")
    return table


def _shift(code: str, table: Mapping[str, str]) -> Shift:
    def encode(request: str, rng: Random) -> Prompt | Missing:
        text = table.get(request.strip())
        return NO_TRANSLATION if text is None else Prompt.user(text)

    return Shift(
        f"translated_{code}", "language", "mismatched", encode, probe=_probe(code), needs=NEEDS,
        about=f"the user's own translation into {code}; judged in that language",
    )  # fmt: skip


def _probe(code: str) -> Callable[[Random], Probe] | None:
    """The sum or the product of two numbers, asked in the language; None for a language without questions."""
    if code not in _QUESTIONS:
        return None

    def probe(rng: Random) -> Probe:
        a, b = rng.sample(range(3, 10), 2)
        kind = rng.randrange(2)
        right, other = ((str(a + b), str(a * b))[i] for i in (kind, 1 - kind))

        def check(answer: str) -> bool:
            words = words_of(answer)
            return right in words and other not in words

        return Probe(Prompt.user(_QUESTIONS[code][kind].format(a=a, b=b)), check)

    return probe
