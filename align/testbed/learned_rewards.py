"""Learned rewards of every response of a world, so that the optimum under reward models is exact, too.

Its regret in gold is what the reward models alone cost a method that optimises them to the end. Reward models with a
decoder and pooled rewards are read in the tree, where responses share their beginnings: 20 times fewer tokens.
Legend: N nodes, V vocabulary, K objectives, A alphabet, H hidden size, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from align.objectives import Ensemble, PooledReward, RewardModelObjective, SharedRewardModel
from align.objectives.base import Objective
from align.objectives.scoring import scored_ids
from align.preferences import Weights
from align.testbed.responses import A, level_starts, node_words
from align.testbed.tabular import leaf_table
from align.testbed.tree import node_states
from align.testbed.vocabulary import END_ID, alphabet_ids, encode
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
            columns: list[Any] = []
            for objective in self.objectives:
                found_N = read_in_tree(objective, world, prompt)
                if found_N is None:
                    nodes = range(level_starts(world.config.max_tokens)[-1])
                    completions = [self._text(node, world, prompt) for node in nodes]
                    found = objective([prompt.text] * len(completions), completions)
                    if any(value is None for value in found):
                        raise ValueError(f"{objective.__name__} does not apply to every response of {prompt.text!r}")
                    found_N = torch.tensor(found, dtype=torch.float64)
                columns.append(found_N)
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


def read_in_tree(objective: Objective, world: World, prompt: Prompt) -> torch.Tensor | None:
    """(N,) float64 scores of ending at each node; None for an objective that has to be given texts."""
    if isinstance(objective, Ensemble):
        members = [read_in_tree(member, world, prompt) for member in objective.members]
        known = [member_N for member_N in members if member_N is not None]
        return objective.of_scores(torch.stack(known, -1)) if len(known) == len(members) else None
    if isinstance(objective, PooledReward):
        weights, model, tokenizer = objective.load()
        if not _reads_as_sampled(tokenizer, world, prompt):
            return None
        features_NF = pooled_in_tree(model, world, prompt, names=weights.names)
        return objective.in_units(weights.rewards(features_NF, pessimism=objective.pessimism))
    if isinstance(objective, RewardModelObjective) and not isinstance(objective, SharedRewardModel) and objective.end:
        model = objective.model
        if not hasattr(model, "score") or not _reads_as_sampled(objective.tokenizer, world, prompt):
            return None
        ended_NH = _states(model, world, prompt)[1]
        with torch.inference_mode():
            outputs_N = model.score(ended_NH.to(model.device))[:, objective.head(model)].double().cpu()
        return objective.scale * outputs_N + objective.shift
    return None


def _reads_as_sampled(tokenizer: Any, world: World, prompt: Prompt) -> bool:
    """Whether a model of this tokenizer reads a response as the ids of the tree, by the path of the last word alone."""
    last = level_starts(world.config.max_tokens)[-1] - 1
    path = [alphabet_ids(prompt.spelling)[-1]] * world.config.max_tokens
    text = LearnedTable._text(last, world, prompt)
    return scored_ids(tokenizer, prompt.text, text) == [*encode(prompt.text), *path, END_ID]


def _states(model: Any, world: World, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
    return node_states(
        model.base_model.eval(), encode(prompt.text), alphabet=alphabet_ids(prompt.spelling), end=END_ID,
        max_tokens=world.config.max_tokens,
    )  # fmt: skip


def pooled_in_tree(model: Any, world: World, prompt: Prompt, *, names: Sequence[str]) -> torch.Tensor:
    """(N, F) features of align/objectives/pooled_reward.py, each a sum along the path: a child adds a token."""
    starts = level_starts(world.config.max_tokens)
    with torch.inference_mode():
        node_NH, ended_NH = (part.float() for part in _states(model, world, prompt))
        head, words = model.get_output_embeddings(), list(alphabet_ids(prompt.spelling))
        embed_VH = head.weight.cpu().float()
        embed_AH = embed_VH[words]
        logp_NV = head(node_NH.to(model.device, head.weight.dtype)).float().cpu().log_softmax(-1)
        sums = {name: torch.zeros_like(node_NH) for name in ("agree", "words", "states")}
        sums |= {name: torch.zeros(len(node_NH), 1) for name in ("logp", "length")}
        for depth in range(1, len(starts) - 1):
            parent, child = slice(*starts[depth - 1 : depth + 1]), slice(*starts[depth : depth + 2])
            agree_PAH = node_NH[parent, None] * embed_AH
            steps = {
                "agree": agree_PAH, "words": embed_AH.expand_as(agree_PAH), "states": node_NH[child].view_as(agree_PAH),
                "logp": logp_NV[parent][:, words, None],
                "length": torch.ones(len(agree_PAH), A, 1),
            }  # fmt: skip
            for name, step in steps.items():
                sums[name][child] = (sums[name][parent, None] + step).flatten(0, 1)
        closing_NH = node_NH * embed_VH[END_ID]
        whole = {
            "agree": sums["agree"] + closing_NH, "words": sums["words"] + embed_VH[END_ID],
            "states": sums["states"] + ended_NH, "last": ended_NH,
            "logp": sums["logp"] + logp_NV[:, END_ID, None], "length": sums["length"] + 1,
        }  # fmt: skip
        return torch.cat([whole[name] for name in names], 1)
