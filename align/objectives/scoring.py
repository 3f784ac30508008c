"""Replies as the token ids that a reward model reads, and its outputs for them: the same for training and scoring.

The ids are those of the whole conversation in the model's own prompt format: its chat template, the HH transcript, or
the two segments of an encoder. A reply that was cut has no end, so that it can be told from a finished one.
Legend: B texts, T tokens.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from align.errors import UserError
from align.models import context_of
from align.models.chat import FormatError
from align.models.formats import Formatter, formatter
from align.models.reading import Row, evaluated, padded
from align.models.sampling import Drawn

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Reply = str | Drawn
SECONDS_BETWEEN_LINES = 30.0


def scored_row(tokenizer: PreTrainedTokenizerBase, prompt: str, reply: Reply, *, end: bool = True) -> Row:
    """(Ids of the prompt, ids of the reply): a text closed as the format closes it, a sample as it was drawn.

    Without `end` nothing closes either. FormatError where a template cannot say the prompt.
    """
    form = formatter(tokenizer)
    if not isinstance(reply, Drawn):
        return form.row(prompt, _spaced(form, reply), ended=end)
    if not end and reply.ended:
        reply = Drawn(reply.ids[:-1], False, reply.text)
    if not reply.ids:  # another model's sample: its text is all that can be read
        return form.row(prompt, _spaced(form, reply.text), ended=reply.ended)
    own = list(reply.ids)
    return form.prompt_ids(prompt), [*own[:-1], *form.closing] if reply.ended else own


def scored_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, reply: Reply) -> list[int]:
    """`scored_row` as one list."""
    head, tail = scored_row(tokenizer, prompt, reply)
    return [*head, *tail]


def as_drawn(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    ids: Sequence[Sequence[int]] | None,
    *,
    ended: Sequence[bool] | None = None,
    same_format: bool = False,
) -> list[Reply]:
    """Completions with the ids that a sampler gives beside them, where they are ids of this tokenizer and format.

    Another tokenizer's, and those of a format that begins its replies otherwise, are read by their text: as finished,
    unless `ended` says that they were cut. `same_format`: the sampler's format is known to be this one, however a reply
    begins.
    """
    by_text: list[Reply] = [
        text if end else Drawn((), False, text) for text, end in zip(texts, ended or [True] * len(texts), strict=True)
    ]
    if ids is None:
        return by_text
    form, replies = formatter(tokenizer), list[Reply]()
    for text, drawn, said in zip(texts, ids, by_text, strict=True):
        own = len(drawn) and (same_format or _begins_so(form, text)) and form.decode(drawn).strip() == text.strip()
        replies.append(Drawn(tuple(drawn), drawn[-1] in form.format.ends, text) if own else said)
    return replies


def _begins_so(form: Formatter, text: str) -> bool:
    """Whether a sample of this format may begin like that: behind a transcript with a space, in a chat template mostly
    without (some write one themselves), and never where nothing is sampled.
    """
    spaced = text[:1].isspace()
    if form.format.template == "chat":
        return not spaced or form.decode(form.reply_ids("x", "x", ended=False))[:1].isspace() or text[0] != " "
    return form.format.template == "plain" or (form.format.template == "hh" and spaced)


def _spaced(form: Formatter, text: str) -> str:
    """A reply behind the space of a transcript, which samples of a chat model come without."""
    return f" {text}" if form.format.template == "hh" and text and not text[0].isspace() else text


def fitted(row: Row, limit: int | None, *, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a row in at most `limit` tokens: a start token stays, the text loses its beginning."""
    ids = [*row[0], *row[1]]
    if limit is None or len(ids) <= limit:
        return ids
    first = ids[:1] if ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id) else []
    return [*first, *ids[len(ids) - limit + len(first) :]]


# -------------------------------------------------------------------------------------------------------------- reading


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    replies: Sequence[Reply],
    *,
    batch_size: int = 64,
    head: int = 0,
    end: bool = True,
) -> list[float]:
    """The model's output per pair, in eval mode (the mode is restored), texts sorted by length, equal pairs read once.

    A text longer than the model's positions loses its beginning, so that the reply and its end are what is scored.
    `head` is the output that is read. It is read at a text's last token, whatever the padding is; without `end` at the
    last one of the reply itself. FormatError where a template cannot say a prompt.
    """
    import torch

    limit = context_of(model)
    pairs = list(zip(prompts, replies, strict=True))
    distinct = list(dict.fromkeys(pairs))
    ids = [fitted(scored_row(tokenizer, *pair, end=end), limit, tokenizer=tokenizer) for pair in distinct]
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    scores: dict[tuple[str, Reply], float] = {}
    progress = _Progress(len(order))
    with evaluated(model), torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            with _padding(model, {ids[i][-1] for i in chosen}) as pad_id:
                batch = padded([(ids[i], ()) for i in chosen], pad_id=pad_id, device=model.device)
                types = segments(batch.ids_BT, tokenizer=tokenizer, config=model.config)
                logits_BK = model(**batch.inputs, **types).logits
            for i, value in zip(chosen, logits_BK[:, head].float().tolist(), strict=True):
                scores[distinct[i]] = value
            progress.say(start + len(chosen))
    return [scores[pair] for pair in pairs]


@contextmanager
def _padding(model: PreTrainedModel, last: set[int]) -> Iterator[int]:
    """A padding token that ends no text, the model's own where that is one; transformers reads a decoder's output at
    the last token that is none.
    """
    config = model.config.get_text_config()
    own = config.pad_token_id
    config.pad_token_id = own if own not in last else next(i for i in range(len(last) + 1) if i not in last)
    try:
        yield config.pad_token_id
    finally:
        config.pad_token_id = own


def sayable(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[bool]:
    """Whether the tokenizer's format can say each prompt."""
    form, found = formatter(tokenizer), dict[str, bool]()
    for prompt in dict.fromkeys(prompts):
        try:
            found[prompt] = bool(form.prompt_ids(prompt))
        except FormatError:
            found[prompt] = False
    return [found[prompt] for prompt in prompts]


def segments(ids_BT: Tensor, *, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> dict[str, Tensor]:
    """`token_type_ids` of an encoder that tells its two segments apart, 0 up to the first separator; else nothing."""
    is_pair = formatter(tokenizer).format.template == "pair"
    if not is_pair or getattr(config, "type_vocab_size", 0) < 2:
        return {}
    separators_BT = (ids_BT == tokenizer.sep_token_id).long()
    behind_BT = separators_BT.cumsum(-1) - separators_BT > 0
    return {"token_type_ids": behind_BT.long()}


class _Progress:
    """A line on stderr now and then, where scoring takes long."""

    def __init__(self, total: int) -> None:
        self.total, self.started = total, time.monotonic()
        self.last = self.started

    def say(self, done: int) -> None:
        now = time.monotonic()
        if now - self.last >= SECONDS_BETWEEN_LINES:
            self.last, left = now, (now - self.started) / done * (self.total - done)
            print(f"reward model: scored {done} of {self.total} texts, {left:.0f} s left", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------- where the output is read


def readable_padding(tokenizer: PreTrainedTokenizerBase) -> str:
    """A padding token that is not the end of a reply.

    A decoder's score is read at the last token that is not padding: where the two are one token (a tokenizer without a
    padding token, many chat models) the end would never be read. Then it is the unknown token or another special one
    that ends nothing, else the vocabulary's last word.
    """
    ends = set(formatter(tokenizer).format.ends)
    special = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    wanted = (tokenizer.pad_token_id, tokenizer.unk_token_id, *sorted(set(special) - {tokenizer.bos_token_id}))
    for i in (*wanted, tokenizer.bos_token_id):
        if i is not None and i not in ends:
            return str(tokenizer.convert_ids_to_tokens(i))
    words = {i: word for word, i in tokenizer.get_vocab().items() if i not in special}
    return words[max(words)]


def head_of(config: PretrainedConfig, label: str | int | None, *, place: str) -> int:
    """The number of the output called `label` (or of that number); UserError listing the outputs there are."""
    names = {str(name): int(i) for name, i in (config.label2id or {}).items()}
    names |= {str(name): int(i) for i, name in (config.id2label or {}).items()}  # some checkpoints have this one alone
    found = 0 if label is None and config.num_labels == 1 else names.get(str(label))
    if found is None and label is not None and str(label).isdigit() and int(label) < config.num_labels:
        found = int(label)
    if found is None:
        known = ", ".join(sorted(names, key=lambda name: names[name])) or f"0 to {config.num_labels - 1}"
        asked = "which one is not said" if label is None else f"and none is {label!r}"
        raise UserError(f"{place} has {config.num_labels} outputs, {asked}; write {place}@LABEL with one of {known}")
    return found
