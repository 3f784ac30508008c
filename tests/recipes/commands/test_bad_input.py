"""Bad input: one line that names the place and the fix, exit code 2, and nothing half-written that looks finished."""

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
from recipes import cli

Rows = dict[str, Path]


def refused(capsys: pytest.CaptureFixture[str], out: Path, *arguments: str | Path) -> str:
    """The one line of the error, after checking the exit code and that no run appeared."""
    code = cli.main([*map(str, arguments), "--out", str(out)])
    error = capsys.readouterr().err
    assert code == 2, error
    lines = [line for line in error.splitlines() if line.startswith("align: error: ")]
    assert len(lines) == 1 and error.rstrip().splitlines()[-1] == lines[0], error
    assert not out.exists(), "something that looks finished was left behind"
    return lines[0]


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


def test_yaml_that_is_not_utf8(capsys: Any, tmp_path: Path) -> None:
    file = tmp_path / "sft.yaml"
    file.write_bytes(b"model: \xff\n")
    assert f"{file} is not UTF-8" in refused(capsys, tmp_path / "out", "sft", "--config", file)


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


@pytest.mark.parametrize("content", ['{"title": "t", "kind": "sampled", "methods": {"a": 3}}', "[" * 100_000])
def test_a_damaged_summary(content: str, capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(content)
    assert "run the evaluation again" in refused(capsys, tmp_path / "report.html", "report", tmp_path)


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


def test_a_hub_id_that_cannot_be_had_is_told_before_any_work(capsys: Any, tmp_path: Path) -> None:
    """The tests are offline, as many machines are."""
    error = refused(capsys, tmp_path / "out", "chat", "--data", tmp_path, "--model", "nobody/nothing")
    assert "nobody/nothing is no folder here, and the hub did not give it" in error and "a .gguf file" in error
    assert not list(tmp_path.iterdir())


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


def test_a_folder_of_runs_is_no_model(capsys: Any, tiny_model: Path, tiny_rows: Rows, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(tiny_model, folder / "model")
    (folder / "sft").mkdir()
    (folder / "sft" / "run.json").write_text("{}")
    error = refused(capsys, tmp_path / "out", "sft", "--model", folder, "--data", tiny_rows["demonstrations"])
    assert f"{folder} is a folder of runs; name one of them" in error


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
