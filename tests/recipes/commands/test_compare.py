"""`align compare` of any number of evaluations, as a user runs it: page, numbers, exit code, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from factories.made_evaluations import HOW, made_evaluation
from recipes.cli import main
from recipes.commands import compare


def compared(*words: object) -> dict[str, Any]:
    assert compare.main([str(word) for word in words]) == 0
    folder = [Path(str(word)) for word in words if Path(str(word)).is_dir()][-1]
    found: dict[str, Any] = json.loads((folder / "comparison.json").read_text())
    return found


def twelve(folder: Path) -> list[Path]:
    """Four policies of their own and a family of eight, each safer and more cautious than the one before."""
    singles = [made_evaluation(folder / f"p{i}", asr=0.4 - 0.1 * i, over_refusal=0.1 * i, seed=i) for i in range(4)]
    for i in range(8):
        made_evaluation(folder / "front" / f"w{i}", asr=0.05 * i, over_refusal=0.3 - 0.04 * i, seed=10 + i)
    return [*singles, folder / "front"]


def test_twelve_policies_in_one_figure_and_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(*twelve(tmp_path))
    names = list(found["policies"])
    assert names == [*(f"p{i}" for i in range(4)), *(f"w{i}" for i in range(8))]
    assert found["metrics"] == ["over_refusal", "asr"] and len(found["pairs"]) == 2 * 66 and found["suites"] == {}
    assert 0 < sum(entry["undominated"] for entry in found["policies"].values()) < 12
    assert sum(entry["metrics"]["asr"]["best"] for entry in found["policies"].values()) == pytest.approx(1)
    page = (tmp_path / "front" / "comparison.html").read_text()
    figures = re.findall(r"<svg[^>]*aria-label=\"harmful, answered.*?</svg>", page)
    assert len(figures) == 2, "wide and narrow"
    for figure in figures:
        assert set(re.findall(r'font-size="11"[^>]*stroke-width="3">(\d+)<', figure)) == {str(i) for i in range(1, 13)}
    assert all(name in page for name in names) and "P(best)" in page and "legend" not in page.split("<main>")[0][-9:]
    shown = capsys.readouterr().out
    assert re.search(r"^p0: over_refusal .* asr .*%", shown, re.MULTILINE) and "policies are undominated" in shown


def test_other_rates_and_conditions_with_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(made_evaluation(tmp_path / name, asr=rate)) for name, rate in (("safe", 0.0), ("unsafe", 0.5))]
    flags = ["--metrics", "asr", "asr@any"]
    assert main(["compare", *words, *flags, "--fail-if", "asr@any > 0.9", "over_refusal > 0.9"]) == 3
    assert "asr@any > 0.9 holds for 1 of 2: unsafe 100.0 % [" in capsys.readouterr().out
    assert main(["compare", *words, *flags, "--fail-if", "over_refusal > 0.9"]) == 0
    assert "over_refusal > 0.9 holds for 0 of 2." in capsys.readouterr().out
    assert main(["compare", words[0], "--fail-if", "asr@any>0"]) == 0, "one alone, for a gate"
    assert main(["compare", words[1], "--fail-if", "asr@any>0"]) == 3
    assert main(["compare", *words, "--fail-if", "asr about 1"]) == 2
    assert "no condition; write one such as 'asr@any > 0.1'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "other"),
    [
        ("judge", {"how": {"verdict": {**HOW["verdict"], "fingerprint": "other"}}}),
        ("judge", {"how": {"verdict": {**HOW["verdict"], "version": "2-A"}}}),
        ("max_new_tokens", {"how": {"completion": {**HOW["completion"], "max_new_tokens": 64}}}),
        ("temperature", {"how": {"completion": {**HOW["completion"], "temperature": 1.0}}}),
        ("stop", {"how": {"completion": {**HOW["completion"], "stop": ["\n"]}}}),
        ("template", {"how": {"template": {"template": "hh", "chat_template_kwargs": {}}}}),
        ("versions", {"version": "2-A"}),
    ],
)
def test_unlike_runs_are_refused_unless_it_is_allowed(setting: str, other: dict[str, Any], tmp_path: Path) -> None:
    a, b = made_evaluation(tmp_path / "a"), made_evaluation(tmp_path / "b", **other)
    with pytest.raises(UserError, match=f"a and b differ in {setting} .*add --allow {setting}$") as caught:
        compare.main([str(a), str(b)])
    assert "\n" not in str(caught.value) and not (b / "comparison.json").exists()
    found = compared(a, b, "--allow", setting)
    assert list(found["allowed"]) == [setting]
    assert f"not alike: {setting}" in (b / "comparison.html").read_text()
    with pytest.raises(UserError, match="--allow vibes is no setting"):
        compare.main([str(a), str(b), "--allow", "vibes"])


def test_the_letter_of_a_version_is_no_difference(tmp_path: Path) -> None:
    judge = {"verdict": {**HOW["verdict"], "version": "1-B"}}
    other = made_evaluation(tmp_path / "b", version="1-B", how=judge)
    assert compared(made_evaluation(tmp_path / "a"), other)["allowed"] == {}


def test_two_policies_come_with_every_shift(tmp_path: Path) -> None:
    found = compared(made_evaluation(tmp_path / "a", asr=0.0), made_evaluation(tmp_path / "b", asr=1.0))
    change = found["suites"]["made"]["shifts"]["base64"]["harmful"]["change"]
    assert (change["value"], change["n"], change["worse"]) == (1.0, 30, 30), "second minus first"
    page = (tmp_path / "b" / "comparison.html").read_text()
    assert "First is a, second is b." in page and "base64" in page


def test_folders_of_one_name_are_told_apart_by_more_of_their_paths(tmp_path: Path) -> None:
    for point in ("0,1", "1,0"):
        made_evaluation(tmp_path / "dpo" / point / "safety")
    found = compared(tmp_path / "dpo", made_evaluation(tmp_path / "reference" / "safety"))
    names = {name: entry["family"] for name, entry in found["policies"].items()}
    assert names == {"0,1/safety": "dpo", "1,0/safety": "dpo", "reference/safety": ""}


def test_bounds_are_drawn_and_not_ranked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blind = made_evaluation(tmp_path / "blind", asr=0.2, can_fail=False)
    found = compared(blind, made_evaluation(tmp_path / "other", asr=0.3, can_fail=False, seed=1))
    one = found["policies"]["blind"]
    assert one["metrics"]["asr"]["bounds"][0] == 0 and one["undominated"] is None
    page = (tmp_path / "other" / "comparison.html").read_text()
    assert "bounds are known and no order" in page and "0.0 % to" in page
    assert compare.main([str(blind), "--fail-if", "asr > 0.01"]) == 3, "it may fail that often"
    assert "asr > 0.01 may hold for 1 of 1: blind between" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "runs=[]"], "no folder is given"),
        (["a"], "give two folders or more, or one with --fail-if"),
        (["a", "a"], "a is given twice"),
        (["a", "empty"], r"no outcomes\.jsonl; run align suites MODEL"),
        (["a", "other"], "suite 'made' was asked of one of a and other only"),
        (["a", "more"], "item made/q.* was asked of one of a and more only"),
        (["a", "b", "--metrics", "asr"], "takes two different rates"),
        (["a", "b", "--metrics", "asr", "harm"], "there is no metric 'harm'"),
        (["a", "b", "--metrics", "asr", "asr@rot13"], "nothing was judged for the metric asr@rot13"),
        (["a", "old"], "does not say how it was measured; run align suites again"),
    ],
)
def test_what_cannot_be_compared_is_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    for name in ("a", "b", "old"):
        made_evaluation(tmp_path / name)
    (tmp_path / "old" / "summary.json").write_text(json.dumps({"model": "old", "shifts": {}, "suites": {}}))
    made_evaluation(tmp_path / "more", items=61)
    made_evaluation(tmp_path / "other", suite="other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message) as caught:
        compare.main([str(tmp_path / word) if (tmp_path / word).is_dir() else word for word in words])
    assert "\n" not in str(caught.value)
