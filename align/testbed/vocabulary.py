"""The word-level tokenizer of the testbed and the rule that ends a response.

Every token outside the response alphabet ends a response, in sampling and in scoring alike: the saved models carry
all of them as end-of-sequence ids, which `generate` and TRL honour.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from align.testbed.world import (
    ALPHABET,
    COLON,
    COMPLIANCE_PREFIX,
    END,
    NEUTRAL_PREFIX,
    PAD,
    TEST_VERB,
    TOPICS,
    TRAIN_VERBS,
    cipher,
)

_PLAIN = (*TRAIN_VERBS, TEST_VERB, *TOPICS, COMPLIANCE_PREFIX, NEUTRAL_PREFIX)
CIPHER_ALPHABET = tuple(cipher(w) for w in ALPHABET)
VOCABULARY = (PAD, END, COLON, *ALPHABET, *CIPHER_ALPHABET, *_PLAIN, *(cipher(w) for w in _PLAIN))
TOKEN_ID = {word: i for i, word in enumerate(VOCABULARY)}
END_ID, PAD_ID = TOKEN_ID[END], TOKEN_ID[PAD]
ALPHABET_IDS = tuple(TOKEN_ID[w] for w in ALPHABET)  # contiguous, as are the ciphered ones
CIPHER_ALPHABET_IDS = tuple(TOKEN_ID[w] for w in CIPHER_ALPHABET)
ENDING_IDS = (END_ID, *(i for i in range(len(VOCABULARY)) if i not in (*ALPHABET_IDS, END_ID)))
# for a policy that answers in both spellings: what ends a response whichever of the two it is in
ENDING_IDS_OF_BOTH = tuple(i for i in ENDING_IDS if i not in CIPHER_ALPHABET_IDS)


@lru_cache(maxsize=1)
def build_tokenizer() -> Any:
    """The `PreTrainedTokenizerFast` whose token i is VOCABULARY[i]; an unknown word is an error, not a guess."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Sequence, Split, WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(WordLevel(dict(TOKEN_ID)))  # no unknown token: an unknown word raises
    # The colon stands alone, so that a decoded completion (no leading space) glued to its prompt reads the same.
    core.pre_tokenizer = Sequence([WhitespaceSplit(), Split(COLON, "isolated")])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, pad_token=PAD, padding_side="left", clean_up_tokenization_spaces=False
    )


def alphabet_ids(ciphered: bool) -> tuple[int, ...]:
    """The eleven response tokens of a spelling; every other token ends a response."""
    return CIPHER_ALPHABET_IDS if ciphered else ALPHABET_IDS


def encode(text: str) -> list[int]:
    """Token ids of a text in the world's words; KeyError names an unknown word."""
    return [TOKEN_ID[word] for word in text.split()]


def response_words(ids: list[int], *, ciphered: bool = False) -> list[str]:
    """Words of sampled completion ids: without a final end token, else up to and including the first ending token."""
    alphabet = alphabet_ids(ciphered)
    words: list[str] = []
    for i in ids:
        if i == END_ID:
            return words
        words.append(VOCABULARY[i])
        if i not in alphabet:
            return words
    return [*words, PAD]  # never ended: PAD is not in the alphabet, so the response counts as malformed
