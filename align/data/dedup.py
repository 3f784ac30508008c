"""Which rows repeat an earlier one: exactly, or nearly (MinHash with locality-sensitive hashing, exact check after).

A document is a tuple of parts (one for a text; prompt, chosen and rejected for a comparison), and two documents are
near duplicates when *every* part has word-shingle Jaccard similarity >= the threshold: two replies to one long shared
conversation are different rows. Of each group of repeats the first row is kept.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

_WORDS = re.compile(r"\w+")

Document = tuple[str, ...]


def exact_duplicates(documents: Sequence[Document]) -> set[int]:
    """Positions of the documents equal to an earlier one, up to case and white space."""
    seen: set[bytes] = set()
    repeats = set()
    for position, document in enumerate(documents):
        canonical = "\0".join(" ".join(part.casefold().split()) for part in document)
        digest = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).digest()
        if digest in seen:
            repeats.add(position)
        seen.add(digest)
    return repeats


def near_duplicates(
    documents: Sequence[Document], *, threshold: float = 0.8, words: int = 5, permutations: int = 128, seed: int = 0
) -> set[int]:
    """Positions of the documents that nearly repeat an earlier *kept* one.

    MinHash (Broder 1997) with banded LSH through datasketch proposes candidates; each is then checked by the exact
    Jaccard similarity of word shingles, part by part, so a hash collision never drops a row (a candidate can still be
    missed: about 1 in 30 at similarity 0.85). Deterministic in `seed`.

    Args:
        threshold: Jaccard similarity in (0, 1] from which a document counts as a repeat.
        words: shingle length in words; a shorter part is one shingle.
        permutations: MinHash length.
    """
    from datasketch import MinHash, MinHashLSH

    # bands for a slightly lower threshold and missing weighted above false candidates: those the exact check removes
    index = MinHashLSH(threshold=max(0.05, threshold - 0.05), num_perm=permutations, weights=(0.2, 0.8))
    blank = MinHash(num_perm=permutations, seed=seed + 1, hashfunc=zlib.crc32)

    @lru_cache(maxsize=1024)
    def parts_of(position: int) -> tuple[frozenset[str], ...]:
        return tuple(shingles(part, words=words) for part in documents[position])

    repeats = set()
    for position in range(len(documents)):
        parts = parts_of(position)
        sketch = blank.copy()
        tagged = [f"{n} {s}".encode("utf-8", "surrogatepass") for n, part in enumerate(parts) for s in sorted(part)]
        if not tagged:
            continue  # no words at all: the rubbish filter's business
        sketch.update_batch(tagged)
        if any(_all_similar(parts, parts_of(candidate), threshold) for candidate in index.query(sketch)):
            repeats.add(position)
        else:
            index.insert(position, sketch)
    return repeats


def shingles(text: str, *, words: int) -> frozenset[str]:
    """The set of runs of `words` consecutive words of `text`, case folded; one shorter run for a shorter text."""
    tokens = _WORDS.findall(text.casefold())
    if len(tokens) <= words:
        return frozenset([" ".join(tokens)] if tokens else [])
    return frozenset(" ".join(tokens[i : i + words]) for i in range(len(tokens) - words + 1))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """|A and B| / |A or B|; 1 for two empty sets."""
    union = len(first | second)
    return len(first & second) / union if union else 1.0


def _all_similar(first: Sequence[frozenset[str]], second: Sequence[frozenset[str]], threshold: float) -> bool:
    return all(jaccard(a, b) >= threshold for a, b in zip(first, second, strict=True))
