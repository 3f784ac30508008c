"""Gradient cosines of the objectives at the reference, before any training: one batch of samples, one of comparisons.

`policy_KK` compares the directions in which the policy gradient of each `E[r_k]` starts (score function, each prompt's
leave-one-out baseline, no KL: at the reference its gradient is 0). `dpo_KK` does so for the K DPO losses: with the
policy still the reference, every margin is 0 and objective k's gradient is `-beta / 2 E[l_k (grad log pi(a) - grad log
pi(b))]`, l_k its label as +1 or -1; beta scales all K alike and drops out. -1: what raises one lowers the other,
whatever the weights; +1: one objective would do. Cosines are of directions: they say nothing about how far an objective
can be raised, and they move as the policy does (align/engines/gradient_step.py logs them during training).

All objectives are read on the same samples, so that sampling noise does not make them look unrelated; `reliability_K`
says how much of each gradient is noise. It needs (2 K, D) floats of memory: give `lora_r` for a large model.
Legend: B samples, T tokens, N comparisons, K objectives, D trained weights, halves h of the prompts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from align.data.comparisons import Row, ids_of, responses_of, row_scores
from align.engines.on_policy.prompts import check_lengths, counted, sayable
from align.engines.on_policy.rollouts import Rollouts, draw, read, rollouts
from align.engines.problem import P, Problem
from align.errors import UserError
from align.functional.conflict import gradient_cosines
from align.models import attach_lora, count_parameters, load_tokenizer
from align.models.formats import formatter
from align.models.load import load_to_read
from align.models.reading import completion_rows
from align.models.sampling import Drawn, plain_sampling
from align.objectives.base import Objective
from align.objectives.metered import Metered, objective_scores
from align.runs import Ledger

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class GradientConflict:
    """Cosines between the objectives' gradients, nan where one is 0; `dpo_KK` is None without comparisons.

    The reliabilities are the cosine of an objective's gradient on one half of the prompts (comparisons) with that on
    the other: 1 is no noise; near 0 the batch is too small for its row of the matrix to mean anything.
    """

    names: tuple[str, ...]
    policy_KK: np.ndarray
    reliability_K: np.ndarray
    samples: int
    dpo_KK: np.ndarray | None
    dpo_reliability_K: np.ndarray | None
    comparisons: int
    weights: int  # D
    left_out: Mapping[str, int] = field(default_factory=dict)  # prompts and comparisons that the format cannot say

    def metrics(self) -> dict[str, object]:
        """The same as plain JSON, None for nan."""
        return {
            "names": list(self.names),
            "policy": _plain(self.policy_KK),
            "reliability": _plain(self.reliability_K),
            "samples": self.samples,
            "dpo": _plain(self.dpo_KK),
            "dpo_reliability": _plain(self.dpo_reliability_K),
            "comparisons": self.comparisons,
            "weights": self.weights,
            **counted(self.left_out),
        }


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How gradients are measured.

    `lora_r`: 0 for all weights, else those of a fresh adapter of that rank (its directions at the start of training,
    which depend on the adapter's draw). An objective's label of a comparison is the sign of its margin, none for a tie;
    with `tau` the mean label of an annotator at that temperature, `tanh(margin / 2 tau)`.
    """

    samples: int = 8  # responses to each prompt
    max_completion_length: int = 64
    tau: float = 0.0
    lora_r: int = 0
    batch_size: int = 64
    seed: int = 0


def gradient_conflict(problem: Problem[P], settings: Settings, *, ledger: Ledger) -> GradientConflict:
    """Cosines at the problem's reference, from responses of its own to each prompt, and from the comparisons if any.

    The objectives' scores are read from the comparisons where they all carry them, else asked. Samples, scores, tokens
    and flops are charged. torch's global generator is left as it was. UserError on sizes that mean nothing, a prompt
    that does not fit, an objective that does not apply to a comparison.
    """
    import torch

    tokenizer, objectives = load_tokenizer(problem.reference), problem.objectives
    prompts, unsaid = sayable(problem.prompts or (), formatter(tokenizer))
    comparisons, others = sayable(problem.comparisons or (), formatter(tokenizer))
    samples, max_tokens, lora_r = settings.samples, settings.max_completion_length, settings.lora_r
    batch_size, tau = settings.batch_size, settings.tau
    if samples < 2 or batch_size < 1 or max_tokens < 1 or lora_r < 0 or tau < 0 or len(prompts) < 2:
        raise UserError(
            "gradient conflict: give at least two prompts, samples of at least 2, batch_size and max_completion_length "
            "of at least 1, lora_r and tau of at least 0"
        )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = load_to_read(problem.reference)
        check_lengths(prompts, model=model, tokenizer=tokenizer, max_tokens=max_tokens)
        rows = [row for row in prompts for _ in range(samples)]
        with plain_sampling(model, tokenizer, max_tokens=max_tokens) as ends:
            batch = draw(model, tokenizer, [row["prompt"] for row in rows], ends=ends, batch_size=batch_size)
        policy = attach_lora(model, lora_r) if lora_r else model  # a fresh adapter changes no distribution
        scores_BK = _scores(batch, rows, objectives=objectives, tokenizer=tokenizer, ends=ends, ledger=ledger)
        signals_BK = leave_one_out(scores_BK, group=samples)
        halves_B = np.arange(len(rows)) // samples % 2
        gradients = _Gradients(policy, ledger=ledger, batch_size=batch_size)
        policy_2KD = gradients(batch, signals_BK=signals_BK, halves_B=halves_B)
        parameters = count_parameters(policy, embeddings=False)
        ledger.add(samples_drawn=len(rows), flops=2.0 * parameters * int(batch.attend_BL.sum()))
        dpo_KK, dpo_K = None, None
        if comparisons:
            labels_NK = mean_labels(_margins(comparisons, objectives=objectives, ledger=ledger), tau=tau)
            halves_N = np.arange(len(labels_NK)) % 2
            given = rollouts(
                [row for side in (0, 1) for row in _given(comparisons, side, tokenizer=tokenizer, ends=ends)],
                pad_id=tokenizer.pad_token_id, device=model.device,
            )  # fmt: skip
            signals = np.concatenate([labels_NK, -labels_NK])
            dpo_KK, dpo_K = _summary(gradients(given, signals_BK=signals, halves_B=np.tile(halves_N, 2)))
    policy_KK, policy_K = _summary(policy_2KD)
    return GradientConflict(
        names=tuple(objectives),
        policy_KK=policy_KK,
        reliability_K=policy_K,
        samples=len(rows),
        dpo_KK=dpo_KK,
        dpo_reliability_K=dpo_K,
        comparisons=len(comparisons),
        weights=policy_2KD.shape[-1],
        left_out=Counter(unsaid) + Counter(others),
    )


def _plain(values: np.ndarray | None) -> object:
    if values is None or values.ndim == 2:
        return None if values is None else [_plain(row) for row in values]
    return [float(v) if np.isfinite(v) else None for v in values]


def leave_one_out(scores_BK: np.ndarray, *, group: int) -> np.ndarray:
    """Each score less the mean of the others of its group that the objective applies to; 0 where there is none."""
    scores_PSK = scores_BK.reshape(-1, group, scores_BK.shape[1])
    known_PSK = np.isfinite(scores_PSK)
    n_P1K = known_PSK.sum(1, keepdims=True)
    means_P1K = np.nan_to_num(scores_PSK).sum(1, keepdims=True) / np.maximum(n_P1K, 1)
    apart_PSK = (scores_PSK - means_P1K) * n_P1K / np.maximum(n_P1K - 1, 1)
    return np.where(known_PSK & (n_P1K >= 2), apart_PSK, 0.0).reshape(scores_BK.shape)


def mean_labels(margins_NK: np.ndarray, *, tau: float) -> np.ndarray:
    """+1 for the first response, -1 for the second; with `tau` > 0 the mean over a Bradley-Terry annotator's draws."""
    return np.tanh(margins_NK / (2 * tau)) if tau else np.sign(margins_NK)


class _Gradients:
    """Gradients of `sum_b signal_bk log pi(y_b | x_b) / B` for each half of the rows and each objective."""

    def __init__(self, policy: PreTrainedModel, *, ledger: Ledger, batch_size: int) -> None:
        self.policy, self.ledger, self.batch_size = policy, ledger, batch_size
        self.trained = [p for p in policy.parameters() if p.requires_grad]

    def __call__(self, batch: Rollouts, *, signals_BK: np.ndarray, halves_B: np.ndarray) -> Tensor:
        """(2, K, D), on the policy's device. Charges tokens and flops (K backward passes on one forward pass)."""
        import torch

        signals = torch.tensor(signals_BK, dtype=torch.float32, device=batch.ids_BL.device) / len(signals_BK)
        size, count = sum(p.numel() for p in self.trained), signals.shape[1]
        sums = torch.zeros(2, count, size, device=signals.device)
        for half in (0, 1):
            mine = torch.tensor(np.flatnonzero(halves_B == half), device=signals.device)
            for index in mine.split(self.batch_size):
                logp_B = read(self.policy, batch.rows(index))[0].sum(-1)
                for k in range(count):
                    loss = (signals[index, k] * logp_B).sum()
                    found = torch.autograd.grad(loss, self.trained, retain_graph=k + 1 < count, allow_unused=True)
                    flat = [
                        torch.zeros_like(p).ravel() if g is None else g.ravel()
                        for p, g in zip(self.trained, found, strict=True)
                    ]
                    sums[half, k] += torch.cat(flat)
        tokens = int(batch.attend_BL.sum())
        parameters = count_parameters(self.policy, embeddings=False)
        self.ledger.add(tokens=tokens, flops=parameters * tokens * (2.0 + 4.0 * count))
        return sums


def _summary(halves_2KD: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(K, K) cosines of the whole gradients, (K,) cosines of each one's two halves."""
    halves = halves_2KD.double().cpu().numpy()
    return gradient_cosines(halves.sum(0)), np.array([gradient_cosines(pair)[0, 1] for pair in halves.swapaxes(0, 1)])


def _scores(
    batch: Rollouts,
    rows: Sequence[Row],
    *,
    objectives: Mapping[str, Objective],
    tokenizer: PreTrainedTokenizerBase,
    ends: Sequence[int],
    ledger: Ledger,
) -> np.ndarray:
    """(B, K) scores in TRL's calling convention, nan where an objective does not apply."""
    ids = batch.responses()
    texts = [formatter(tokenizer).decode(response) for response in ids]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    asked = [Metered(name, f, ledger, ends=ends) for name, f in objectives.items()]
    found = [f([row["prompt"] for row in rows], texts, completion_ids=ids, **columns) for f in asked]
    return np.array([[math.nan if s is None else s for s in scores] for scores in found]).T


def _margins(rows: Sequence[Row], *, objectives: Mapping[str, Objective], ledger: Ledger) -> np.ndarray:
    """(N, K) scores of the first response less those of the second; rows that carry scores are charged a label each."""
    carried = all("scores_a" in row and "scores_b" in row for row in rows)
    found = row_scores(rows) if carried else objective_scores(rows, objectives=objectives, ledger=ledger)
    margins_NK = np.array([np.subtract(*found[str(row["id"])]) for row in rows])
    if margins_NK.shape != (len(rows), len(objectives)):
        raise UserError(f"gradient conflict: comparisons carry {margins_NK.shape[1]} scores, not {len(objectives)}")
    if carried:
        ledger.add(scores_read=margins_NK.size)
    return margins_NK


def _given(
    comparisons: Sequence[Row], side: int, *, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Ids of prompts and of the responses on one side: as they were drawn, or a text up to its first ending token."""
    prompts = [row["prompt"] for row in comparisons]
    found = completion_rows(tokenizer, prompts, [responses_of(row)[side] for row in comparisons])
    drawn = [ids_of(row)[side] for row in comparisons]
    return [(head, ids or Drawn.of(tail, ends=ends).ids) for (head, tail), ids in zip(found, drawn, strict=True)]
