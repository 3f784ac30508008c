"""Run directories as earlier versions wrote them (no mark, a file `fingerprint`): read, or refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from align.errors import UserError
from align.policies.base import PointFamily
from align.policies.load import load_family
from align.runs import Metrics, Run, Workspace, model_dir, open_run, run_stage, stage
from recipes import cli
from recipes.commands.evaluate import rewards_of

CONTENT = {
    "config": {"method": "dpo", "preferences": ["0.5,0.5"], "settings": {"beta": 0.1, "seed": 0}},
    "environment": {"commit": "f17febb3963f589a08955c40759b823f6399e10c", "versions": {"torch": "2.13.0+cpu"}},
    "fingerprint": "e1a50ca80caa27c2",
    "inputs": {"pairs": "1c1a0e54e46bc84f", "reference": "dbaa0c6f6e928d6d", "world": "8589c43c24c8758c"},
    "ledger": {"cpu_seconds": 10.2, "flops": 4e10, "peak_memory_mb": 2926.9, "samples_drawn": 0, "scores_read": 4000,
               "seconds": 11.4, "tokens": 113064},
    "metrics": {"optimises": {"0.5,0.5": "E[w.r] - 0.1 KL(pi||ref)"}},
    "stage": "finetune dpo",
}  # fmt: skip


@stage(name="finetune dpo")
def finetune(work: Workspace, *, source: Run, seed: int = 0) -> Metrics:
    """A stage of today that takes an old run and writes nothing."""
    return {"model": model_dir(source.path)}


@pytest.fixture
def old(tiny_model: Path, tmp_path: Path) -> Path:
    """A finished run of a family with one point, which is also a run with a model."""
    folder = tmp_path / "old"
    shutil.copytree(tiny_model, folder / "model")
    PointFamily("dpo", {"0.5,0.5": str(folder / "model")}).save(folder)
    (folder / "fingerprint").write_text(f"{CONTENT['fingerprint']}\n")
    (folder / "run.json").write_text(json.dumps(CONTENT, indent=1, sort_keys=True) + "\n")
    return folder


def test_an_old_run_is_read(old: Path, tmp_path: Path) -> None:
    run = open_run(old)
    assert (run.stage, run.fingerprint, run.config) == ("finetune dpo", "e1a50ca80caa27c2", CONTENT["config"])
    assert model_dir(old) == str(old / "model") and list(load_family(old).points) == ["0.5,0.5"]
    assert rewards_of(run) == "unknown", "a stage of an experiment does not record its objectives by name"
    new = finetune(tmp_path / "new", source=old)
    assert new.inputs == {"source": "e1a50ca80caa27c2"} and new.metrics == {"model": str(old / "model")}


def test_an_old_run_is_never_replaced(old: Path, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in old.rglob("*")}
    call = finetune.call(old, source=finetune(tmp_path / "new", source=old))
    with pytest.raises(UserError, match=r"old was written by an earlier version of this program.*give another --out"):
        call()  # as a part of an experiment
    with pytest.raises(UserError, match=r"differs from this call \(input pairs .* not absent"):
        finetune(old, source=tmp_path / "new")
    assert {p: p.stat().st_mtime_ns for p in old.rglob("*")} == before


def test_unfinished_work_of_an_earlier_version_is_refused_and_kept(old: Path, tmp_path: Path) -> None:
    (old / "run.json").unlink()
    old.rename(tmp_path / "new.partial")
    shutil.copytree(tmp_path / "new.partial", tmp_path / "kept")
    with pytest.raises(UserError, match=r"new\.partial is in the way and no stage of this version made it"):
        finetune(tmp_path / "new", source=run_stage(tmp_path / "base", stage="s", config={}, body=lambda *work: {}))
    assert sorted(p.name for p in (tmp_path / "new.partial").iterdir()) == sorted(
        p.name for p in (tmp_path / "kept").iterdir()
    )


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"stage": 1}', '{"inputs": ' + "[" * 100_000, '{"fingerprint": ' + "9" * 5000]
)
def test_a_damaged_run_is_one_line(damage: str, old: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (old / "run.json").write_text(damage)
    words = ["evaluate", str(old), "--data", str(old / "family.json"), "--out", str(tmp_path / "out")]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{old}/run.json is damaged, or another program wrote it" in line and len(line) < 700


@pytest.mark.parametrize("damage", [b"{", b"[]", b'{"kind": "nothing"}', b'{"kind": []}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_family_is_one_line(damage: bytes, old: Path) -> None:
    (old / "family.json").write_bytes(damage)
    with pytest.raises(UserError, match=r"family\.json is damaged") as error:
        load_family(old)
    assert len(str(error.value)) < 700


def test_a_word_outside_the_vocabulary_is_one_line() -> None:
    import torch

    from align.testbed.vocabulary import build_tokenizer
    from evals.backends.transformers import TransformersBackend
    from evals.items import Prompt

    backend = TransformersBackend(torch.nn.Identity(), build_tokenizer(), name="tiny", template="plain")
    with pytest.raises(UserError, match="tiny: its tokenizer has no token for a word of a prompt"):
        backend.encode(Prompt.user("zebra"))
