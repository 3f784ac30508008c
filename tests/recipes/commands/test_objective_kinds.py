"""Every kind of objective by name, through the commands: two steps of morlhf, labels of pairs for dpo, scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from factories.tiny_bandit import PROMPTS, RESPONSES
from recipes.cli import main

STEPS = ["training.batch_size=8", "training.num_generations=4", "training.max_completion_length=3"]
FUNCTIONS = """
def length(prompts, completions, **kwargs):
    return [float(len(text.split())) for text in completions]

def graded(completions, answer):
    return [(2.0, {"right": float(a == t.strip()), "short": -float(len(t))}) for t, a in zip(completions, answer)]

graded.components = ("total", "right", "short")

def broken(completions):
    return [1 / 0 for _ in completions]

def late(completions):
    return [float("nan") for _ in completions]
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prompts.jsonl and pairs.jsonl of the bandit, each row with its `answer`, and functions.py."""
    folder = tmp_path_factory.mktemp("rows")
    answers = dict(zip(PROMPTS, ("A", "B"), strict=True))
    prompts = [{"id": str(i), "prompt": p, "answer": answers[p]} for i, p in enumerate(PROMPTS)]
    pairs = [
        {"id": f"{i}", "prompt": p, "chosen": f" {a}", "rejected": f" {b}", "answer": answers[p]}
        for i, (p, a, b) in enumerate((p, a, b) for p in PROMPTS for a in RESPONSES for b in RESPONSES if a < b)
    ]
    for name, made in (("prompts", prompts), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    (folder / "functions.py").write_text(FUNCTIONS)
    return folder


def finetune(method: str, reference: str, data: Path, out: Path, *objectives: str, **changes: Any) -> int:
    """`align finetune` in this process: two steps for morlhf, one pass over the pairs for dpo, at even weights."""
    words = [*changes.pop("settings", STEPS if method == "morlhf" else ["training.labels=objectives"])]
    words = [word for text in words for word in ("--set", text)]
    words += ["--max-steps", "2"] if method == "morlhf" else []
    weights = changes.pop("weights", None)
    words += [] if weights is None else ["--weights", *weights]
    return main(
        ["finetune", method, "--model", reference, "--data", str(data), "--out", str(out), *words, "--objectives",
         *objectives]
    )  # fmt: skip


def logged(run: Path) -> dict[str, float]:
    """The means of the objectives in the last logged step of the run's only point."""
    (log,) = run.glob("points/*/log.jsonl")
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    entry: Mapping[str, float] = next(entry for entry in reversed(entries) if "reward" in entry)
    return {k.split("/")[1]: v for k, v in entry.items() if k.startswith("rewards/") and k.endswith("/mean")}


def trains_and_labels(reference: str, rows: Path, out: Path, *objectives: str, count: int = 1) -> dict[str, float]:
    """Both commands on the same objectives; the means that morlhf logged."""
    weights = [",".join([str(1 / count)] * count)]
    assert finetune("morlhf", reference, rows / "prompts.jsonl", out / "rl", *objectives, weights=weights) == 0
    assert finetune("dpo", reference, rows / "pairs.jsonl", out / "dpo", *objectives, weights=weights) == 0
    ledger = json.loads((out / "rl" / "run.json").read_text())["ledger"]
    assert ledger["scores_read"] == 2 * 8 * count, "every score of two steps of 8 samples is charged"
    labelled = json.loads((out / "dpo" / "run.json").read_text())["ledger"]
    assert labelled["scores_read"] == 12 * (2 * count + 1), "both responses of 12 pairs, and a look at each pair"
    return logged(out / "rl")


def test_functions(many_tokens: str, rows: Path, tmp_path: Path) -> None:
    """One function of one score, and one of a total with two components, which are three objectives of one call."""
    file = rows / "functions.py"
    names = [f"long={file}:length", f"mine={file}:graded"]
    means = trains_and_labels(many_tokens, rows, tmp_path, *names, count=4)
    assert set(means) == {"long", "mine", "mine.right", "mine.short"} and means["mine"] == 2.0
    assert 0 <= means["mine.right"] <= 1 and means["mine.short"] < 0 < means["long"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("mine={}:missing", "has no function 'missing'; it has length, graded, broken, late"),
        ("mine=nowhere.py:f", "nowhere.py is no file"),
        ("mine={}:broken", "line 11: ZeroDivisionError"),
        ("mine={}:late", "gave nan"),
    ],
)
def test_a_faulty_function_is_one_line(
    spec: str, says: str, many_tokens: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = spec.format(rows / "functions.py")
    assert finetune("morlhf", many_tokens, rows / "prompts.jsonl", tmp_path / "rl", spec, weights=["1"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("align: error")]
    assert says in line


def test_a_column_that_no_row_has_is_named_before_training(
    many_tokens: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"prompt": "x :"}\n')
    spec = f"mine={rows / 'functions.py'}:graded"
    assert finetune("morlhf", many_tokens, bare, tmp_path / "rl", spec, weights=["1,0,0"]) == 2
    assert "bare.jsonl: no row has a column 'answer'" in capsys.readouterr().err
    assert finetune("morlhf", many_tokens, rows / "prompts.jsonl", tmp_path / "rl", spec, weights=["1"]) == 2
    assert "1 numbers for 3 objectives (mine, mine.right, mine.short)" in capsys.readouterr().err


def test_verifiers(many_tokens: str, rows: Path, tmp_path: Path) -> None:
    names = ["right=verifier:exact_match", "form=-verifier:json"]
    means = trains_and_labels(many_tokens, rows, tmp_path, *names, count=2)
    assert 0 <= means["right"] <= 1 and -1 <= means["form"] <= 0  # a minus before the source turns the sign
    out = tmp_path / "scores.jsonl"
    lines = [{"prompt": "p", "completion": " A", "answer": "A"}, {"prompt": "p", "completion": "1", "answer": "A"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["score", str(tmp_path / "rows.jsonl"), "--out", str(out), "--objectives", *names]) == 0
    scores = [json.loads(line)["scores"] for line in out.read_text().splitlines()]
    assert scores == [{"right": 1.0, "form": 0.0}, {"right": 0.0, "form": -1.0}]
