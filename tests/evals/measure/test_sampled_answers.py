"""Answers of policy families: what is charged are the very tokens that were drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.models.sampling import Drawn
from align.preferences import Weights
from align.runs import Ledger
from evals.measure.sampling import Point, Sampling, sample_answers


class Spelling:
    """Draws two tokens whose text would be read as one; log-probability of a token is minus its id over `scale`."""

    samples_per_response = 1

    def __init__(self, scale: float) -> None:
        self.scale, self.scored = scale, list[Drawn]()

    def draw(self, prompts: Sequence[str], **_: Any) -> list[Drawn]:
        return [Drawn((3, 4, 0), True, " tea") if i % 2 else Drawn((3, 4), False, " tea") for i in range(len(prompts))]

    def sequence_logprobs(self, prompts: Sequence[str], completions: Sequence[Drawn]) -> list[float]:
        self.scored += completions
        return [-sum(token + 1 for token in one.ids) / self.scale for one in completions]


def test_kl_is_of_the_ids_that_were_drawn(tmp_path: Path) -> None:
    """Ids 3, 4 (and the end 0): -(4 + 5 [+ 1]) / 2 for the policy, over 1 for the reference: 4.5, or 5 with its end."""
    policy, reference = Spelling(2.0), Spelling(1.0)
    prompts = {"none": [{"prompt": "q", "item": "a"}, {"prompt": "r", "item": "b"}]}
    found = sample_answers(
        [Point("row", Weights((1.0,)), policy)], reference=reference, prompts=prompts,
        objectives={"length": lambda prompts, texts, **_: [float(len(text)) for text in texts]},
        sampling=Sampling(samples=1), folder=tmp_path / "parts", ledger=Ledger(),
    )  # fmt: skip
    assert [answer.kl for answer in found] == [4.5, 5.0]
    assert policy.scored == reference.scored and [answer.completion for answer in found] == [" tea", " tea"]


def test_judges_are_told_what_was_drawn_and_what_was_cut(tmp_path: Path) -> None:
    """The same text twice, once cut: 1 where the judge is told of an end, and the ids too under a shift."""
    asked = []

    def judge(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        asked.append((list(prompts), columns["completion_ids"]))
        return [float(ended) for ended in columns["completion_ended"]]

    rows = [{"prompt": f"{word}!", "plain": word, "item": word} for word in ("q", "r")]
    found = sample_answers(
        [Point("row", Weights((1.0,)), Spelling(2.0))], reference=Spelling(1.0), prompts={"none": rows},
        objectives={"judge": judge}, sampling=Sampling(samples=1), folder=tmp_path / "parts", ledger=Ledger(),
    )  # fmt: skip
    assert [(answer.values, answer.values_shifted) for answer in found] == [((0.0,), (0.0,)), ((1.0,), (1.0,))]
    assert asked == [(["q", "r"], [[3, 4], [3, 4, 0]]), (["q!", "r!"], [[3, 4], [3, 4, 0]])]
