"""Files of a run: fingerprints of its settings, JSON replaced whole, checkpoints, where its model lies, its ledger."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from align.errors import UserError
from align.runs import Ledger, checkpoints, fingerprint, jsonable, last_checkpoint, model_dir, write_json


def test_fingerprints_depend_on_values_not_on_order_or_type_of_container() -> None:
    @dataclass(frozen=True)
    class Config:
        rate: float
        path: Path

    assert fingerprint({"a": 1, "b": (2, 3)}) == fingerprint({"b": [2, 3], "a": 1})
    assert fingerprint(Config(0.1, Path("x"))) == fingerprint({"rate": 0.1, "path": "x"})
    assert len({fingerprint(v) for v in ({"a": 1}, {"a": 2}, {"a": "1"}, {"a": None}, {"a": [1]}, {"A": 1})}) == 6
    assert fingerprint({}) == "44136fa355b3678a"  # of sha256("{}"): stable over versions and machines
    with pytest.raises(TypeError, match="set cannot be written"):
        jsonable({"a": {1}})


def test_a_setting_that_was_renamed_keeps_its_fingerprints() -> None:
    @dataclass(frozen=True)
    class Config:
        train_all: bool = True

    assert fingerprint(Config()) == fingerprint({"rest": True}) != fingerprint({"rest": False})
    assert fingerprint([{"settings": {"train_all": True}}]) == fingerprint([{"settings": {"rest": True}}])
    assert jsonable(Config()) == {"train_all": True}  # what a run records has today's names


def test_json_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.json"
    write_json(file, {"a": 1})

    def stop(*arguments: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(OSError, match="power cut"):
        write_json(file, {"a": 2})
    with pytest.raises(TypeError):
        write_json(file, {"a": {1}})
    assert json.loads(file.read_text()) == {"a": 1} and {p.name for p in tmp_path.iterdir()} == {"x.json"}


def test_many_writers_and_readers_of_one_json(tmp_path: Path) -> None:
    file, stop = tmp_path / "x.json", threading.Event()
    (tmp_path / "x.json.tmp").write_text("another program's")
    write_json(file, {"writer": -1, "text": ""})
    failures: list[BaseException] = []

    def guarded(work) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    def read() -> None:
        while not stop.is_set():
            assert len(json.loads(file.read_text())) == 2

    def write(number: int) -> None:
        for _ in range(20):
            write_json(file, {"writer": number, "text": "x" * 20_000})

    readers = [threading.Thread(target=guarded, args=(read,)) for _ in range(2)]
    writers = [threading.Thread(target=guarded, args=(lambda n=n: write(n),)) for n in range(4)]
    for thread in [*readers, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert not failures and (tmp_path / "x.json.tmp").read_text() == "another program's"
    assert {p.name for p in tmp_path.iterdir()} == {"x.json", "x.json.tmp"}


def checkpoint(folder: Path, step: int, state: str | None) -> Path:
    place = folder / f"checkpoint-{step}"
    place.mkdir()
    (place / "model.safetensors").write_text("x")
    if state is not None:
        (place / "trainer_state.json").write_text(state)
    return place


def test_the_newest_complete_checkpoint_is_found_and_others_deleted(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None and last_checkpoint(tmp_path / "none") is None
    folder = checkpoints.claim(tmp_path / "checkpoints")
    old, new = checkpoint(folder, 20, "{}"), checkpoint(folder, 100, "{}")
    cut, bare = checkpoint(folder, 120, '{"epoch": 1'), checkpoint(folder, 140, None)
    (folder / "checkpoint-mine").mkdir()
    assert last_checkpoint(folder) == new  # 100 is after 20, as numbers
    assert old.exists() and not cut.exists() and not bare.exists() and (folder / "checkpoint-mine").exists()
    checkpoints.drop(folder)
    assert not folder.exists()


def test_checkpoints_of_a_stranger_are_never_touched(tmp_path: Path) -> None:
    bare = checkpoint(tmp_path, 140, None)
    assert last_checkpoint(tmp_path) is None
    with pytest.raises(UserError, match="is in the way and no training made it"):
        checkpoints.claim(tmp_path)
    checkpoints.drop(tmp_path)
    assert bare.exists()


def test_model_dir(tmp_path: Path) -> None:
    assert model_dir("gpt2") == "gpt2" and model_dir("org/name") == "org/name"
    for text in ("./nothing", "/nothing/here", "a/b/c", str(tmp_path / "typo")):
        with pytest.raises(UserError, match="does not exist; give a run, a Hugging Face directory or a hub id"):
            model_dir(text)
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    with pytest.raises(UserError, match=r"model has no config\.json"):
        model_dir(folder)
    (folder / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="has no tokenizer; save one there"):
        model_dir(folder)
    (folder / "model" / "tokenizer.json").write_text("{}")
    assert model_dir(folder) == model_dir(folder / "model") == str(folder / "model")
    (tmp_path / "cut.partial").mkdir()
    with pytest.raises(UserError, match="was interrupted"):
        model_dir(tmp_path / "cut")


def test_a_ledger_only_grows() -> None:
    ledger = Ledger()
    with ledger.clock():
        sum(range(10_000))
    ledger.add(tokens=1)
    ledger.add(tokens=2, flops=1.5)
    assert (ledger.tokens, ledger.flops) == (3, 1.5) and ledger.seconds > 0
    with pytest.raises(ValueError, match="negative"):
        ledger.add(tokens=-1)


def test_settings_that_came_later_are_in_no_fingerprint_at_their_default() -> None:
    """The expected ones are those of the code before there were looks, trackers, precision and templates to set."""
    from align.methods import METHODS
    from align.training.reward_model import RewardModelConfig
    from align.training.sft import SFTConfig_

    former = {
        "dpo": "bb7ccb102fc512c0",
        "morlhf": "50ec190bd10215ac",
        "ric": "21be17f5afea2cdb",
        "kto": "0693598da946629c",
    }
    assert {name: fingerprint(METHODS[name].Config()) for name in former} == former
    assert (fingerprint(SFTConfig_()), fingerprint(RewardModelConfig())) == ("e1755d428a6917a9", "60e9cfe86bf5760b")
    dpo = METHODS["dpo"]
    changed = (
        {"lora_dropout": 0.1, "lora_r": 2},
        {"eval_steps": 5},
        {"report_to": ("tensorboard",)},
        {"lora_r": 2},
        {},
    )
    assert len({fingerprint(dpo.Config(**more)) for more in changed}) == len(changed)
    assert len({fingerprint(SFTConfig_(**more)) for more in ({"merge_adapter": False}, {"template": "hh"}, {})}) == 3
