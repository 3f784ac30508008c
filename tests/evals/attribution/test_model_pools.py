"""The four parts from drawn responses: closed-form cases of two responses, pairing of prompts, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from align.errors import UserError
from evals.attribution.model_pools import Asked, asked_of, parts_of
from evals.measure.sampling import Sampling


@dataclass(frozen=True)
class Text:
    text: str


class TwoResponses:
    """A policy that says "good" with the probability that its prompt has in `table`, else "bad"."""

    name, samples_per_response = "two", 1

    def __init__(self, **table: float) -> None:
        self.table = table

    def draw(self, prompts: Sequence[str], *, max_new_tokens: int, seed: int, batch_size: int = 64) -> list[Text]:
        rng = np.random.default_rng(seed)
        return [Text("good" if rng.random() < self.table[prompt.split()[0]] else "bad") for prompt in prompts]

    def sequence_logprobs(self, prompts: Sequence[str], completions: Sequence[Text]) -> list[float]:
        pairs = zip(prompts, completions, strict=True)
        return [float(np.log(p if c.text == "good" else 1 - p)) for q, c in pairs for p in [self.table[q.split()[0]]]]


def is_good(prompts: Sequence[str], responses: Sequence[Text]) -> np.ndarray:
    assert all(prompt.startswith("plain") for prompt in prompts), "rewards read the plain prompt"
    return np.array([float(response.text == "good") for response in responses])


def found(policy: TwoResponses, reference: TwoResponses, *, control: str) -> dict[str, float | None]:
    asked = [Asked(str(k), f"plain {k}", f"{control} {k}", f"shifted {k}") for k in range(12)]
    sampling = Sampling(samples=300, max_new_tokens=1)
    table = parts_of(policy, reference, asked=asked, reward=is_good, beta=0.1, sampling=sampling)  # type: ignore[arg-type]
    return {name: entry["value"] for name, entry in table.items()}


def test_nothing_transfers() -> None:
    """r = (1, 0), reference (.3, .7) on both sides, the optimum on plain prompts, the reference under the shift."""
    best = 0.3 * np.exp(10) / (0.3 * np.exp(10) + 0.7)
    parts = found(TwoResponses(plain=best, shifted=0.3), TwoResponses(plain=0.3, shifted=0.3), control="shifted")
    assert parts["mismatched"] == pytest.approx(0.580, abs=0.02) and parts["drop"] == pytest.approx(0.580, abs=0.02)
    assert parts["reward_drop"] == pytest.approx(0.700, abs=0.03)
    for name in ("surface", "competing", "carried_over"):
        assert parts[name] == pytest.approx(0, abs=0.02), name


def test_the_pull_of_words_that_the_control_does_not_have() -> None:
    """The reference goes from (.5, .5) to (.05, .95) by the words; the policy stays at (.9, .1) on both sides.

    J* = .1 log(.5 e^10 + .5) = .93069 and .1 log(.05 e^10 + .95) = .70052: competing .23017, surface 0.
    """
    policy = TwoResponses(plain=0.9, shifted=0.9)
    parts = found(policy, TwoResponses(plain=0.5, control=0.5, shifted=0.05), control="control")
    assert parts["competing"] == pytest.approx(0.23017, abs=0.01) and parts["surface"] == pytest.approx(0, abs=0.01)
    total = sum(parts[name] or 0.0 for name in ("surface", "competing", "carried_over", "mismatched"))
    assert total == pytest.approx(parts["drop"], abs=1e-9)


def test_weights_that_degenerate_give_no_number() -> None:
    few = [Asked(str(k), f"plain {k}", f"shifted {k}", f"shifted {k}") for k in range(3)]
    policy, reference = TwoResponses(plain=0.9, shifted=0.9), TwoResponses(plain=0.5, shifted=0.5)
    table = parts_of(
        policy,
        reference,
        asked=few,
        reward=is_good,
        beta=0.1,
        sampling=Sampling(samples=4, max_new_tokens=1),  # type: ignore[arg-type]
    )
    assert table["surface"]["value"] is None and "degenerate" in table["surface"]["over"]


def test_prompts_are_paired_by_item_and_order() -> None:
    plain = [{"item": i, "prompt": f"{i}{k}"} for i in "ab" for k in (1, 2)]
    shifted = [{"item": i, "prompt": f"s{i}{k}"} for i in "bc" for k in (1, 2)]
    assert asked_of(plain, shifted=shifted, control=None) == [
        Asked("b", "b1", "sb1", "sb1"), Asked("b", "b2", "sb2", "sb2"),
    ]  # fmt: skip
    with pytest.raises(UserError, match="another number of prompts"):
        asked_of(plain, shifted=shifted[:1], control=None)
    with pytest.raises(UserError, match="no base item"):
        asked_of(plain, shifted=[{"item": "z", "prompt": "z"}], control=None)


def test_a_policy_that_chooses_among_samples_has_no_parts() -> None:
    several = TwoResponses(plain=0.5, shifted=0.5)
    several.samples_per_response = 4
    with pytest.raises(UserError, match="chooses among several"):
        found(several, TwoResponses(plain=0.5, shifted=0.5), control="shifted")
