"""Every recipe runs two optimizer steps through its real command, and `python recipes/X.py` is the same command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.cli import COMMANDS
from recipes.stages import joined_claims, objective_keys

Command = Callable[..., subprocess.CompletedProcess[str]]
Rows = dict[str, Path]
TINY = ["training.batch_size=8", "training.learning_rate=1e-3", "training.save_steps=null"]
SHAPE = ["hidden=32", "layers=1", "heads=2", "context=32"]
# What each method of `align.methods.METHODS` needs to take two steps on 16 rows; a new method adds its line.
RL = ["training.steps=2", "training.batch_size=8", "training.num_generations=4", "training.max_completion_length=6"]
PAIRS = ["training.labels=objectives", "training.batch_size=8"]
MADE_OF_DPO = ["training.method=dpo", "training.method_config.labels=objectives", "training.method_config.batch_size=8"]
SFT = ["training.batch_size=8", "training.max_completion_length=6"]
METHOD_STEPS = {
    "dpo": PAIRS,
    "modpo": PAIRS,
    "morlhf": RL,
    "rewarded_soups": MADE_OF_DPO,
    "best_of_n": ["training.n=2"],
    "best_sft": [*SFT, "training.n=2"],
    "ppo": ["training.steps=2", "training.batch_size=8", "training.max_completion_length=6"],
    "chebyshev": [*RL, "training.ideal=[1.0,1.0]"],
    "ctwa": RL,
    "lagrangian": RL,
    "kto": PAIRS,
    "gradient_dpo": PAIRS,
    "gradient_rl": RL,
    "personalised_soups": MADE_OF_DPO,
    "mod": MADE_OF_DPO,
    "genarm": PAIRS,
    "parm": PAIRS,
    "ric": [*SFT, "training.scores=objectives", "training.online_rounds=1", "training.online_samples=8"],
    "cpo": ["training.batch_size=8", "training.scores=objectives"],
    "dpa": [*SFT, "training.rounds=1", "training.prompts_per_round=8", "training.n=2"],
    "conditioned_dpo": PAIRS,
    "mo_odpo": [*SFT, "training.rounds=1", "training.pairs=8"],
    "conditioned_rl": RL,
    "panacea": RL,
    "pblora": RL,
    "joint_soup": RL,
}
EVERY_TIME = ("dpo", "morlhf", "rewarded_soups", "lagrangian", "conditioned_dpo")  # the rest with `make test-all`
STEPPED = [name if name in EVERY_TIME else pytest.param(name, marks=pytest.mark.slow) for name in METHOD_STEPS]


def settings(assignments: list[str]) -> list[str]:
    return [word for assignment in assignments for word in ("--set", assignment)]


def finished(done: subprocess.CompletedProcess[str], run: Path) -> dict:
    """The run's metrics, after checking that the command said one line about a finished run."""
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().splitlines()[-1].startswith(str(run)), done.stdout
    assert not run.with_name(run.name + ".partial").exists()
    return json.loads((run / "run.json").read_text())


def test_every_command_has_a_test() -> None:
    """`demo`, `hh` and `compare` are tested beside their own modules."""
    own = {"demo", "hh", "compare"}
    assert set(COMMANDS) == own | {"pretrain", "sft", "reward-model", "finetune", "evaluate", "report"}


def test_pretrain(run_command: Command, tiny_rows: Rows, tmp_path: Path) -> None:
    out = tmp_path / "pretrain"
    shape = settings([f"training.model.{entry}" for entry in SHAPE])
    arguments = ["pretrain", "--data", tiny_rows["text"], "--out", out, "--max-steps", "2", *settings(TINY), *shape]
    keep = settings(["training.vocab_size=300", "training.batch_size=2", "cleaning.near_duplicates=false"])
    run = finished(run_command(*arguments, *keep, "--held-out", "0.2"), out)
    assert run["metrics"]["steps"] == 2
    assert run["metrics"]["rows"]["train"] + run["metrics"]["rows"]["validation"] == 48
    assert 0 < run["metrics"]["bits_per_byte"] < 9
    assert run["ledger"]["tokens"] == 2 * 2 * 32  # steps x blocks x tokens
    assert (out / "model" / "config.json").is_file() and (out / "model" / "tokenizer.json").is_file()


def test_sft_and_its_script(tiny_model: Path, tiny_rows: Rows, tmp_path: Path, root: Path) -> None:
    """Through `python recipes/sft.py --config`, from a directory that is not the repository."""
    out, config = tmp_path / "sft", tmp_path / "sft.yaml"
    config.write_text(f"model: {tiny_model}\ndata: {tiny_rows['demonstrations']}\ntraining:\n  batch_size: 8\n")
    words = [sys.executable, root / "recipes" / "sft.py", "--config", config, "--out", out, "--max-steps", "2"]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, cwd=tmp_path, timeout=180)
    run = finished(done, out)
    assert run["metrics"]["steps"] == 2 and run["metrics"]["rows"] == 48
    again = subprocess.run([*map(str, words)], capture_output=True, text=True, cwd=tmp_path, timeout=180)
    assert finished(again, out)["ledger"] == run["ledger"], "a finished stage ran again"


def test_reward_model(run_command: Command, tiny_model: Path, tiny_rows: Rows, tmp_path: Path) -> None:
    out = tmp_path / "rm"
    arguments = ["reward-model", "--model", tiny_model, "--data", tiny_rows["comparisons"], "--out", out]
    keep = settings(["cleaning.near_duplicates=false"])
    run = finished(run_command(*arguments, "--max-steps", "2", "--held-out", "0.25", *settings(TINY), *keep), out)
    assert run["metrics"]["steps"] == 2
    assert 0 <= run["metrics"]["accuracy"] <= 1


def test_every_method_takes_its_steps_here() -> None:
    from align.methods import METHODS

    assert set(METHOD_STEPS) == set(METHODS)


@pytest.mark.parametrize("method", STEPPED)
def test_finetune_evaluate_report(
    method: str, run_command: Command, tiny_model: Path, tiny_rows: Rows, tmp_path: Path
) -> None:
    """The method's two steps; for `dpo` the family also goes on to cells, summary and report."""
    out = tmp_path / method
    objectives = settings_file(tmp_path)
    arguments = ["finetune", method, "--config", objectives, "--model", tiny_model, "--data", tiny_rows["comparisons"]]
    wide = ["--weights", "1,0", "0,1"] if method in ("dpo", "rewarded_soups") else ["--weights", "0.5,0.5"]
    wide = ["--weights", "thresholds=none,0.1"] if method == "lagrangian" else wide
    done = run_command(*arguments, "--out", out, "--limit", "16", *wide, *settings(METHOD_STEPS[method]))
    run = finished(done, out)
    assert run["metrics"]["method"] == method
    assert json.loads((out / "family.json").read_text())["method"]
    if method == "dpo":
        evaluate_and_report(run_command, out, tiny_rows, tmp_path)


def settings_file(folder: Path) -> Path:
    """Two opposed rules as objectives, written as a user would."""
    file = folder / "objectives.yaml"
    file.write_text(
        "objectives:\n  - {kind: length, per: character, name: long}\n"
        "  - {kind: length, per: character, name: short, longer_is_better: false}\n"
    )
    return file


def evaluate_and_report(run_command: Command, family: Path, rows: Rows, folder: Path) -> None:
    out = folder / "evaluation"
    shifted = folder / "shifted.jsonl"
    prompts = [json.loads(line) for line in rows["prompts"].read_text().splitlines()]
    shifted.write_text("".join(json.dumps({**row, "prompt": "please " + row["prompt"]}) + "\n" for row in prompts))
    data = ["--data", f"none={rows['prompts']}", f"please={shifted}", "--text", rows["text"], "--limit", "6"]
    drawn = settings(["sampling.samples=2", "sampling.max_new_tokens=6"])
    run = finished(run_command("evaluate", family, *data, "--out", out, *drawn), out)
    # (reference at 1 preference + dpo at 2) x 2 shifts x 6 prompts x 2 samples
    assert run["metrics"]["cells"] == 3 * 2 * 6 * 2
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["methods"]) == {"reference", "dpo"}
    assert set(summary["shifts"]["please"]) == {"reference", "dpo"}
    assert summary["conflict"]["disagreement"][0][1] == 1.0  # long against short
    assert summary["methods"]["dpo"]["bits_per_byte"]["before"] > 0
    assert summary["provenance"]["versions"]["trl"]
    page = (out / "report.html").read_text()
    again = folder / "again.html"
    done = run_command("report", out, "--out", again)
    assert done.returncode == 0, done.stderr
    assert again.read_text() == page


def test_a_fingerprint_sees_what_an_objective_is_read_from(tmp_path: Path) -> None:
    """A mapping entry names files and runs: other contents under the same name are another objective."""
    file = tmp_path / "normalizer.json"
    entry = {"kind": "length", "name": "long", "normalizer": str(file)}
    file.write_text('{"kind": "none"}')
    first = objective_keys([entry])
    file.write_text('{"kind": "zscore", "mean": 0.0, "std": 1.0, "n": 2}')
    assert set(first) == {"objective long"} and objective_keys([entry]) != first
    assert objective_keys([entry]) == objective_keys([dict(entry)])


def test_a_row_says_what_each_of_its_points_optimises() -> None:
    assert joined_claims({"0,1": "J at w = 0,1, rloo", "1,0": "J at w = 1,0, rloo"}) == "J at each w, rloo"
    apart = joined_claims({"0,1": "J at w = 0,1 for b", "1,0": "J at w = 1,0 for a"})
    assert apart == "w = 0,1: J at that w for b; w = 1,0: J at that w for a"
    assert joined_claims({}) == ""
