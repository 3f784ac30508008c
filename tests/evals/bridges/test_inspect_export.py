"""The Inspect export: read back by inspect_ai it has the same numbers, and what is Missing is unscored."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from evals.bridges.inspect_export import write_inspect_log

INSPECT = "inspect_ai is not installed (pip install 'align-tradeoffs[inspect]')"


def row(
    item: str, shift: str = "none", *, verdict: str | None = None, missing: Mapping[str, str] | None = None,
    label: str = "harmful", sample: int = 0, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """A flat row as `evals.tables.export.full_rows` makes them."""
    place = {"suite": "baking", "item": item, "shift": shift, "sample": sample, "label": label, "group": "bread"}
    turns = [["system", "Be brief."], ["user", f"Bake {item}"]]
    asked = {"request": f"How do I bake {item}?", "prompt": json.dumps(turns)}
    found: dict[str, Any] = {f"{name}.missing": reason for name, reason in (missing or {}).items()}
    if "completion.missing" not in found:
        found |= {"completion.text": "1. Mix <script>", "completion.tokens": 4, "completion.finished": False}
        found |= {"response": "Mix"}
    if verdict is not None:
        found |= {"verdict.verdict": verdict, "verdict.why": "it mixes", "verdict.score": None}
    return {"model": "tiny", "fingerprint": "f00d", "family": "none", "mode": "none", **place, **asked, **found, **more}


ROWS = [
    row("a", verdict="GOOD"), row("b", verdict="BAD"), row("c", verdict="BAD"), row("d", verdict="UNCLEAR"),
    row("e", verdict="BAD", label="benign"), row("f", verdict="GOOD", label="benign"),
    row("a", "rot13", verdict="BAD"), row("b", "rot13", missing={"completion": "http_429", "verdict": "http_429"}),
]  # fmt: skip


def written(rows: list[dict[str, Any]], folder: Path, **options: Any) -> Any:
    log = pytest.importorskip("inspect_ai.log", reason=INSPECT)
    return log.read_eval_log(str(write_inspect_log(rows, folder / "baking.eval", **options)))


def rates(log: Any, name: str = "verdict") -> dict[tuple[str, str], float]:
    score = next(score for score in log.results.scores if score.name == name)
    return {(metric.group, metric.name): metric.value for metric in score.metrics.values()}


def test_rates_per_shift_are_read_back(tmp_path: Path) -> None:
    """4 harmful items, 2 of them BAD; 2 benign ones, 1 BAD; 1 UNCLEAR of 6."""
    found = rates(written(ROWS, tmp_path))
    plain = {name: value for (shift, name), value in found.items() if shift == "none"}
    assert plain == pytest.approx({"asr": 2 / 4, "over_refusal": 1 / 2, "unclear": 1 / 6, "missing": 0.0})


def test_a_shift_with_too_many_missing_has_no_rate(tmp_path: Path) -> None:
    found = rates(written(ROWS, tmp_path))
    assert {name: value for (shift, name), value in found.items() if shift == "rot13"} == {"missing": 0.5}
    allowed = rates(written(ROWS, tmp_path, max_missing=0.5))
    assert allowed[("rot13", "asr")] == 1.0  # of the one that is scored, not of both


def test_missing_is_unscored_with_its_reason_and_never_a_value(tmp_path: Path) -> None:
    log = written(ROWS, tmp_path)
    samples = {sample.id: sample for sample in log.samples}
    lost = samples["b | rot13"]
    assert math.isnan(lost.scores["verdict"].value) and lost.scores["verdict"].reason == "http_429"
    assert lost.metadata["missing"] == {"completion": "http_429", "verdict": "http_429"}
    assert not lost.output.completion and [message.role for message in lost.messages] == ["system", "user"]
    assert (log.results.completed_samples, log.results.total_samples) == (7, 8)
    assert (log.results.scores[0].scored_samples, log.results.scores[0].unscored_samples) == (7, 1)


def test_a_sample_holds_what_was_asked_answered_and_judged(tmp_path: Path) -> None:
    log = written([row("a", verdict="GOOD"), row("a", verdict="BAD", sample=1)], tmp_path)
    first, second = sorted(log.samples, key=lambda sample: sample.epoch)
    assert (first.id, first.epoch, second.id, second.epoch) == ("a | none", 1, "a | none", 2)
    assert [(m.role, m.content) for m in first.input] == [("system", "Be brief."), ("user", "Bake a")]
    assert first.output.completion == "1. Mix <script>" and first.output.stop_reason == "max_tokens"
    assert (first.scores["verdict"].value, second.scores["verdict"].value) == ("GOOD", "BAD")
    assert (first.scores["verdict"].answer, first.scores["verdict"].explanation) == ("Mix", "it mixes")
    assert first.target == "harmful" and first.metadata["request"] == "How do I bake a?"
    assert (log.eval.task, log.eval.model, log.eval.metadata["fingerprint"]) == ("baking", "align/tiny", "f00d")


def test_other_measurements_are_scores_too(tmp_path: Path) -> None:
    rows = [
        row("a", **{"choices.correct": True, "choices.logprobs": [-1.0, -2.0], "bits.bits": 3.5, "bits.bytes": 2}),
        row("b", **{"choices.correct": False, "choices.logprobs": [-3.0, -2.0], "bits.missing": "context"}),
    ]
    log = written(rows, tmp_path, max_missing=0.5)
    a, b = log.samples
    assert (a.scores["choices"].value, b.scores["choices"].value) == (True, False)
    assert a.scores["choices"].metadata["logprobs"] == [-1.0, -2.0]
    assert a.scores["bits"].value == {"bits": 3.5, "bytes": 2} and b.scores["bits"].reason == "context"
    assert rates(log, "choices") == {("none", "missing"): 0.0, ("none", "mean"): 0.5}
    margins = [row(item, **{"refusal_margin.margin": value}) for item, value in (("a", -3.0), ("b", 1.0))]
    log = written(margins, tmp_path)
    assert [sample.scores["refusal_margin"].value for sample in log.samples] == [-3.0, 1.0]
    assert rates(log, "refusal_margin") == {("none", "missing"): 0.0, ("none", "mean"): -1.0}


@pytest.mark.parametrize("name", ["completion", "verdict"])
def test_an_outage_is_no_success(tmp_path: Path, name: str) -> None:
    rows = [row(item, missing={name: "http_401", "verdict": "http_401"}) for item in "ab"]
    log = written(rows, tmp_path)
    assert log.status == "error" and name in log.error.message
    assert written(ROWS, tmp_path).status == "success"
    unread = [row("a", verdict="GOOD", missing={"comprehension": "no_probe"})]
    assert written(unread, tmp_path).status == "success"  # plain prompts have no probe, which is no outage


def test_a_prompt_that_a_shift_could_not_make_shows_the_request(tmp_path: Path) -> None:
    rows = [row("a", verdict="GOOD"), row("b", missing={"completion": "no_translation"}, prompt=None)]
    sample = written(rows, tmp_path).samples[1]
    assert sample.input == "How do I bake b?" and sample.metadata["missing"] == {"completion": "no_translation"}


def test_rows_of_two_models_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai.log", reason=INSPECT)
    other = {**ROWS[0], "model": "another"}
    with pytest.raises(UserError, match="rows of 2 suites or models"):
        write_inspect_log([*ROWS, other], tmp_path / "x.eval")
    with pytest.raises(UserError, match="rows of 0 suites"):
        write_inspect_log([], tmp_path / "x.eval")


def test_without_the_extra_the_mend_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with pytest.raises(UserError, match=r"pip install 'align-tradeoffs\[inspect\]'"):
        write_inspect_log(ROWS, tmp_path / "x.eval")
