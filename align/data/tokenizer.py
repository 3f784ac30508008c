"""A byte-level BPE tokenizer trained from texts: any Unicode text comes back unchanged, nothing is unknown."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD = "<|pad|>"
END = "<|end|>"  # ends a document and a completion; also what a generation starts from when there is no prompt
MINIMUM_VOCABULARY = 256 + 2


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, out: str | Path, min_frequency: int = 2
) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on `texts` and save it as a Hugging Face tokenizer in `out`.

    Ids: 0 = `<|pad|>`, 1 = `<|end|>` (bos and eos), then the 256 bytes, then the merges. Nothing is added around a
    text when it is encoded, and no space is put before it. Deterministic: the same texts in the same order, or in any
    other order, give the same tokenizer.

    Raises:
        UserError: vocab_size below 258 (bytes and special tokens), or no text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < MINIMUM_VOCABULARY:
        raise UserError(f"vocab_size={vocab_size}: give at least {MINIMUM_VOCABULARY} (256 bytes, {PAD}, {END})")
    texts = list(texts)
    if not any(texts):
        raise UserError("the tokenizer has no text to learn from; give rows with text")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer=trainer, length=len(texts))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        bos_token=END,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
    tokenizer.save_pretrained(str(out))
    return tokenizer
