"""Bad files and models: one line that names the place and the fix, exit code 2, nothing left that looks finished."""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest

from factories.commands import run_forked
from factories.refusals import Rows, refused


def test_missing_file(capsys: Any, tiny_model: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.jsonl"
    error = refused(capsys, tmp_path / "out", "sft", "--model", tiny_model, "--data", gone)
    assert f"{gone}: no such file" in error and "check the path" in error


def test_truncated_gzip(capsys: Any, tiny_model: Path, tiny_rows: Rows, tmp_path: Path) -> None:
    whole = gzip.compress(tiny_rows["demonstrations"].read_bytes())
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    error = refused(capsys, tmp_path / "out", "sft", "--model", tiny_model, "--data", cut)
    assert str(cut) in error and "gzip" in error


def test_invalid_json_names_the_line(capsys: Any, tiny_model: Path, tiny_rows: Rows, tmp_path: Path) -> None:
    lines = tiny_rows["demonstrations"].read_text().splitlines()
    lines[4] = lines[4][:-3]
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join(lines) + "\n")
    error = refused(capsys, tmp_path / "out", "sft", "--model", tiny_model, "--data", broken)
    assert str(broken) in error and "5" in error.replace(str(broken), "") and "JSON" in error


def test_missing_column(capsys: Any, tiny_rows: Rows, tmp_path: Path) -> None:
    error = refused(capsys, tmp_path / "out", "pretrain", "--data", tiny_rows["prompts"])
    assert str(tiny_rows["prompts"]) in error and "'text'" in error


@pytest.mark.parametrize(
    ("command", "kind", "column"),
    [("sft", "demonstrations", "completion"), ("reward-model", "comparisons", "rejected")],
)
def test_empty_completion_names_the_row(
    command: str, kind: str, column: str, capsys: Any, tiny_model: Path, tiny_rows: Rows, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in tiny_rows[kind].read_text().splitlines()]
    rows[6][column] = "  "
    file = tmp_path / "empty.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    error = refused(capsys, tmp_path / "out", command, "--model", tiny_model, "--data", file)
    assert str(file) in error and "7" in error.replace(str(file), "") and "empty" in error


def test_model_directory_without_tokenizer(capsys: Any, tiny_model: Path, tiny_rows: Rows, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_model / name, bare)
    error = refused(capsys, tmp_path / "out", "sft", "--model", bare, "--data", tiny_rows["demonstrations"])
    assert f"{bare} has no tokenizer; save one there" in error


def test_damaged_weights(capsys: Any, tiny_model: Path, tiny_rows: Rows, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_model, damaged)
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    error = refused(capsys, tmp_path / "out", "sft", "--model", damaged, "--data", tiny_rows["demonstrations"])
    assert f"no model could be read from {damaged}" in error


def test_an_interrupted_run_is_not_taken_for_a_finished_one(capsys: Any, tiny_rows: Rows, tmp_path: Path) -> None:
    (tmp_path / "sft.partial").mkdir()
    data = tiny_rows["demonstrations"]
    error = refused(capsys, tmp_path / "out", "sft", "--model", tmp_path / "sft", "--data", data)
    assert "sft was interrupted before it finished; run its command again" in error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such summary"),
        ('{"methods": ', "not valid JSON"),
        ("{}", "no 'title'; write summary.json with align evaluate or align suites"),
    ],
)
def test_report_of_no_summary(content: str | None, words: str, capsys: Any, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    error = refused(capsys, tmp_path / "report.html", "report", tmp_path)
    assert words in error and "summary" in error


def test_text_that_is_none_names_file_and_line(capsys: Any, tiny_rows: Rows, tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text(tiny_rows["text"].read_text() + '{"text": 5}\n')
    error = refused(capsys, tmp_path / "out", "pretrain", "--data", file)
    assert f"{file} line 49: column 'text' is int" in error


@pytest.mark.parametrize("line", ['{"n": ' + "1" * 5000 + "}", '{"n": ' + "[" * 100_000])
def test_json_that_python_cannot_hold(line: str, capsys: Any, tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(line + "\n")
    error = refused(capsys, tmp_path / "out", "sft", "--model", tiny_model, "--data", file)
    assert f"{file} line 1: " in error


def test_a_checkpoint_that_lacks_weights_is_not_completed_at_random(
    capsys: Any, tiny_model: Path, tiny_rows: Rows, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    kept = {k: v for k, v in load_file(broken / "model.safetensors").items() if "q_proj" not in k}
    save_file(kept, broken / "model.safetensors", metadata={"format": "pt"})
    data = {"sft": tiny_rows["demonstrations"], "reward-model": tiny_rows["comparisons"]}
    for command, rows in data.items():
        error = refused(capsys, tmp_path / command, command, "--model", broken, "--data", rows)
        assert f"{broken} lacks 2 weights of its model" in error


def test_a_reward_model_is_no_policy(capsys: Any, tiny_model: Path, tiny_rows: Rows, tmp_path: Path) -> None:
    from align.models import load_scorer, load_tokenizer, save_model

    tokenizer = load_tokenizer(tiny_model)
    scorer = load_scorer(tiny_model, pad_token_id=0, eos_token_id=1)
    save_model(scorer, tokenizer, tmp_path / "scorer")
    data = tiny_rows["demonstrations"]
    error = refused(capsys, tmp_path / "out", "sft", "--model", tmp_path / "scorer", "--data", data)
    assert "is a reward model (a classifier), not a language model" in error


def test_a_diverged_model_does_not_look_finished(
    capsys: Any, tiny_model: Path, tiny_rows: Rows, tmp_path: Path
) -> None:
    arguments = ["--model", tiny_model, "--data", tiny_rows["demonstrations"], "--limit", "8", "--max-steps", "3"]
    huge = ["--set", "training.learning_rate=1e30", "--set", "training.warmup=0"]
    assert "training diverged" in refused(capsys, tmp_path / "out", "sft", *arguments, *huge)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a": " "}, "line 4: column 'a' is missing, empty or not text"),
        ({"b": 5}, "line 4: column 'b' is missing, empty or not text"),
        ({"prompt": None}, "line 4: column 'prompt' is missing, empty or not text"),
        ({"scores_a": [1.0, float("nan")]}, "comparison 3: scores_a is [1.0, nan]"),
        ({"scores_b": "12"}, "comparison 3: scores_b is '12'"),
        ({"u": "x"}, "comparison 3: u or u_k is no draw"),
        ({"prompt": "bread " * 200}, "the longest comparison"),
    ],
)
def test_bad_judged_rows(change: dict[str, Any], words: str, capsys: Any, tiny_model: Path, tmp_path: Path) -> None:
    one = {"prompt": "tea :", "a": " sure", "b": " sorry", "scores_a": [1.0, 0.0], "scores_b": [0.0, 1.0], "u": 0.5}
    rows = [{"id": str(i), **one, **(change if i == 3 else {})} for i in range(5)]
    file = tmp_path / "judged.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["finetune", "dpo", "--model", tiny_model, "--data", file, "--objectives", "x=length", "y=length"]
    arguments += ["--weights", "0.5,0.5", "--set", "training.labels=scalarised"]
    assert words in refused(capsys, tmp_path / "out", *arguments)


@pytest.mark.parametrize("content", ['{"title": "t", "kind": "sampled", "methods": {"a": 3}}', "[" * 100_000])
def test_a_damaged_summary(content: str, capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(content)
    assert "run the evaluation again" in refused(capsys, tmp_path / "report.html", "report", tmp_path)


def test_disk_full_while_a_checkpoint_is_written(tiny_model: Path, tiny_rows: Rows, tmp_path: Path) -> None:
    """A file-size limit below the size of the weights stands in for the full disk; with space again the run resumes."""
    out = tmp_path / "sft"
    words = ["sft", "--model", tiny_model, "--data", tiny_rows["demonstrations"], "--out", out, "--max-steps", "2"]
    steps = ["--set", "training.save_steps=1", "--set", "training.batch_size=8"]
    command = [*map(str, words), *steps]
    size = os.path.getsize(tiny_model / "model.safetensors")

    def fill_up() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))

    full = run_forked(command, prepare=fill_up)
    assert full.returncode == 2, full.stderr[-2000:]
    last = full.stderr.strip().splitlines()[-1]
    assert last.startswith("align: error: no space left on the disk") and f"{out}.partial" in last
    assert "free some space and run the same command again" in last
    assert "Traceback" not in full.stderr
    assert not out.exists()
    again = run_forked(command)
    assert again.returncode == 0, again.stderr[-2000:]
    assert json.loads((out / "run.json").read_text())["metrics"]["steps"] == 2
    assert not out.with_name("sft.partial").exists()


def test_labels_at_mixed_weights_are_refused_before_the_first_point(
    capsys: Any, tiny_model: Path, tiny_rows: Rows, tmp_path: Path
) -> None:
    rows = [{**json.loads(line), "objective": "x"} for line in tiny_rows["comparisons"].read_text().splitlines()]
    file = tmp_path / "labelled.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["finetune", "dpo", "--model", tiny_model, "--data", file, "--objectives", "x=length", "y=length"]
    error = refused(capsys, tmp_path / "out", *arguments, "--weights", "1,0", "0.5,0.5")
    assert "weights 0.5,0.5 mix objectives" in error
    assert not (tmp_path / "out.partial" / "points").exists(), "a point was trained first"


def test_a_reward_model_is_no_specialist(capsys: Any, tiny_model: Path, tiny_rows: Rows, tmp_path: Path) -> None:
    from align.models import load_scorer, load_tokenizer, save_model

    scorer = load_scorer(tiny_model, pad_token_id=0, eos_token_id=1)
    save_model(scorer, load_tokenizer(tiny_model), tmp_path / "scorer")
    arguments = ["finetune", "rewarded_soups", "--model", tiny_model, "--data", tiny_rows["comparisons"]]
    specialists = ["--set", f"training.specialists=[{tiny_model}, {tmp_path / 'scorer'}]"]
    error = refused(capsys, tmp_path / "out", *arguments, "--objectives", "x=length", "y=length", *specialists)
    assert "scorer is a reward model" in error


def test_a_folder_of_runs_is_no_model(capsys: Any, tiny_model: Path, tiny_rows: Rows, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(tiny_model, folder / "model")
    (folder / "sft").mkdir()
    (folder / "sft" / "run.json").write_text("{}")
    error = refused(capsys, tmp_path / "out", "sft", "--model", folder, "--data", tiny_rows["demonstrations"])
    assert f"{folder} is a folder of runs; name one of them" in error
