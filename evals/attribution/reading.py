"""A prompt read once for two things: its hidden state at a layer, and the log-odds of refusing openings after it.

The numbers are those of `RefusalMargin` and `last_hidden_states`, for one pass over the prompt instead of thirteen: the
openings go through the model behind the prompt's own cache. Legend: K openings, T tokens, H hidden units, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from align.models.reading import padded, token_logprobs
from evals.backends.transformers import TransformersBackend
from evals.items import Missing, Prompt
from evals.measure.measurements import RefusalMargin

if TYPE_CHECKING:
    import torch

OPENINGS = RefusalMargin()


@dataclass(frozen=True)
class Reading:
    """What one pass over a prompt gives: hidden state of its last token (H), and refusal margin in nats."""

    state_H: np.ndarray
    margin: float


def read_prompts(
    backend: TransformersBackend, prompts: Sequence[Prompt], *, layer: int, openings: RefusalMargin = OPENINGS
) -> list[Reading | Missing]:
    """One reading per prompt, in order; Missing where the prompt with an opening does not fit, or has no place.

    `layer` counts from the embedding (0).
    """
    return [_read(backend, prompt, layer=layer, openings=openings) for prompt in prompts]


def _read(backend: TransformersBackend, prompt: Prompt, *, layer: int, openings: RefusalMargin) -> Reading | Missing:
    texts = [backend.spaced(prompt, text) for text in (*openings.refusals, *openings.affirmations)]
    pairs = [backend.pair_ids(prompt, text) for text in texts]
    lost = next((pair for pair in pairs if isinstance(pair, Missing)), None)
    if lost is not None:
        return lost
    rows = [(ids[:start], ids[start:]) for ids, start in pairs]  # type: ignore[misc]
    heads = {tuple(head) for head, _ in rows}
    if len(heads) > 1:  # a tokenizer that joins the prompt's end with an opening: read each by itself
        return _apart(backend, prompt, texts, layer=layer, cut=len(openings.refusals))
    state_H, logp_K = _behind(backend, list(rows[0][0]), [tail for _, tail in rows], layer=layer)
    return Reading(state_H, _margin(logp_K, cut=len(openings.refusals)))


def _behind(
    backend: TransformersBackend, head: list[int], tails: Sequence[Sequence[int]], *, layer: int
) -> tuple[np.ndarray, np.ndarray]:
    """(Hidden state at the end of `head`, (K,) log-probability of each tail behind it)."""
    import torch

    device, width = backend.model.device, max(map(len, tails))
    ids_KT = padded([(tail, ()) for tail in tails], pad_id=backend.tokenizer.pad_token_id, device=device).ids_BT
    with backend.active():
        out = backend.model(input_ids=torch.tensor([head], device=device), use_cache=True, output_hidden_states=True)
        state_H = out.hidden_states[layer][0, -1].double().cpu().numpy()
        logits_KTV = out.logits[:, -1:].expand(len(tails), -1, -1)
        if width > 1:
            cache = out.past_key_values
            cache.batch_repeat_interleave(len(tails))
            mask = torch.ones(len(tails), len(head) + width - 1, dtype=torch.long, device=device)
            places = torch.arange(len(head), len(head) + width - 1, device=device).expand(len(tails), -1)
            more = backend.model(
                input_ids=ids_KT[:, :-1], attention_mask=mask, position_ids=places, past_key_values=cache
            )  # fmt: skip
            logits_KTV = torch.cat([logits_KTV, more.logits], dim=1)
        logp_KT = token_logprobs(logits_KTV, ids_KT, banned=backend.banned)
    return state_H, np.array([float(logp_KT[k, : len(tail)].sum()) for k, tail in enumerate(tails)])


def _apart(
    backend: TransformersBackend, prompt: Prompt, texts: Sequence[str], *, layer: int, cut: int
) -> Reading | Missing:
    (state,) = last_hidden_states(backend, [prompt], layer=layer)
    scores = backend.continuation_logprobs([prompt] * len(texts), continuations=list(texts))
    if isinstance(state, Missing):
        return state
    lost = next((score for score in scores if isinstance(score, Missing)), None)
    if lost is not None:
        return lost
    sums = np.array([score[0] for score in scores if not isinstance(score, Missing)])
    return Reading(np.asarray(state.double()), _margin(sums, cut=cut))


def _margin(logp_K: np.ndarray, *, cut: int) -> float:
    return float(np.logaddexp.reduce(logp_K[:cut]) - np.logaddexp.reduce(logp_K[cut:]))


def last_hidden_states(
    backend: TransformersBackend, prompts: Sequence[Prompt], *, layer: int
) -> list[torch.Tensor | Missing]:
    """The hidden state (H) of every prompt's last token at a layer, on the CPU, or Missing."""
    encoded = [_fitting(backend, prompt) for prompt in prompts]
    rows = {i: ids for i, ids in enumerate(encoded) if not isinstance(ids, Missing)}
    order = list(rows)

    def work(chosen: list[int]) -> list[torch.Tensor]:
        ids_BT, mask_BT = backend.padded([rows[order[c]] for c in chosen], left=True)
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
        with backend.active():
            out = backend.model(
                input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT, output_hidden_states=True
            )
        return list(out.hidden_states[layer][:, -1].float().cpu())

    states = dict(zip(order, backend.batcher.run([len(rows[i]) for i in order], work=work), strict=True))
    return [ids if isinstance(ids, Missing) else states[i] for i, ids in enumerate(encoded)]


def _fitting(backend: TransformersBackend, prompt: Prompt) -> list[int] | Missing:
    ids = backend.encode(prompt)
    if not isinstance(ids, Missing) and backend.context is not None and len(ids) > backend.context:
        return Missing("context", f"{len(ids)} tokens do not fit in {backend.context}", lasting=True)
    return ids
