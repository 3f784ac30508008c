"""Prompts and replies as the rows of ids that trainers read: in the checkpoint's format, cut to a length, all counted.

A reply that was drawn comes with its ids and is trained as it was drawn, so that one which was cut is never taught an
end; a text is closed as its format closes it. Nothing is left out without a count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.errors import UserError
from align.models.chat import FormatError
from align.models.formats import formatter
from align.models.reading import Reader, Row, evaluated, sequence_logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

Reply = tuple[str, Sequence[int] | None]  # a text, and the ids that were drawn where it is a sample


@dataclass(frozen=True)
class Encoded:
    """Ids of a prompt and of its replies; `cut`: a reply lost its end to the length."""

    prompt: list[int]
    replies: tuple[list[int], ...]
    cut: bool = False

    @property
    def longest(self) -> int:
        """Tokens of the prompt and its longest reply."""
        return len(self.prompt) + max(map(len, self.replies))


class Encoder:
    """Rows in the format of one tokenizer, cut to `max_length` tokens of prompt and reply (None: whole).

    `lost` counts what was left out, `dropped_by_` and the reason (length: the prompt alone fills `max_length`; others
    are those for which a template cannot say a prompt, in `unsaid` by reason alone); `cut_by_length` counts what was
    cut.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None) -> None:
        self.form = formatter(tokenizer)
        self.max_length = max_length
        self.lost: Counter[str] = Counter(dropped_by_length=0, cut_by_length=0)
        self.unsaid: Counter[str] = Counter()
        self._read: dict[tuple[str, str], list[int]] = {}

    def __call__(self, prompt: str, *replies: Reply) -> Encoded | None:
        """The row, or None for one that is left out; a prompt or reply that was asked before is not read again."""
        try:
            head = self.form.prompt_ids(prompt)
            tails = [list(ids) if ids is not None else self._closed(prompt, text) for text, ids in replies]
        except FormatError as error:
            self.unsaid[error.reason] += 1
            self.lost[f"dropped_by_{error.reason}"] += 1
            return None
        if self.max_length is None:
            return Encoded(head, tuple(tails))
        room = self.max_length - len(head)
        if room < 1:
            self.lost["dropped_by_length"] += 1
            return None
        cut = max(map(len, tails)) > room
        self.lost["cut_by_length"] += cut
        return Encoded(head, tuple(tail[:room] for tail in tails), cut)

    def _closed(self, prompt: str, reply: str) -> list[int]:
        if (prompt, reply) not in self._read:
            self._read[prompt, reply] = self.form.reply_ids(prompt, reply)
        return list(self._read[prompt, reply])


def counted(lost: Mapping[str, int], *, what: str) -> dict[str, float | None]:
    """The counts as metrics of `what` (pairs, examples): `pairs_dropped_by_length`, ..."""
    return {f"{what}_{reason}": count for reason, count in lost.items()}


def require_any(kept: Sequence[object], encoder: Encoder, *, what: str) -> None:
    """UserError saying why no row is left, where none is."""
    if kept:
        return
    if encoder.lost["dropped_by_length"]:
        raise UserError(f"every prompt fills max_length = {encoder.max_length}; raise max_length")
    reasons = ", ".join(f"{count} {reason}" for reason, count in encoder.lost.items() if count) or "none was given"
    raise UserError(f"no {what} is left to train on ({reasons}); give other rows, or another --template")


# --------------------------------------------------------------------------------------------- the reference's numbers


def start_logprobs(trainer: Trainer, rows: Sequence[Row], *, batch_size: int) -> list[float]:
    """`log p(reply | prompt)` in nats by the model that the trainer starts from, before its first step.

    A fresh adapter is switched off. Equal rows are read once, and each process reads its share of them.
    """
    from accelerate.utils import gather_object

    accelerator, model = trainer.accelerator, trainer.accelerator.unwrap_model(trainer.model)
    unique = list(dict.fromkeys((tuple(head), tuple(tail)) for head, tail in rows))
    mine = unique[accelerator.process_index :: accelerator.num_processes]
    reader = Reader(pad_id=trainer.processing_class.pad_token_id, batch_size=batch_size, longest_first=True)
    with evaluated(model), _bare(model), accelerator.autocast():
        sums = sequence_logprobs(model, mine, reader=reader)
    found = dict(gather_object(list(zip(mine, sums, strict=True))))
    return [found[tuple(head), tuple(tail)] for head, tail in rows]


@contextmanager
def _bare(model: PreTrainedModel) -> Iterator[None]:
    """Within the block the model has no adapter."""
    if hasattr(model, "disable_adapter"):
        with model.disable_adapter():
            yield
    else:
        yield
