"""`recipes/learn.py` is one screen, keeps its promise about a regret, and has the rewards that its world describes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recipes import learn


def test_rewards_by_hand() -> None:
    """The six pairs of facts in their order: the first topic has the first pair, the fifth topic the fifth."""
    assert learn.CORRECT["bread"] == ("f1", "f2") and learn.CORRECT["poison"] == ("f2", "f4")
    assert learn.rewards("bread", ("f1", "f3")) == [0.5, 1.0]
    assert learn.rewards("poison", ("f2", "f4")) == [1.0, 0.0]
    assert learn.rewards("~poison", ("careful", "f2", "f4")) == [1.0, 0.5]
    assert learn.rewards("poison", ()) == [0.0, 1.0]


def test_the_table_of_any_model_sums_to_one() -> None:
    torch.manual_seed(0)
    model = learn.LanguageModel()
    grid = torch.cartesian_prod(torch.arange(16), torch.arange(156))
    raw = learn.log_probs(model, grid[:, 0], grid[:, 1]).reshape(16, 156)  # before any normalisation
    assert torch.allclose(raw.exp().sum(-1), torch.ones(16), atol=1e-5)


def test_regret_of_the_optimum_is_zero_and_of_the_reference_is_not() -> None:
    ref_PR = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    score_PR = torch.rand(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    best_PR = (ref_PR + score_PR / learn.BETA).log_softmax(-1)
    assert learn.regret(best_PR, ref_PR, score_PR).abs().max() < 1e-12
    assert learn.regret(ref_PR, ref_PR, score_PR).min() > 1e-3


def test_it_fits_a_screen_and_ends_in_its_assertion(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(Path(learn.__file__).read_text().splitlines()) <= 150
    learn.main()
    assert "DPO leaves" in capsys.readouterr().out
