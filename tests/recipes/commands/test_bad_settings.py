"""Bad settings: keys, weights, methods and numbers that nobody can mean are refused in one line, exit code 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from factories.refusals import Rows, refused


def test_unknown_config_keys(capsys: Any, tiny_model: Path, tiny_rows: Rows, tmp_path: Path) -> None:
    file = tmp_path / "sft.yaml"
    base = f"model: {tiny_model}\ndata: {tiny_rows['demonstrations']}\n"
    file.write_text(base + "trainin: {}\n")
    error = refused(capsys, tmp_path / "out", "sft", "--config", file)
    assert f"{file}: unknown key 'trainin'; did you mean training?" in error
    file.write_text(base + "training: {learning_rat: 1.0e-3}\n")
    error = refused(capsys, tmp_path / "out", "sft", "--config", file)
    assert f"{file}: training: unknown key 'learning_rat'; did you mean learning_rate?" in error
    error = refused(capsys, tmp_path / "out", "sft", "--limits", "3")
    assert "unknown option --limits; did you mean --limit?" in error


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (["-0.5,1.5"], "contain a negative number"),
        (["0.5,0.6"], "sum to 1.1; make them sum to 1"),
        (["0.5,0.5", "0.2,0.3,0.5"], "3 numbers for 2 objectives"),
        (["half,half"], "are not numbers separated by commas"),
        (["nan,1"], "must be finite numbers"),
        (["0.5,0.5", "0.5,0.5"], "given twice"),
    ],
)
def test_bad_weights(
    weights: list[str], words: str, capsys: Any, tiny_model: Path, tiny_rows: Rows, tmp_path: Path
) -> None:
    arguments = ["finetune", "dpo", "--model", tiny_model, "--data", tiny_rows["comparisons"]]
    objectives = ["--objectives", "long=length", "helpful=length"]
    error = refused(capsys, tmp_path / "out", *arguments, *objectives, "--weights", *weights)
    assert words in error


def test_unknown_method_and_objective(capsys: Any, tiny_model: Path, tiny_rows: Rows, tmp_path: Path) -> None:
    shared = ["--model", tiny_model, "--data", tiny_rows["comparisons"], "--weights", "1", "--objectives"]
    error = refused(capsys, tmp_path / "out", "finetune", "dpoo", *shared, "long=length")
    assert "'dpoo' is not one of best_of_n" in error and "did you mean dpo?" in error
    error = refused(capsys, tmp_path / "out", "finetune", "dpo", *shared, f"helpful={tmp_path}/rm")
    assert f"{tmp_path}/rm does not exist" in error


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("max_steps=0", "max_steps must be at least 1"),
        ("batch_size=0", "batch_size must be above 0"),
        ("learning_rate=.nan", "learning_rate must be at least 0"),
        ("epochs=-1", "epochs must be above 0"),
        ("save_steps=0", "save_steps must be above 0"),
        ("warmup=-1", "warmup must be at least 0"),
        ("scheduler=foo", "scheduler must be one of linear"),
        ("seed=-1", "seed must be in [0, 2**32)"),
        ("dropout=1.5", "dropout must be in [0, 1)"),
        ("max_length=0", "max_length must be at least 2"),
        ("max_length=129", "more than the model's 128 positions"),
        ("learning_rate=[1", "is not valid YAML"),
    ],
)
def test_numbers_that_no_trainer_can_mean(
    assignment: str, words: str, capsys: Any, tiny_model: Path, tiny_rows: Rows, tmp_path: Path
) -> None:
    arguments = ["sft", "--model", tiny_model, "--data", tiny_rows["demonstrations"], "--set", f"training.{assignment}"]
    assert words in refused(capsys, tmp_path / "out", *arguments)


@pytest.mark.parametrize("key", ["heads", "layers", "hidden", "intermediate", "context"])
def test_a_shape_without_units(key: str, capsys: Any, tiny_rows: Rows, tmp_path: Path) -> None:
    shape = ["--set", f"training.model.{key}=0"]
    error = refused(capsys, tmp_path / "out", "pretrain", "--data", tiny_rows["text"], *shape)
    assert f"model.{key} must be at least" in error


def test_yaml_that_is_not_utf8(capsys: Any, tmp_path: Path) -> None:
    file = tmp_path / "sft.yaml"
    file.write_bytes(b"model: \xff\n")
    assert f"{file} is not UTF-8" in refused(capsys, tmp_path / "out", "sft", "--config", file)


def test_an_objective_that_can_be_nowhere_is_said_at_once(capsys: Any, tiny_model: Path, tmp_path: Path) -> None:
    arguments = ["finetune", "dpo", "--model", tiny_model, "--data", "rows.jsonl", "--weights", "1"]
    error = refused(capsys, tmp_path / "out", *arguments, "--objectives", "brief=words")
    assert "objective brief=words: words is no folder, no kind of rule" in error and "OWNER/NAME" in error


def test_prompts_that_leave_no_room_to_answer(capsys: Any, tiny_model: Path, tiny_rows: Rows, tmp_path: Path) -> None:
    arguments = [
        "finetune",
        "morlhf",
        "--model",
        tiny_model,
        "--data",
        tiny_rows["prompts"],
        "--objectives",
        "x=length",
    ]
    room = ["--weights", "1", "--set", "training.max_completion_length=127"]
    error = refused(capsys, tmp_path / "out", *arguments, *room)
    assert "the longest prompt and max_completion_length" in error and "128 positions" in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--comparisons", "0"], "comparisons must be at least 1"),
        (["--preference-steps", "1000000000"], "preference_steps must be at most 10000"),
        (["--workers", "-1"], "workers must be at least 0"),
        (["--set", "sft.zz=1"], "sft: unknown key 'zz'"),
        (["--set", "pretrain.documents=x"], "pretrain: documents is 'x'"),
        (["--set", "controls.n=0"], "n must be above 0"),
        (["--set", "rows.x.method=mod", "--set", "rows.x.settings.method=nosuch"], "rows: x: no method 'nosuch'"),
    ],
)
def test_the_demo_checks_its_sections_before_it_starts(
    options: list[str], words: str, capsys: Any, tmp_path: Path
) -> None:
    assert words in refused(capsys, tmp_path / "out", "demo", *options)


@pytest.mark.parametrize("share", ["-0.1", "1", ".nan", ".inf"])
def test_what_is_held_out_is_a_share(
    share: str, capsys: Any, tiny_model: Path, tiny_rows: Rows, tmp_path: Path
) -> None:
    for command, kind in (("pretrain", "text"), ("reward-model", "comparisons")):
        model = ["--model", tiny_model] if command == "reward-model" else []
        words = [command, *model, "--data", tiny_rows[kind], "--held-out", share]
        assert "held_out is a share in [0, 1)" in refused(capsys, tmp_path / "out", *words)


def test_two_runs_of_one_name_need_names_of_their_own(capsys: Any, tiny_rows: Rows, tmp_path: Path) -> None:
    runs = [tmp_path / "a" / "dpo", tmp_path / "b" / "dpo"]
    error = refused(capsys, tmp_path / "out", "evaluate", *runs, "--data", tiny_rows["prompts"])
    assert "two runs are called 'dpo'; write ROW=RUN" in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seeds", "-1"], "seed must be in [0, 2**32), not -1"),
        (["--minutes", "-1"], "minutes must be at least 0, not -1"),
        (["--minutes", ".nan"], "minutes must be at least 0, not nan"),
        (["--workers", "-1"], "workers must be at least 0, not -1"),
    ],
)
def test_planted_refuses_numbers_that_no_user_can_mean(
    options: list[str], words: str, capsys: Any, tmp_path: Path
) -> None:
    limits = [] if "--minutes" in options else ["--minutes", "0"]
    assert words in refused(capsys, tmp_path / "out", "planted", *limits, *options)
