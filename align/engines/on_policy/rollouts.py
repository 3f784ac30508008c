"""Rollouts: responses drawn from a causal LM itself (temperature 1, nothing cut off) and read again token by token.

Prompts are padded on the left, responses on the right, and positions count from the first real token, in sampling and
in reading alike: what is scored is the policy that was sampled, for learned positions (GPT-2) as for rotary ones.
Legend: B responses, P prompt tokens, T response tokens, L = P + T, H hidden units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from align.models.formats import formatter
from align.models.reading import Row, padded, positions, token_logprobs
from align.models.sampling import Drawn

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rollouts:
    """Prompts and responses; `attend_BL` is 1 on real tokens, `mask_BT` True on drawn ones, the ending one included."""

    ids_BL: Tensor
    attend_BL: Tensor
    mask_BT: Tensor

    def rows(self, index: Tensor | slice) -> Rollouts:
        """Those of these indices, without the padding that all of their prompts share."""
        ids_BL, attend_BL, mask_BT = self.ids_BL[index], self.attend_BL[index], self.mask_BT[index]
        first = int(attend_BL.any(0).long().argmax()) if len(attend_BL) else 0
        return Rollouts(ids_BL[:, first:], attend_BL[:, first:], mask_BT)

    def parts(self, size: int) -> Iterator[Rollouts]:
        """`size` of them at a time, in order."""
        return (self.rows(slice(i, i + size)) for i in range(0, len(self.mask_BT), size))

    @property
    def response_ids_BT(self) -> Tensor:
        return self.ids_BL[:, -self.mask_BT.shape[1] :]

    def responses(self) -> list[list[int]]:
        """Ids drawn for each response, the ending one included."""
        return [ids_T[mask_T].tolist() for ids_T, mask_T in zip(self.response_ids_BT, self.mask_BT, strict=True)]


def draw_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    ends: Sequence[int],
    batch_size: int,
) -> list[tuple[list[int], Drawn]]:
    """Each prompt's ids in its format, and one response by the model's generation config (see `plain_sampling`).

    Draws from torch's global generator, `batch_size` prompts at a time, padded to the longest of these alone. A
    response that never drew an ending token is cut and stays as it is.
    """
    import torch

    form = formatter(tokenizer)
    heads = form.prompts_ids(prompts)
    found: list[tuple[list[int], Drawn]] = []
    for start in range(0, len(heads), batch_size):
        part = heads[start : start + batch_size]
        rows: list[Row] = [(head, []) for head in part]
        batch = padded(rows, pad_id=tokenizer.pad_token_id, side="left", device=model.device)
        with torch.no_grad():
            whole = model.generate(input_ids=batch.ids_BT, attention_mask=batch.attend_BT)
        for head, tail in zip(part, whole[:, batch.ids_BT.shape[1] :].tolist(), strict=True):
            drawn = Drawn.of(tail, ends=ends)
            found.append((head, replace(drawn, text=form.decode(drawn.ids))))
    return found


def draw(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    ends: Sequence[int],
    batch_size: int,
) -> Rollouts:
    """One response per prompt, as `draw_rows`."""
    drawn = draw_rows(model, tokenizer, prompts, ends=ends, batch_size=batch_size)
    rows: list[Row] = [(head, list(response.ids)) for head, response in drawn]
    return rollouts(rows, pad_id=tokenizer.pad_token_id, device=model.device)


def rollouts(rows: Sequence[Row], *, pad_id: int, device: torch.device | str) -> Rollouts:
    """Prompts and their responses as tensors: prompts padded on the left, responses on the right."""
    import torch

    heads = padded([(head, ()) for head, _ in rows], pad_id=pad_id, side="left", device=device)
    tails = padded([((), tail) for _, tail in rows], pad_id=pad_id, device=device)
    ids_BL = torch.cat([heads.ids_BT, tails.ids_BT], -1)
    return Rollouts(ids_BL, torch.cat([heads.attend_BT, tails.attend_BT], -1), tails.scored_BT)


def read(model: PreTrainedModel, batch: Rollouts) -> tuple[Tensor, Tensor]:
    """(B, T) float32 log-probabilities of the tokens drawn (0 at padding), (B, T, H) last hidden states before them."""
    count = batch.mask_BT.shape[1]
    out = model(
        input_ids=batch.ids_BL,
        attention_mask=batch.attend_BL,
        position_ids=positions(batch.attend_BL),
        logits_to_keep=count + 1,
        output_hidden_states=True,
        use_cache=False,
    )
    logp_BT = token_logprobs(out.logits[:, -count - 1 : -1], batch.response_ids_BT)
    return logp_BT.masked_fill(~batch.mask_BT, 0.0), out.hidden_states[-1][:, -count - 1 : -1]
