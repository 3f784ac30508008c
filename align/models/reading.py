"""`log pi(y|x)` of a causal LM, once for everybody: padded rows in, log-probabilities of their completions out.

A row is (prompt ids, completion ids). A pass reads `batch_size` rows, and fewer where the block of logits (rows,
positions, vocabulary) in float32 would be larger than `block_bytes`; a single row that is still too large is read in
pieces behind its own cache. Below that size the numbers are those of one `log_softmax`, to the last bit.
Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from align.errors import UserError
from align.models.formats import formatter
from align.models.sampling import Drawn

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Row = tuple[Sequence[int], Sequence[int]]
T = TypeVar("T")

# The largest block of logits in float32. Beside it stand its logarithms, or slices of them: less than 2 GB in all.
BLOCK_BYTES = 2**29
FLOAT32 = 4


@dataclass(frozen=True)
class Padded:
    """Rows as tensors (B, T): ids, 1 where a token is real, True where it belongs to the completion."""

    ids_BT: Tensor
    attend_BT: Tensor
    scored_BT: Tensor
    side: str

    @property
    def positions_BT(self) -> Tensor:
        """Counted from the first real token, wherever the padding stands."""
        return positions(self.attend_BT)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a model is called with; padded on the right its own count of positions is right."""
        inputs = {"input_ids": self.ids_BT, "attention_mask": self.attend_BT}
        return inputs if self.side == "right" else {**inputs, "position_ids": self.positions_BT}


def positions(attend_BT: Tensor) -> Tensor:
    """(B, T) place of every token in its row, from the attention mask; 0 before the first one."""
    return (attend_BT.cumsum(-1) - 1).clamp(min=0)


def padded(rows: Sequence[Row], *, pad_id: int, side: str = "right", device: torch.device | str = "cpu") -> Padded:
    """The rows as tensors on `device`, with padding on one `side` of each; ValueError for another side, or no row."""
    import torch

    if side not in ("left", "right") or not rows:
        raise ValueError(f"{len(rows)} rows cannot be padded on the {side!r} side")
    width = max(len(head) + len(tail) for head, tail in rows)
    ids_BT = torch.full((len(rows), width), pad_id)
    attend_BT = torch.zeros((len(rows), width), dtype=torch.long)
    scored_BT = torch.zeros((len(rows), width), dtype=torch.bool)
    for b, (head, tail) in enumerate(rows):
        size = len(head) + len(tail)
        first = width - size if side == "left" else 0
        ids_BT[b, first : first + size] = torch.tensor([*head, *tail], dtype=torch.long)
        attend_BT[b, first : first + size] = 1
        scored_BT[b, first + len(head) : first + size] = True
    return Padded(ids_BT.to(device), attend_BT.to(device), scored_BT.to(device), side)


def token_logprobs(
    logits_BTV: Tensor, ids_BT: Tensor, *, banned: Sequence[int] = (), block_bytes: int = BLOCK_BYTES
) -> Tensor:
    """(B, T) float32 log-probabilities of `ids_BT`, in nats, from the logits that predict them.

    Tokens in `banned` have probability 0. Above `block_bytes` the vocabulary is summed slice by slice of T (log-sum-exp
    minus the token's own logit), where `log_softmax` would hold the whole block a second time.
    """
    import torch

    rows, width, vocabulary = logits_BTV.shape
    if FLOAT32 * rows * width * vocabulary <= block_bytes:
        logp_BTV = torch.log_softmax(_allowed(logits_BTV.float(), banned), -1)
        return logp_BTV.gather(-1, ids_BT[..., None])[..., 0]
    step = max(1, block_bytes // (4 * FLOAT32 * rows * vocabulary))
    parts = []
    for start in range(0, width, step):
        part_BTV = _allowed(logits_BTV[:, start : start + step].float(), banned)
        own_BT = part_BTV.gather(-1, ids_BT[:, start : start + step, None])[..., 0]
        parts.append(own_BT - part_BTV.logsumexp(-1))
    return torch.cat(parts, 1)


def next_token_logprobs(
    model: PreTrainedModel, ids_BT: Tensor, attend_BT: Tensor, *, banned: Sequence[int] = ()
) -> Tensor:
    """(B, V) float32 log-probabilities of the token after the last position of left-padded rows."""
    import torch

    with torch.inference_mode():
        ids_BT, attend_BT = ids_BT.to(model.device), attend_BT.to(model.device)
        logits_BTV = model(
            input_ids=ids_BT, attention_mask=attend_BT, position_ids=positions(attend_BT), logits_to_keep=1
        ).logits
        return torch.log_softmax(_allowed(logits_BTV[:, -1].float(), banned), -1)


def _last(x_BT: Tensor, count: int) -> Tensor:
    return x_BT[:, x_BT.shape[1] - count :]


def _allowed(logits: Tensor, banned: Sequence[int]) -> Tensor:
    if not banned:
        return logits
    logits = logits.clone()
    logits[..., list(banned)] = -float("inf")
    return logits


# ----------------------------------------------------------------------------------------------------------- in passes


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How rows are read: at most `batch_size` a pass, padded with `pad_id` on one `side`, `banned` tokens impossible.

    Padded on the left only the logits of completions are computed (`logits_to_keep`). With `longest_first` rows of one
    length share a pass, whatever their order. `before` is called with the slice of rows before each pass, for models
    that depend on more than the ids.
    """

    pad_id: int
    batch_size: int = 32
    side: str = "right"
    longest_first: bool = False
    banned: tuple[int, ...] = ()
    block_bytes: int = BLOCK_BYTES
    before: Callable[[slice], None] | None = None

    def __post_init__(self) -> None:
        if self.longest_first and self.before is not None:
            raise ValueError("rows that something else depends on are read in the order given, not the longest first")

    def passes(self, rows: Sequence[Row], *, vocabulary: int) -> list[slice]:
        """The rows of each pass; one row alone may be larger than a block, and is then read in pieces."""
        cut: list[slice] = []
        for start in range(0, len(rows), self.batch_size):
            stop = min(start + self.batch_size, len(rows))
            tokens = max(self._kept(row) for row in rows[start:stop])
            fitting = max(1, self.block_bytes // max(1, FLOAT32 * tokens * vocabulary))
            cut += [slice(i, min(i + fitting, stop)) for i in range(start, stop, fitting)]
        return cut

    def _kept(self, row: Row) -> int:
        """Positions whose logits are computed for this row."""
        head, tail = row
        return len(tail) + 1 if self.side == "left" else len(head) + len(tail)

    def read(self, model: PreTrainedModel, rows: Sequence[Row]) -> Iterator[tuple[Padded, Tensor]]:
        """For each pass the padded rows and (B, T - 1) log-probabilities of their tokens but the first.

        0 where a token belongs to no completion. UserError, before the first pass, for a row without a prompt token:
        nothing predicts the first token of its completion.
        """
        import torch

        if not all(len(head) for head, _ in rows):
            raise UserError(
                "a prompt has no token, so that nothing predicts the first token of its completion; "
                "give every completion a prompt of at least one token"
            )
        vocabulary = vocabulary_of(model)
        for chosen in self.passes(rows, vocabulary=vocabulary):
            part = rows[chosen]
            if self.before is not None:
                self.before(chosen)
            batch = padded(part, pad_id=self.pad_id, side=self.side, device=model.device)
            most = max(map(self._kept, part))
            with torch.no_grad():
                if len(part) == 1 and FLOAT32 * most * vocabulary > self.block_bytes:
                    logp_BT = self._in_pieces(model, batch.ids_BT, vocabulary=vocabulary)
                else:
                    logp_BT = self._in_one(model, batch, kept=most)
            yield batch, logp_BT.where(_last(batch.scored_BT, logp_BT.shape[1]), 0.0)

    def _in_one(self, model: PreTrainedModel, batch: Padded, *, kept: int) -> Tensor:
        extra = {"logits_to_keep": kept} if self.side == "left" else {}
        logits_BTV = model(**batch.inputs, **extra).logits[:, :-1]
        ids_BT = _last(batch.ids_BT, logits_BTV.shape[1])
        return token_logprobs(logits_BTV, ids_BT, banned=self.banned, block_bytes=self.block_bytes)

    def _in_pieces(self, model: PreTrainedModel, ids_1T: Tensor, *, vocabulary: int) -> Tensor:
        """(1, T - 1): one row without padding, every piece behind the cache of those before it."""
        import torch

        step, cache, parts = max(1, self.block_bytes // (FLOAT32 * vocabulary)), None, []
        for start in range(0, ids_1T.shape[1] - 1, step):
            piece = ids_1T[:, start : min(start + step, ids_1T.shape[1] - 1)]
            seen = torch.ones_like(ids_1T[:, : start + piece.shape[1]])
            out = model(input_ids=piece, attention_mask=seen, past_key_values=cache, use_cache=True)
            cache, after = out.past_key_values, ids_1T[:, start + 1 : start + 1 + piece.shape[1]]
            parts.append(token_logprobs(out.logits, after, banned=self.banned, block_bytes=self.block_bytes))
        return torch.cat(parts, 1)

    def in_order(self, rows: Sequence[Row], read: Callable[[list[Row]], list[T]]) -> list[T]:
        """What `read` gives for each row, in the order of the rows, whatever order they are read in."""
        order = list(range(len(rows)))
        if self.longest_first:
            order.sort(key=lambda i: -(len(rows[i][0]) + len(rows[i][1])))
        values = dict(zip(order, read([rows[i] for i in order]), strict=True))
        return [values[i] for i in range(len(rows))]


def completion_logprobs(model: PreTrainedModel, rows: Sequence[Row], *, reader: Reader) -> list[list[float]]:
    """Log-probability in nats of every token of each completion, in the order of the rows."""

    def read(rows: list[Row]) -> list[list[float]]:
        values: list[list[float]] = []
        for batch, logp_BT in reader.read(model, rows):
            scored_BT = _last(batch.scored_BT, logp_BT.shape[1])
            values += [logp_T[scored_T].tolist() for logp_T, scored_T in zip(logp_BT, scored_BT, strict=True)]
        return values

    return reader.in_order(rows, read)


def sequence_logprobs(model: PreTrainedModel, rows: Sequence[Row], *, reader: Reader) -> list[float]:
    """`log p(completion | prompt)` in nats, summed over the completion's tokens, in the order of the rows."""

    def read(rows: list[Row]) -> list[float]:
        return [total for _, logp_BT in reader.read(model, rows) for total in logp_BT.sum(-1).tolist()]

    return reader.in_order(rows, read)


def vocabulary_of(model: PreTrainedModel) -> int:
    """How many logits the model gives at a position, by its config; 0 where that does not say."""
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(text, "vocab_size", None) or 0)


@contextmanager
def evaluated(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Within the block the model is in eval mode; the mode it had comes back."""
    training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(training)


# ---------------------------------------------------------------------------------------------------------- text to ids


def completion_rows(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str | Drawn],
    *,
    max_new_tokens: int | None = None,
) -> list[Row]:
    """Token ids of each pair in the tokenizer's prompt format: those that were drawn, or a text and what closes it.

    A text of `max_new_tokens` tokens or more was cut before it ended, and nothing closes it.
    """
    form = formatter(tokenizer)
    rows: list[Row] = []
    for prompt, completion in zip(prompts, completions, strict=True):
        if isinstance(completion, Drawn):
            rows.append((form.prompt_ids(prompt), completion.ids))
            continue
        head, tail = form.row(prompt, completion, ended=False)
        cut = max_new_tokens is not None and len(tail) >= max_new_tokens
        rows.append((head, tail if cut else form.reply_ids(prompt, completion)))
    return rows
