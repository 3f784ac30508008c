"""Fine-tuning data in several spellings: which prompts come in a spelling, and comparisons written in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from align.testbed.vocabulary import VOCABULARY
from align.testbed.world import COLON, END, PAD, Prompt, World, cipher, spelling_of

TEXTS = ("prompt", "a", "b")  # columns of a comparison that are written in the spelling


def spelt(world: World, spelling: int, *, covers: float = 1.0) -> list[Prompt]:
    """The fine-tuning prompts in a spelling, those of the first `covers` of each harm level's topics."""
    levels: dict[int, list[str]] = {}
    for topic in world.topics:
        if not topic.heldout:
            levels.setdefault(topic.harm, []).append(topic.word)
    kept = {word for words in levels.values() for word in words[: round(covers * len(words))]}
    prompts = [p for p in world.train_prompts if p.topic.word in kept]
    return [p if spelling == 0 else p.spelt(spelling, split="train") for p in prompts]


def respelt(
    rows: Sequence[Mapping[str, object]], *, spellings: Sequence[int], prompts: Sequence[Prompt]
) -> list[dict[str, object]]:
    """Plain comparisons in every one of the spellings where `prompts` has the prompt so spelt.

    Scores and the annotator's draws stay what they are.
    """
    covered = {p.text for p in prompts}
    written = [{**row, **_written(row, s)} for s in spellings for row in rows]
    return [row for row in written if row["prompt"] in covered]


def _written(row: Mapping[str, object], spelling: int) -> dict[str, object]:
    """The row's texts in the spelling; a word that was in it already (and ends a plain response) changes place."""
    pairs = {w: cipher(w, spelling) for w in VOCABULARY if not spelling_of(w) and w not in (PAD, END, COLON)}
    swapped = pairs | {coded: w for w, coded in pairs.items()}
    words = {k: [swapped.get(w, w) for w in str(row[k]).split()] for k in TEXTS}
    responses = {k: "".join(f" {w}" for w in words[k]) for k in TEXTS[1:]}
    name = f"{row['id']}~{spelling}" if spelling else row["id"]
    return {"id": name, "prompt": " ".join(words["prompt"]), **responses}
