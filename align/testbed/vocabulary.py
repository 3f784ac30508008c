"""The word-level tokenizer of the testbed and the rule that ends a response.

Every token outside the response alphabet ends a response, in sampling and in scoring alike: the saved models carry
all of them as end-of-sequence ids, which `generate` and TRL honour.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from align.testbed.world import (
    ALPHABET,
    COLON,
    COMPLIANCE_PREFIX,
    END,
    MARKS,
    NEUTRAL_PREFIX,
    PAD,
    TEST_VERB,
    TOPICS,
    TRAIN_VERBS,
    cipher,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PLAIN = (*TRAIN_VERBS, TEST_VERB, *TOPICS, COMPLIANCE_PREFIX, NEUTRAL_PREFIX)
CIPHER_ALPHABET = tuple(cipher(w) for w in ALPHABET)
VOCABULARY = (PAD, END, COLON, *ALPHABET, *CIPHER_ALPHABET, *_PLAIN, *(cipher(w) for w in _PLAIN))


def vocabulary(spellings: int = 1) -> tuple[str, ...]:
    """The words of a world with so many spellings beside the plain one; further spellings come after VOCABULARY."""
    return (*VOCABULARY, *(cipher(w, s) for s in range(2, spellings + 1) for w in (*ALPHABET, *_PLAIN)))


TOKEN_ID = {word: i for i, word in enumerate(vocabulary(len(MARKS)))}  # of every world: each has the first of them
_WORDS = tuple(TOKEN_ID)
END_ID, PAD_ID = TOKEN_ID[END], TOKEN_ID[PAD]
ALPHABETS = tuple(tuple(TOKEN_ID[cipher(w, s)] for w in ALPHABET) for s in range(len(MARKS) + 1))  # each contiguous
ALPHABET_IDS, CIPHER_ALPHABET_IDS = ALPHABETS[:2]
ENDING_IDS = (END_ID, *(i for i in range(len(VOCABULARY)) if i not in (*ALPHABET_IDS, END_ID)))
# for a policy that answers in both spellings: what ends a response whichever of the two it is in
ENDING_IDS_OF_BOTH = tuple(i for i in ENDING_IDS if i not in CIPHER_ALPHABET_IDS)


def ending_ids(spellings: int = 1) -> tuple[int, ...]:
    """What ends a sampled response: all but the plain alphabet, or with several spellings all but their alphabets.

    There a policy may be trained in any spelling; a response that leaves its own runs on, and is as malformed.
    """
    if spellings == 1:
        return ENDING_IDS
    inner = {i for alphabet in ALPHABETS[: spellings + 1] for i in alphabet}
    return (END_ID, *(i for i in range(len(vocabulary(spellings))) if i not in inner and i != END_ID))


@lru_cache(maxsize=2)
def build_tokenizer(spellings: int = 1) -> PreTrainedTokenizerFast:
    """The `PreTrainedTokenizerFast` whose token i is vocabulary(spellings)[i]; an unknown word is an error."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Sequence, Split, WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = {word: TOKEN_ID[word] for word in vocabulary(spellings)}
    core = Tokenizer(WordLevel(words))  # no unknown token: an unknown word raises
    # The colon stands alone, so that a decoded completion (no leading space) glued to its prompt reads the same.
    core.pre_tokenizer = Sequence([WhitespaceSplit(), Split(COLON, "isolated")])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, pad_token=PAD, padding_side="left", clean_up_tokenization_spaces=False
    )


def alphabet_ids(spelling: int) -> tuple[int, ...]:
    """The eleven response tokens of a spelling; every other token ends a response."""
    return ALPHABETS[spelling]


def encode(text: str) -> list[int]:
    """Token ids of a text in the world's words; KeyError names an unknown word."""
    return [TOKEN_ID[word] for word in text.split()]


def response_words(ids: list[int], *, spelling: int = 0) -> list[str]:
    """Words of sampled completion ids: without a final end token, else up to and including the first ending token."""
    alphabet = alphabet_ids(spelling)
    words: list[str] = []
    for i in ids:
        if i == END_ID:
            return words
        words.append(_WORDS[i])
        if i not in alphabet:
            return words
    return [*words, PAD]  # never ended: PAD is not in the alphabet, so the response counts as malformed
