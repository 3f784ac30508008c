"""A prompt read once for two things: its hidden state at a layer, and the log-odds of refusing openings after it.

The numbers are those of `RefusalMargin` and `last_hidden_states`, for one pass over the prompt instead of thirteen: the
openings go through the model behind the prompt's own cache. Legend: K openings, T tokens, H hidden units, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evals.backends.transformers import TransformersBackend
from evals.items import Missing, Prompt
from evals.measure.measurements import RefusalMargin

OPENINGS = RefusalMargin()


@dataclass(frozen=True)
class Reading:
    """What one pass over a prompt says: hidden state of its last token (H), and refusal margin in nats."""

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
    texts = (*openings.refusals, *openings.affirmations)
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
    ids_KT = torch.full((len(tails), width), backend.tokenizer.pad_token_id, device=device)
    for k, tail in enumerate(tails):
        ids_KT[k, : len(tail)] = torch.tensor(tail)
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
        logits_KTV = logits_KTV.float().clone()
        if backend.banned:
            logits_KTV[..., list(backend.banned)] = -float("inf")
        logp_KT = torch.log_softmax(logits_KTV, -1).gather(-1, ids_KT[..., None])[..., 0]
    return state_H, np.array([float(logp_KT[k, : len(tail)].sum()) for k, tail in enumerate(tails)])


def _apart(
    backend: TransformersBackend, prompt: Prompt, texts: Sequence[str], *, layer: int, cut: int
) -> Reading | Missing:
    from evals.measure.model_measurements import last_hidden_states

    (state,) = last_hidden_states(backend, [prompt], layer=layer)
    found = backend.continuation_logprobs([prompt] * len(texts), continuations=list(texts))
    lost = next((v for v in (state, *found) if isinstance(v, Missing)), None)
    if lost is not None:
        return lost
    sums = np.array([v[0] for v in found if not isinstance(v, Missing)])
    return Reading(np.asarray(state.double()), _margin(sums, cut=cut))


def _margin(logp_K: Any, *, cut: int) -> float:
    return float(np.logaddexp.reduce(logp_K[:cut]) - np.logaddexp.reduce(logp_K[cut:]))
