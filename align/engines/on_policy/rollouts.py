"""Rollouts: responses drawn from a causal LM itself (temperature 1, nothing cut off) and read again token by token.

Prompts are padded on the left, responses on the right, and positions count from the first real token, in sampling and
in reading alike: what is scored is the policy that was sampled, for learned positions (GPT-2) as for rotary ones.
Legend: B responses, P prompt tokens, T response tokens, L = P + T, H hidden units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align import checks
from align.data.comparisons import Row
from align.errors import UserError
from align.models.reading import positions, token_logprobs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rollouts:
    """Prompts and responses; `attend_BL` is 1 on real tokens, `mask_BT` True on drawn ones, the ending one included."""

    ids_BL: Tensor
    attend_BL: Tensor
    mask_BT: Tensor

    def rows(self, index: Tensor | slice) -> Rollouts:
        """Those of these indices."""
        return Rollouts(self.ids_BL[index], self.attend_BL[index], self.mask_BT[index])

    def parts(self, size: int) -> Iterator[Rollouts]:
        """`size` of them at a time, in order."""
        return (self.rows(slice(i, i + size)) for i in range(0, len(self.mask_BT), size))

    @property
    def response_ids_BT(self) -> Tensor:
        return self.ids_BL[:, -self.mask_BT.shape[1] :]

    def responses(self) -> list[list[int]]:
        """Ids drawn for each response, the ending one included."""
        return [ids_T[mask_T].tolist() for ids_T, mask_T in zip(self.response_ids_BT, self.mask_BT, strict=True)]


def check_lengths(
    prompts: Sequence[Row], *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> None:
    """UserError for a prompt without tokens, or when the longest one and its response exceed the model's positions."""
    ids = tokenizer([row["prompt"] for row in prompts], add_special_tokens=False)["input_ids"]
    for row, tokens in zip(prompts, ids, strict=True):
        if not tokens:
            raise UserError(f"prompt {row.get('id', '?')} has no token to continue from; leave it out")
    checks.prompts_fit(max(map(len, ids)), model, max_completion_length=max_tokens)


def draw(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    ends: Sequence[int],
    batch_size: int,
) -> Rollouts:
    """One response per prompt by the model's generation config (see `plain_sampling`), `batch_size` at a time.

    Draws from torch's global generator. Prompts get no special tokens, as when a policy is evaluated. A response that
    never drew an ending token is cut and stays as it is.
    """
    import torch
    from torch.nn.functional import pad

    rows = tokenizer(
        list(prompts), return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
    ).to(model.device)
    ids_BP, attend_BP = rows["input_ids"], rows["attention_mask"]
    parts = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        with torch.no_grad():
            whole = model.generate(input_ids=ids_BP[part], attention_mask=attend_BP[part])
        parts.append(whole[:, ids_BP.shape[1] :])
    width = max(part.shape[1] for part in parts)
    drawn_BT = torch.cat([pad(part, (0, width - part.shape[1]), value=tokenizer.pad_token_id) for part in parts])
    return rollouts(ids_BP, attend_BP=attend_BP, drawn_BT=drawn_BT, ends=ends)


def rollouts(ids_BP: Tensor, *, attend_BP: Tensor, drawn_BT: Tensor, ends: Sequence[int]) -> Rollouts:
    """Left-padded prompts and their responses, each of which is over at its first ending token."""
    import torch

    ended_BT = torch.isin(drawn_BT, torch.tensor(list(ends), device=drawn_BT.device))
    mask_BT = ended_BT.cumsum(-1) - ended_BT.long() == 0
    return Rollouts(torch.cat([ids_BP, drawn_BT], -1), torch.cat([attend_BP, mask_BT.to(attend_BP.dtype)], -1), mask_BT)


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
