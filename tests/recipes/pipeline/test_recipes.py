"""Every recipe runs two optimizer steps through its real command, and `python recipes/X.py` is the same command."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from align.methods import METHODS
from align.preferences import Weights
from recipes.cli import COMMANDS
from recipes.pipeline.inputs import joined_claims
from recipes.pipeline.objectives import objective_keys

Command = Callable[..., subprocess.CompletedProcess[str]]
Rows = dict[str, Path]
TINY = ["training.batch_size=8", "training.learning_rate=1e-3", "training.save_steps=null"]
SHAPE = ["hidden=32", "layers=1", "heads=2", "context=32"]
# Budgets that make any method take few steps on 16 rows, by the names of its Config's fields.
SMALL = {
    "steps": "2", "rounds": "1", "epochs": "1", "batch_size": "8", "num_generations": "4", "max_completion_length": "6",
    "n": "2", "pairs": "8", "prompts_per_round": "8", "online_rounds": "1", "online_samples": "8", "ideal": "[1.0,1.0]",
    "labels": "objectives", "scores": "objectives",
}  # fmt: skip
EVERY_TIME = ("dpo", "morlhf", "rewarded_soups", "lagrangian", "conditioned_dpo")  # the rest with `make test-all`
STEPPED = [name if name in EVERY_TIME else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]


def small_steps(method: str, *, place: str = "training") -> list[str]:
    """Assignments that shrink whatever budgets the method's Config has; specialists are trained by DPO."""
    known = {f.name for f in dataclasses.fields(METHODS[method].Config)}
    if "method_config" in known:
        return [f"{place}.method=dpo", *small_steps("dpo", place=f"{place}.method_config")]
    return [f"{place}.{name}={value}" for name, value in SMALL.items() if name in known]


def settings(assignments: list[str]) -> list[str]:
    return [word for assignment in assignments for word in ("--set", assignment)]


def finished(done: subprocess.CompletedProcess[str], run: Path) -> dict:
    """The run's metrics, after checking that the command said one line about a finished run."""
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().splitlines()[-1].startswith(str(run)), done.stdout
    assert not run.with_name(run.name + ".partial").exists()
    return json.loads((run / "run.json").read_text())


def test_every_command_has_a_test() -> None:
    """Some are tested beside their own modules."""
    own = {"demo", "hh", "compare", "attribute", "planted", "suites", "over-optimisation", "held-out-families"}
    own |= {"correct", "chat", "merge", "score", "push", "depth", "asr-at-n", "stress", "cost-model", "pushback"}
    own |= {"conformance", "consistency", "doctor"}
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


def test_sft_and_its_script(
    run_command: Command, tiny_model: Path, tiny_rows: Rows, tmp_path: Path, root: Path
) -> None:
    """Through `python recipes/commands/sft.py --config`, from a directory that is not the repository."""
    out, config = tmp_path / "sft", tmp_path / "sft.yaml"
    config.write_text(f"model: {tiny_model}\ndata: {tiny_rows['demonstrations']}\ntraining:\n  batch_size: 8\n")
    script = root / "recipes" / "commands" / "sft.py"
    options = ["--config", config, "--out", out, "--max-steps", "2"]
    words = [*map(str, [sys.executable, script, *options])]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=400)
    run = finished(done, out)
    assert run["metrics"]["steps"] == 2 and run["metrics"]["rows"] == 48
    assert finished(run_command("sft", *options), out)["ledger"] == run["ledger"], "a finished stage ran again"


def test_reward_model(run_command: Command, tiny_model: Path, tiny_rows: Rows, tmp_path: Path) -> None:
    out = tmp_path / "rm"
    arguments = ["reward-model", "--model", tiny_model, "--data", tiny_rows["comparisons"], "--out", out]
    keep = settings(["cleaning.near_duplicates=false"])
    run = finished(run_command(*arguments, "--max-steps", "2", "--held-out", "0.25", *settings(TINY), *keep), out)
    assert run["metrics"]["steps"] == 2
    assert 0 <= run["metrics"]["accuracy"] <= 1


def test_a_method_s_budgets_are_found_by_name() -> None:
    assert small_steps("best_of_n") == ["training.n=2"]
    assert small_steps("mod")[:2] == ["training.method=dpo", "training.method_config.epochs=1"]
    budgets = {"steps", "rounds", "epochs", "n", "method_config"}
    for name, module in METHODS.items():
        known = {f.name for f in dataclasses.fields(module.Config)}
        assert known & budgets, f"{name} has no budget that this test can shrink: name one of {sorted(budgets)}"


@pytest.mark.parametrize("method", STEPPED)
def test_finetune_evaluate_report(
    method: str, run_command: Command, tiny_model: Path, tiny_rows: Rows, tmp_path: Path
) -> None:
    """The method's two steps; for `dpo` the family also goes on to cells, summary and report."""
    out = tmp_path / method
    objectives = settings_file(tmp_path)
    arguments = ["finetune", method, "--config", objectives, "--model", tiny_model, "--data", tiny_rows["comparisons"]]
    # Of opposed objectives an even mixture says nothing: all responses are equal under it.
    wide = ["--weights", "1,0", "0,1"] if method in ("dpo", "rewarded_soups") else ["--weights", "0.75,0.25"]
    wide = ["--weights", "thresholds=none,0.1"] if Weights not in METHODS[method].ASKED_BY else wide
    done = run_command(*arguments, "--out", out, "--limit", "16", *wide, *settings(small_steps(method)))
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


def test_a_fingerprint_sees_options_in_quotes_and_every_member_of_an_ensemble(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    plain = [f"a={tmp_path}/one"]
    scaled = [f"{{spec: a={tmp_path}/one, scale: {scale}}}" for scale in (2, 3)]
    assert len({str(objective_keys([entry])) for entry in (*plain, *scaled)}) == 3
    both = [f"a=ensemble:{tmp_path}/one, {tmp_path}/two:mean"]
    first = objective_keys(both)
    (tmp_path / "two" / "config.json").write_text("{} ")
    assert objective_keys(both) != first


def test_a_row_says_what_each_of_its_points_optimises() -> None:
    assert joined_claims({"0,1": "J at w = 0,1, rloo", "1,0": "J at w = 1,0, rloo"}) == "J at each w, rloo"
    apart = joined_claims({"0,1": "J at w = 0,1 for b", "1,0": "J at w = 1,0 for a"})
    assert apart == "w = 0,1: J at that w for b; w = 1,0: J at that w for a"
    assert joined_claims({}) == ""
