"""The built wheel outside the repository: three top-level names; two objectives train under a stock GRPOTrainer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """\
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from align.objectives import Keywords, Length
objectives = [Length(per="word"), Keywords(["tea", "bread"])]
prompts = Dataset.from_dict({"prompt": ["explain tea :", "explain bread :", "explain ink :", "explain wool :"]})
arguments = GRPOConfig("out", max_steps=2, per_device_train_batch_size=4, num_generations=2, max_completion_length=6,
                       use_cpu=True, bf16=False, gradient_checkpointing=False, save_strategy="no", logging_steps=1)
trainer = GRPOTrainer("model", reward_funcs=objectives, args=arguments, train_dataset=prompts)
trainer.train()
print(trainer.state.global_step, sorted(key for key in trainer.state.log_history[0] if key.endswith("/mean")))
"""


def pip(*arguments: str | Path, cwd: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the repository gets no build folders."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("align", "evals", "recipes", "tests", "docs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, source, cwd=out)
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_three_top_level_names_and_every_file(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"align", "evals", "recipes"}
    kinds = {".py", ".yaml", ".html", ".css", ".js", ".j2", ".json"}
    ours = {
        str(path.relative_to(ROOT))
        for package in ("align", "evals", "recipes")
        for path in (ROOT / package).rglob("*")
        if path.suffix in kinds and "__pycache__" not in path.parts
    }
    assert ours <= set(names), f"missing from the wheel: {sorted(ours - set(names))}"


def test_two_objectives_train_under_a_stock_grpo_trainer(wheel: Path, tiny_model: Path, tmp_path: Path) -> None:
    """The ten lines a stranger would write; `align` comes from the wheel and `recipes` is never needed."""
    target, work = tmp_path / "site", tmp_path / "work"
    pip("install", "--no-deps", "--no-index", "--target", target, wheel, cwd=tmp_path)
    shutil.copytree(tiny_model, work / "model")
    (work / "train.py").write_text(SCRIPT)
    check = f"import align, runpy; assert align.__file__.startswith({str(target)!r}); runpy.run_path('train.py')"
    done = subprocess.run(
        [sys.executable, "-c", check],
        capture_output=True,
        text=True,
        cwd=work,
        timeout=400,
        env={**os.environ, "PYTHONPATH": str(target)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    step, names = done.stdout.strip().splitlines()[-1].split(" ", 1)
    assert step == "2"
    assert names.count("rewards/") == 2, names
