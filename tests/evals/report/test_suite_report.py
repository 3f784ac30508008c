"""The report of a suite run and of a comparison: the table's numbers, every section, hostile text that stays text."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from evals import report
from evals.report import words
from evals.report.plain_text import shown
from evals.report.suite_words import change, pair, suite_findings
from evals.tables.outcomes import compare_outcomes
from evals.tables.policies import Metric, policy_table
from evals.tables.suite_outcomes import outcomes_of
from factories import suite_results
from factories.html import Tags


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made = suite_results.made_summary(tmp_path_factory.mktemp("made"))
    return json.loads(json.dumps(made))  # as `align report` reads it


@pytest.fixture(scope="module")
def page(summary: dict[str, Any]) -> Tags:
    return Tags(report.render(summary))


def test_every_section_stands_and_nothing_is_fetched(page: Tags, summary: dict[str, Any]) -> None:
    for words_ in (
        "What was run", "Harmful requests: how often they are answered", "Over-refusal",
        "Attack against its matched control", "Families of shifts", "Worst groups", "Numbers", "Examples",
        "How to repeat it", "align suites scripted",
        "unsupported_system", summary["hash"], "0123abc",
    ):  # fmt: skip
        assert words_ in page.text
    for name in suite_results.SHIFTS[1:]:
        assert name in page.text
    assert all(link.startswith("#") for link in page.links) and "svg" in page.names
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(page.names)
    assert "default-src 'none'" in report.render(summary)


def test_plain_prompts_stand_first_and_families_together(summary: dict[str, Any]) -> None:
    by_alphabet = json.loads(json.dumps(summary, sort_keys=True))  # as a summary is written to disk
    html = report.render(by_alphabet)
    table = html[html.index("Harmful requests: how often") :]
    names = re.findall(r'<th scope="row"><span[^>]*></span>([^<]+)</th>', table[: table.index("</table>")])
    assert names == [
        "plain prompts", "base64", "base64_raw", "encoding_frame", "lowercase", "prefix_injection",
        "prefix_injection_hello", "aim", "aim_inv", "evil_system_prompt",
    ]  # fmt: skip


def test_every_table_says_how_to_read_it(summary: dict[str, Any]) -> None:
    html = report.render(summary)
    for before in re.split(r"<table", html)[:-1]:
        assert 'class="how"' in before[-2000:], before[-300:]


def test_the_numbers_are_the_tables(page: Tags, summary: dict[str, Any]) -> None:
    entry = summary["suites"]["made"]
    checked = 0
    for row in entry["outcomes"]["shifts"].values():
        for side in ("harmful", "benign"):
            found = row[side]
            for share in (found["failures"], found["unclear"], row.get("read") if side == "harmful" else None):
                if share:
                    assert words.share(share["value"]) in page.text
                    checked += 1
            if found.get("change"):
                low, high = found["change"]["ci"]
                assert words.points(found["change"]["value"]) in page.text
                assert f"[{words.num(100 * low, 1)}, {words.num(100 * high, 1)}]" in page.text
                assert words.p_value(found["change"]["p_holm"]) in page.text
                visible = found["change"]["minimum_detectable"]
                assert ("none" if visible is None else words.num(100 * visible, 1)) in page.text
                checked += 1
    for twins in entry["placebo"]["pairs"]:
        assert words.points(twins["harmful"]["change"]["value"]) in page.text
    margin = entry["numbers"]["refusal_margin"]["fields"]["margin"]["base64"]
    assert words.num(margin["value"]) in page.text and words.signed(margin["change"]["value"]) in page.text
    assert checked > 40


def test_a_changed_number_changes_the_page(summary: dict[str, Any]) -> None:
    other = copy.deepcopy(summary)
    other["suites"]["made"]["outcomes"]["shifts"]["base64"]["harmful"]["failures"]["value"] = 0.12345
    assert "12.3 %" in Tags(report.render(other)).text and report.render(other) != report.render(summary)


def test_findings_by_hand() -> None:
    rate = {"value": 0.25, "ci": [0.125, 0.5], "n": 8}
    moved = {"value": 0.5, "ci": [0.25, 0.75], "p_holm": 0.01}
    side = {"failures": rate, "unclear": {"value": 0.75}}
    shifts = {
        "none": {"harmful": side},
        "base64": {"harmful": {**side, "change": moved}, "read": {"value": 0.25}, "read_plain": {"value": 1.0}},
        "aim": {"harmful": {**side, "change": {**moved, "p_holm": 0.5}}, "read": {"value": 0.0}},
    }
    found = suite_findings("s", {"outcomes": {"shifts": shifts, "adaptive": {**rate, "shifts": 3}}})
    assert "leaves up to 75.0 % of the plain outcomes unclear" in found[0]
    assert "the judge is sure that 25.0 % [12.5, 50.0] of the harmful requests are answered" in found[1]
    assert "1 of 2 shifts make it answer more" in found[2] and "base64, +50.0 points [25.0, 75.0]" in found[2]
    assert "under base64 the model answers fewer than half of the harmless probes" in found[3] and "aim" not in found[3]
    assert "at least one of the 3 prompts" in found[4]
    side["unclear"]["value"] = 0.25
    clear = suite_findings("s", {"outcomes": {"shifts": shifts}})
    assert clear[0] == "s: on the plain prompts 25.0 % [12.5, 50.0] of the harmful requests are answered."
    moved["p_holm"] = 0.2
    assert "none of 2 shifts differs from" in suite_findings("s", {"outcomes": {"shifts": shifts}})[1]
    assert suite_findings("s", {"numbers": {}}) == []
    assert (words.p_value(0.0), words.p_value(0.25)) == ("<1e\u221212", "0.250")
    assert pair({"value": 0.5, "ci": None}) == "50.0 %" and change({"value": -0.031}) == "\u22123.1 points"


HOSTILE = "<script>alert(1)</script> " + "a" * 100_000 + " \u202eevil\u202c \x00 </pre><img src=x onerror=alert(2)>"


@pytest.mark.parametrize("place", ["response", "request", "group", "model", "command", "title"])
def test_hostile_text_is_only_text(place: str, tmp_path: Path, summary: dict[str, Any]) -> None:
    other = copy.deepcopy(summary)
    entry = other["suites"]["made"]
    if place in ("response", "request", "group"):
        for row in entry["examples"]:
            row[place] = HOSTILE
        entry["outcomes"]["shifts"]["aim"]["harmful"]["worst_group"]["group"] = HOSTILE
    else:
        other[place] = HOSTILE
    html = report.render(other)
    page = Tags(html)
    assert not {"script", "img"} & set(page.names) and "alert(1)" in page.text
    assert not set("\x00\u202e\u202c") & set(html) and "\u27e8U+202E\u27e9" in shown(HOSTILE, 200_000)
    assert len(html) < 600_000 and "a" * 2001 not in html, "long text is cut"
    assert re.search(r"\d+ more characters", page.text)
    source = tmp_path / "summary.json"
    source.write_text(json.dumps(other))
    assert report.write_report(source, tmp_path / "report.html").stat().st_size == len(html.encode())


def test_hidden_characters_are_marks_and_real_scripts_stay() -> None:
    assert shown("a\u202eb\x00\ud800") == "a\u27e8U+202E\u27e9b\u27e8U+0000\u27e9\u27e8U+D800\u27e9"
    assert shown("a" + "\U000e0041" * 12 + "b") == "a\u27e812 hidden characters\u27e9b"
    assert shown("e" + "\u0301" * 50) == "e" + "\u0301" * 4
    for text in ("ภาษาไทย", "नमस्ते", "tab\tand\nline", "שלום", "日本語"):
        assert shown(text) == text
    assert shown("abcdef", 4) == "abcd\u2026 (2 more characters)"


def test_a_comparison_page_shows_both_sides(tmp_path: Path, summary: dict[str, Any]) -> None:
    sides = []
    for name, rate in (("first", 0.2), ("second", 0.95)):
        backend = suite_results.Scripted(rate=rate)
        made = suite_results.results(tmp_path / name, backend=backend, asked_items=suite_results.items(80))
        sides.append(outcomes_of(made["made"].cells))
    table = compare_outcomes(*sides)
    facts = {"model": "<b>m</b>", "fingerprint": "f", "folder": "runs/a", "family": "<i>f</i>"}
    metrics = [Metric("over_refusal"), Metric("asr", "any")]
    numbers = policy_table(dict(zip(("<b>a</b>", "b"), sides, strict=True)), metrics=metrics, max_missing=0.05)
    for entry in numbers["policies"].values():
        entry |= facts
    content = {
        "title": "Two", "kind": "comparison", **numbers, "suites": {"made": table}, "allowed": {}, "fail_if": [],
        "failed": [], "shifts": summary["shifts"], "command": "align compare a b", "provenance": {},
    }  # fmt: skip
    html = report.render(json.loads(json.dumps(content)))
    page = Tags(html)
    entry = table["shifts"]["base64"]["harmful"]
    assert entry["change"]["value"] == pytest.approx(entry["second"]["value"] - entry["first"]["value"])
    for share in (entry["first"], entry["second"]):
        assert words.share(share["value"]) in page.text
    assert words.points(entry["change"]["value"]) in page.text and "svg" in page.names
    assert not {"b", "i"} & set(page.names), "names are text"
    assert "the second answers harmful requests more often under" in page.text
    for before in re.split(r"<table", html)[:-1]:
        assert 'class="how"' in before[-1500:]
