"""The over-optimisation curve from a file of scored samples: by hand, with what is missing, and as a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.errors import UserError
from evals.tables.overoptimisation import curve_table, scores_of
from recipes import cli


def rows(values: dict[str, list[tuple[Any, Any]]], **more: Any) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"f:{i}{j}", {"item": item, "p": p, "g": g, **more})
        for i, (item, samples) in enumerate(values.items())
        for j, (p, g) in enumerate(samples)
    ]


def read(found: list[tuple[str, dict[str, Any]]], **more: Any) -> Any:
    return scores_of(found, item="item", proxy="p", gold="g", **more)


def test_the_points_by_hand() -> None:
    """Gold is minus the proxy in a, the proxy in b. Best of 2 from {0, 1}: the 1; over one sample: +-1/2."""
    proxy, gold, counts = read(rows({"a": [(0, 0), (1, -1)], "b": [(0, 0), (1, 1)]}))
    assert counts == {"prompts": 2, "samples": 2, "missing": 0, "left_out": 0}
    table = curve_table(proxy, gold_PN=gold)
    one, two = table["points"]
    assert (one["n"], one["kl"], one["gold"]["value"], one["proxy"]) == (1, 0, 0, 0)
    assert two["n"] == 2 and two["kl"] == pytest.approx(np.log(2) - 1 / 2)
    assert two["proxy"] == 0.5 and two["gold"]["value"] == pytest.approx((-0.5 + 0.5) / 2)
    assert two["gap"]["value"] == pytest.approx(0.5) and table["fit"] is None and "at least 3" in table["fit_reason"]


def test_missing_samples_are_counted_and_every_prompt_has_as_many() -> None:
    values: dict[str, list[tuple[Any, Any]]] = {"a": [(0, 0), (1, 1), (2, 2)], "b": [(0, 0), (None, 1), (1, 1)]}
    with pytest.raises(UserError, match="1 of 6 samples lack 'p' or 'g'"):
        read(rows(values))
    proxy, _, counts = read(rows(values), max_missing=0.5)
    assert proxy == [[0, 1], [0, 1]] and counts == {"prompts": 2, "samples": 2, "missing": 1, "left_out": 1}
    with pytest.raises(UserError, match="prompt 'c' has 1 scored samples"):
        read(rows({"a": [(0, 0), (1, 1)], "c": [(0, 0)]}))
    for wrong in ("high", True):
        with pytest.raises(UserError, match="f:00: 'p' must be a number"):
            read(rows({"a": [(wrong, 0), (1, 1)]}))
    mixed = rows({"a": [(0, 0), (1, 1)]}, shift="none") + rows({"a": [(5, 5), (6, 6)]}, shift="base64")
    assert read(mixed)[0] == [[0, 1]] and read(mixed, shift="base64")[0] == [[5, 6]]
    with pytest.raises(UserError, match="no row has shift 'rot13'"):
        read(mixed, shift="rot13")


def test_the_command_from_a_file_to_numbers(
    tmp_path: Path, write_rows: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A proxy that agrees with gold up to a point and then turns: gold = proxy - .5 proxy^2 for a half-normal proxy."""
    rng = np.random.default_rng(0)
    proxies = np.abs(rng.normal(size=(30, 64)))
    content = [
        {"item": f"i{i}", "p": float(p), "g": float(p - 0.5 * p * p)} for i, mine in enumerate(proxies) for p in mine
    ]
    file = write_rows(tmp_path / "dump.jsonl", content)
    out = tmp_path / "curve.json"
    assert cli.main(["over-optimisation", str(file), "--proxy", "p", "--gold", "g", "--out", str(out)]) == 0
    table = json.loads(out.read_text())
    assert [p["n"] for p in table["points"]] == [1, 2, 4, 8, 16, 32, 64] and table["prompts"] == 30
    assert table["points"][-1]["proxy"] > 1 and table["points"][-1]["gold"]["value"] < 0 < table["fit"]["beta"]["value"]
    said = capsys.readouterr().out
    assert "30 prompts x 64 samples" in said and "gold peaks at d" in said
    for wrong, words in (
        (["--proxy", "q", "--gold", "g"], "no column 'q'"),
        (["--proxy", "p"], "gold is missing"),
        (["--proxy", "p", "--gold", "g", "--max-missing", "-0.1"], "max_missing is a share in [0, 1), not -0.1"),
        (["--proxy", "p", "--gold", "g", "--seed", "-1"], "seed must be at least 0"),
        (["--proxy", "p", "--gold", "g", "--out", str(file)], f"--out would overwrite {file}"),
        (["--proxy", "p", "--gold", "g", "--out", str(tmp_path)], f"{tmp_path} is a folder"),
        (["--proxy", "p", "--gold", "g", "--out", str(tmp_path / "x" / "o.json")], "x/o.json cannot be written: there"),
    ):
        assert cli.main(["over-optimisation", str(file), *wrong]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


def test_a_strangers_file_is_kept_and_the_commands_own_is_written_over(
    tmp_path: Path, write_rows: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rows(tmp_path / "dump.jsonl", [{"item": "i", "p": 0, "g": 0}, {"item": "i", "p": 1, "g": 1}])
    out = tmp_path / "curve.json"
    out.write_text('{"kind": "testbed", "provenance": {}}')
    words = ["over-optimisation", str(file), "--proxy", "p", "--gold", "g", "--out", str(out)]
    assert cli.main(words) == cli.main(words) == 0
    assert (tmp_path / "curve.json.replaced").read_text() == '{"kind": "testbed", "provenance": {}}'
    assert capsys.readouterr().err.count("it is kept as") == 1
    assert json.loads(out.read_text())["kind"] == "over-optimisation"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.json", "curve.json.replaced", "dump.jsonl"]
