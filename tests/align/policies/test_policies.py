"""Policies: log-probabilities of completions that ended and of completions that were cut."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from align.policies.base import ModelPolicy
from factories.tiny_bandit import make_reference


def test_a_cut_completion_has_no_end_token(tmp_path: Path) -> None:
    """Two tokens cut at two never drew their end; one token fewer than the limit did."""
    policy = ModelPolicy(make_reference(tmp_path / "reference"))
    (ended,) = policy.sequence_logprobs(["x :"], [" A B"])
    (cut,) = policy.sequence_logprobs(["x :"], [" A B"], max_new_tokens=2)
    (room,) = policy.sequence_logprobs(["x :"], [" A B"], max_new_tokens=3)
    ids = torch.tensor([policy.tokenizer("x : A B", add_special_tokens=False)["input_ids"]])
    end = policy.next_token_logprobs(ids, torch.ones_like(ids))[0, policy.tokenizer.eos_token_id]
    assert room == pytest.approx(ended) and math.isfinite(ended)
    assert ended - cut == pytest.approx(float(end), abs=1e-5) and float(end) < -1e-3
