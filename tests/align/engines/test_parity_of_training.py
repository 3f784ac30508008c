"""One conversation, one row of ids: every path of training and sampling in seven tokenizer styles."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.generate.formats_page import said
from factories.chat_styles import STYLES
from factories.parity_training import training_paths
from factories.sources import ROOT


@pytest.mark.parametrize("style", [style.name for style in STYLES])
def test_every_path_trains_and_samples_on_the_tokenizers_own_ids(style: str, tmp_path: Path) -> None:
    paths = training_paths(style, tmp_path)
    assert [(one.path, one.found, one.wanted) for one in paths if not one.right] == []
    assert len(paths) == 12 and all(one.wanted for one in paths)
    page = said((ROOT / "docs" / "formats.md").read_text(encoding="utf-8"), style=style)
    assert {one.path: True for one in paths}.items() <= page.items()
