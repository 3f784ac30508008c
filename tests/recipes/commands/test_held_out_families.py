"""The transfer matrix by hand: rows by what was trained, columns by what is measured, gaps paired by item."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.errors import UserError
from evals.tables.outcomes import Outcome
from evals.tables.under_shift.heldout_families import transfer_matrix
from factories.outcomes import rows
from recipes import cli

NONE, A, B = frozenset[str](), frozenset({"a"}), frozenset({"b"})
FAMILIES = {"s1": "a", "s2": "a", "t": "b"}


def evaluation(s1: str, s2: str, t: str, *, plain: str = "GGGG") -> list[Outcome]:
    return rows("none", plain) + rows("s1", s1) + rows("s2", s2) + rows("t", t) + rows("control", "BBBB")


EVALUATIONS = {
    NONE: evaluation("BBBB", "BBBB", "BBGG"),
    A: evaluation("GGGG", "BGGG", "BBGG"),
    B: evaluation("BBGG", "BBBG", "GGGG"),
}


def test_rates_and_what_was_held_out() -> None:
    """Family a averages an item's two shifts first: 1, 1/8 and 5/8; controls are in no column."""
    matrix = transfer_matrix(EVALUATIONS, families=FAMILIES)
    assert matrix["columns"] == ["none", "a", "b"] and [row["trained"] for row in matrix["rows"]] == [[], ["a"], ["b"]]
    values = [[row["cells"][c]["value"] for c in matrix["columns"]] for row in matrix["rows"]]
    assert values == [[0, 1, 0.5], [0, 0.125, 0.5], [0, 0.625, 0]]
    held = [[row["cells"][c]["held_out"] for c in matrix["columns"]] for row in matrix["rows"]]
    assert held == [[False, True, True], [False, False, True], [False, True, False]]


def test_the_gap_is_held_out_minus_seen_item_by_item() -> None:
    """a: held out in NONE (1, 1, 1, 1) and B (1, 1, 1/2, 0), seen in A (1/2, 0, 0, 0): means 13/16 and 1/8."""
    found = transfer_matrix(EVALUATIONS, families=FAMILIES)
    a = found["transfer"]["a"]
    assert (a["seen"], a["held_out"]) == (0.125, pytest.approx(13 / 16))
    assert a["change"]["value"] == pytest.approx(13 / 16 - 1 / 8) and a["change"]["n"] == 4
    assert found["curve"] == {"0": pytest.approx((1 + 0.5) / 2), "1": pytest.approx((0.5 + 0.625) / 2)}
    two = transfer_matrix({NONE: EVALUATIONS[NONE], B: EVALUATIONS[B]}, families=FAMILIES)
    assert two["transfer"]["a"]["seen"] is None and two["transfer"]["a"]["change"] is None


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match="two evaluations or more"):
        transfer_matrix({A: EVALUATIONS[A]}, families=FAMILIES)
    with pytest.raises(UserError, match="trained on a differs in item h3 under shift t"):
        short = [o for o in EVALUATIONS[A] if (o.item, o.shift) != ("h3", "t")]
        transfer_matrix({NONE: EVALUATIONS[NONE], A: short}, families=FAMILIES)
    with pytest.raises(UserError, match="'c' was trained on but not measured"):
        transfer_matrix({NONE: EVALUATIONS[NONE], frozenset({"c"}): EVALUATIONS[A]}, families=FAMILIES)
    with pytest.raises(UserError, match=r"trained on a, b: 50% of the verdicts are missing \(http_500 2\)"):
        transfer_matrix({NONE: EVALUATIONS[NONE], A: evaluation("GGGG", "GGGG", "MMGG")}, families=FAMILIES)


def test_the_command_reads_what_suites_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    modes = {"none": ("none", "none"), "s1": ("a", "both"), "s2": ("a", "both"), "t": ("b", "both")}
    facts = {s: {"family": f, "mode": m} for s, (f, m) in (modes | {"control": ("a", "control")}).items()}
    for label, found in EVALUATIONS.items():
        folder = tmp_path / ("-".join(label) or "none")
        folder.mkdir()
        lines = [json.dumps({**vars(o), "suite": "s", "missing": None}) + "\n" for o in found]
        (folder / "outcomes.jsonl").write_text("".join(lines))
        (folder / "summary.json").write_text(json.dumps({"shifts": facts}))
    names = [f"{name}={tmp_path / name}" for name in ("none", "a", "b")]
    assert cli.main(["held-out-families", *names, "--out", str(tmp_path / "m.json")]) == 0
    said = capsys.readouterr().out
    assert "12.5 " in said and "62.5*" in said and "a: held out minus trained on +68.8 points" in said
    written = json.loads((tmp_path / "m.json").read_text())
    assert (written.pop("kind"), written.pop("provenance")["seed"]) == ("held-out-families", 0)
    assert written == transfer_matrix(EVALUATIONS, families=FAMILIES)
    (tmp_path / "a" / "m.json").write_text("precious")
    assert cli.main(["held-out-families", *names, "--out", str(tmp_path / "a" / "m.json")]) == 0
    assert (tmp_path / "a" / "m.json.replaced").read_text() == "precious"
    assert "m.json was written by something else" in capsys.readouterr().err
    for wrong, words in (
        ([names[0], names[0]], "two evaluations"),
        ([str(tmp_path)], "FAMILY=FOLDER"),
        ([names[0], f"a={tmp_path}"], "no such file"),
        ([*names, "--suite", "x"], "no suite 'x'"),
        ([*names, "--max-missing", "1"], "a share in"),
        ([*names, "--out", str(tmp_path / "a" / "summary.json")], "would overwrite"),
        ([*names, "--out", str(tmp_path / "x" / "m.json")], f"{tmp_path}/x/m.json cannot be written"),
    ):
        assert cli.main(["held-out-families", *wrong]) == 2
        told = capsys.readouterr().err
        assert words in told and told.count("\n") == 1
