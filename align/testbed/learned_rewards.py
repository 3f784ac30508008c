"""Learned rewards of every response of a world, so that the optimum under reward models is exact, too.

Its regret in gold is what the reward models alone cost a method that optimises them to the end.
Legend: N nodes, V vocabulary, K objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from align.objectives.base import Objective
from align.preferences import Weights
from align.testbed.responses import level_starts, node_words
from align.testbed.tabular import leaf_table
from align.testbed.world import Prompt, World, cipher


class LearnedTable:
    """Scores of learned objectives for every well-formed response; a malformed one lies below the worst of them.

    By the world's own malformed reward, that is: reward models say nothing about a prompt's level, only differences.
    A method reads its objectives on malformed text as well, which the table leaves out (millions of texts, of a mass
    below one per cent at the reference). Scores are kept per prompt: 8 N K bytes.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self.objectives = list(objectives)
        self._scores: dict[str, torch.Tensor] = {}

    def scores(self, world: World, prompt: Prompt) -> torch.Tensor:
        """(N, K) scores of ending at each node. ValueError where an objective does not apply: there is no table."""
        if prompt.text not in self._scores:
            completions = [self._text(node, world, prompt) for node in range(level_starts(world.config.max_tokens)[-1])]
            columns: list[Any] = []
            for objective in self.objectives:
                found = objective([prompt.text] * len(completions), completions)
                if any(value is None for value in found):
                    raise ValueError(f"{objective.__name__} does not apply to every response of {prompt.text!r}")
                columns.append(torch.tensor(found, dtype=torch.float64))
            self._scores[prompt.text] = torch.stack(columns, dim=1)
        return self._scores[prompt.text]

    def __call__(self, world: World, prompt: Prompt, weights: Weights) -> torch.Tensor:
        """(N, V) scalarised reward of every leaf."""
        ended_N = self.scores(world, prompt) @ torch.tensor(weights.values, dtype=torch.float64)
        lowest = float(ended_N.min())
        return leaf_table(world, ended_N, malformed=lowest + world.config.malformed_reward)

    @staticmethod
    def _text(node: int, world: World, prompt: Prompt) -> str:
        words = node_words(node, world.config.max_tokens)
        return "".join(f" {cipher(w) if prompt.ciphered else w}" for w in words)
