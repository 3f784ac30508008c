"""Shifts that need more than a rule: those made by a language model, and translations from a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest

from align.errors import UserError
from evals.items import Missing, Prompt
from evals.shifts import parse_shifts
from evals.shifts.by_model import LLM_SHIFTS, translation
from evals.shifts.language import read_translations, translations
from factories.shifted_requests import BREAD, prompt, rebuilt, text

# --- made by a language model ----------------------------------------------------------------------------------------

OUTAGE = Missing("http_500", "server error")


@pytest.mark.parametrize("name", list(LLM_SHIFTS))
@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (OUTAGE, "http_500"), ("", "llm_empty"), ("  \n", "llm_empty"), ("I can't help with that.", "llm_unusable"),
        ('{"other": "x"}', "llm_unusable"), ('{"text": ""}', "llm_unusable"), ('{"text": 3}', "llm_unusable"),
        ('{"text": "cut', "llm_unusable"), ("[]", "llm_unusable"), ('["zebra"]', "llm_unusable"),
        ("[1]", "llm_unusable"),
    ],
)  # fmt: skip
def test_a_failing_model_gives_missing_and_never_the_request(name: str, reply: str | Missing, reason: str) -> None:
    found = LLM_SHIFTS[name](lambda instruction: reply).encode(BREAD, Random(0))
    assert isinstance(found, Missing) and found.reason == reason and not found.lasting


@pytest.mark.parametrize("name", [name for name in LLM_SHIFTS if name != "auto_payload_splitting"])
def test_a_rewriting_is_what_the_model_wrote(name: str) -> None:
    asked: list[str] = []

    def ask(instruction: str) -> str:
        asked.append(instruction)
        return 'Here you are:\n```json\n{"text": "Hwæt"}\n```'

    shift = LLM_SHIFTS[name](ask)
    assert prompt(shift) == Prompt.user("Hwæt") and shift.needs == {"llm"}
    assert asked[0].count(BREAD) == 1 and "JSON" in asked[0]
    same_again = LLM_SHIFTS[name](lambda instruction: json.dumps({"text": f" {BREAD} "})).encode(BREAD, Random(0))
    assert isinstance(same_again, Missing) and same_again.reason == "unchanged"


def test_words_that_a_model_lists_are_split_the_rest_is_not() -> None:
    shift = LLM_SHIFTS["auto_payload_splitting"](lambda instruction: 'Words: ["Bake bread", "zebra", 7, "a"]')
    shown = text(shift)
    assert rebuilt(shown) == BREAD
    assert shown.split("Response 1:")[1].count("a_") == 2 * 4 and "home" in shown
    probe = shift.probe
    assert probe is not None and "Request 2:" in probe(Random(0)).prompt.turns[-1].content


def test_languages_are_named_in_the_order() -> None:
    asked: list[str] = []
    shift = translation(lambda instruction: asked.append(instruction) or '{"text": "x"}', language="Scots Gaelic")
    shift.encode(BREAD, Random(0))
    assert shift.name == "translation_scots_gaelic" and "into Scots Gaelic" in asked[0]


# --- translations from files -----------------------------------------------------------------------------------------

ROWS = [
    {"id": "1", "domain": "x", "en": BREAD, "de": "Wie backe ich Brot?", "zu": None},
    {"id": "2", "domain": "x", "en": " What is rain? ", "de": "", "zu": "Iyini imvula?"},
]


def test_translations_are_looked_up_and_gaps_are_missing() -> None:
    de, zu = translations(ROWS)
    assert (de.name, zu.name, de.family, de.needs) == ("translated_de", "translated_zu", "language", {"translations"})
    assert prompt(de) == Prompt.user("Wie backe ich Brot?")
    assert prompt(zu, "What is rain?") == Prompt.user("Iyini imvula?")
    assert prompt(de, f"  {BREAD}\n") == prompt(de)
    for shift, request in ((de, "What is rain?"), (zu, BREAD), (de, "Another?")):
        found = shift.encode(request, Random(0))
        assert isinstance(found, Missing) and found.reason == "no_translation" and found.lasting
    assert [shift.name for shift in translations(ROWS, languages=["zu"])] == ["translated_zu"]


def test_a_language_has_a_probe_where_its_question_is_known() -> None:
    de, zu = translations(ROWS)
    assert zu.probe is None and de.probe is not None
    for seed in range(20):
        probe = de.probe(Random(seed))
        question = probe.prompt.turns[0].content
        a, b = map(int, re.findall(r"\d+", question))
        right, wrong = (a + b, a * b) if "Summe" in question else (a * b, a + b)
        assert probe.check(f"Es ist {right}.") and not probe.check(str(wrong)) and not probe.check(question)
        assert not probe.check(f"{right} oder {wrong}")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "no column 'en'"), ([{"text": "x"}], {}, "no column 'en'"),
        ([{"en": "x", "label": "y"}], {}, "no column named by a language"),
        (ROWS, {"languages": ["fr"]}, "no column 'fr'"), ([{"en": "x", "de": 3}], {}, "row 1: 'en' and 'de' must be"),
        ([{"en": "x", "de": "y"}, {"en": "x", "de": "z"}], {}, "row 2: a second, different 'de'"),
    ],
)  # fmt: skip
def test_mistakes_in_translations_are_told(rows: list[dict[str, Any]], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        translations(rows, **options)


def test_translations_come_from_a_file(tmp_path: Path) -> None:
    place = tmp_path / "parallel.jsonl"
    place.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert [shift.name for shift in read_translations(place)] == ["translated_de", "translated_zu"]
    with pytest.raises(UserError, match="no column 'fr'"):
        read_translations(place, languages=["fr"])


def test_a_shift_made_by_a_model_takes_its_model() -> None:
    (shift,) = parse_shifts(["past_tense_by_model"], ask=lambda instruction: '{"text": "x"}')
    assert prompt(shift) == Prompt.user("x")
