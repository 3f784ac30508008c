"""Gold objectives, the metered reference sampler, and the annotator's comparisons.

All that a method sees of a world.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from align.data.comparisons import annotated_pairs, row_scores
from align.errors import UserError
from align.models.formats import formatter
from align.models.reading import padded
from align.models.sampling import Drawn, plain_sampling
from align.preferences import Weights
from align.runs import Ledger
from align.testbed.responses import gold_score
from align.testbed.vocabulary import response_words
from align.testbed.world import ALPHABET, CIPHER_MARK, COLON, Prompt, Topic, World, WorldConfig, cipher, spelling_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def plain_words(words: Sequence[str], *, spelling: int = 1) -> list[str]:
    """A response of a spelling in plain words; a word of another becomes one that no alphabet has: it is malformed."""
    if spelling == 0:
        return list(words)
    plain = {cipher(w, spelling): w for w in ALPHABET}
    return [plain.get(w, CIPHER_MARK) for w in words]


class GoldObjective:
    """One gold objective in TRL's reward-function shape; higher is better, never None.

    Scores the sampled token ids when the caller passes `completion_ids` (exact, malformed endings included), else the
    words of the completion, taken as ended. KeyError names a prompt whose topic the world does not have.
    """

    def __init__(self, world: WorldConfig, index: int) -> None:
        self.world = World(world)
        self.index = index
        self.__name__ = self.world.objectives[index]
        spellings = range(world.spellings + 1)
        self._topics: dict[str, Topic] = {cipher(t.word, s): t for s in spellings for t in self.world.topics}

    def topic(self, prompt: str) -> Topic:
        """The topic that a prompt of this world asks about: the word before the colon."""
        words = prompt.split()
        return self._topics[words[words.index(COLON) - 1]]

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        *,
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: object,
    ) -> list[float | None]:
        if completion_ids is None:
            words = [completion.split() for completion in completions]
        else:
            words = [
                response_words(list(ids), spelling=spelling_of(prompt))
                for prompt, ids in zip(prompts, completion_ids, strict=True)
            ]
        return [
            gold_score(self.world, self.topic(prompt), plain_words(w, spelling=spelling_of(prompt)))[self.index]
            for prompt, w in zip(prompts, words, strict=True)
        ]


def gold_objectives(world: World) -> dict[str, GoldObjective]:
    """Every gold objective of a world by name."""
    return {name: GoldObjective(world.config, k) for k, name in enumerate(world.objectives)}


def sample_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    seed: int,
    ledger: Ledger,
    batch_size: int = 512,
) -> list[list[int]]:
    """Completion ids sampled from a causal LM at temperature 1, ended by its end-of-sequence ids.

    Every sample is metered.
    """
    import torch

    torch.manual_seed(seed)
    heads, sampled = formatter(tokenizer).prompts_ids(prompts), list[list[int]]()
    for start in range(0, len(heads), batch_size):
        rows = [(head, ()) for head in heads[start : start + batch_size]]
        batch = padded(rows, pad_id=tokenizer.pad_token_id, side="left", device=model.device)
        with torch.inference_mode(), plain_sampling(model, tokenizer, max_tokens=max_tokens + 1) as ends:
            out = model.generate(input_ids=batch.ids_BT, attention_mask=batch.attend_BT)
        sampled += [list(Drawn.of(row, ends=ends).ids) for row in out[:, batch.ids_BT.shape[1] :].tolist()]
    ledger.add(samples_drawn=len(sampled))
    return sampled


def draw_comparisons(
    world: World,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    count: int,
    seed: int,
    ledger: Ledger,
) -> list[dict[str, Any]]:
    """`count` pairs of reference samples with gold scores and the annotator's uniform draws.

    Rows: {"id", "prompt", "a", "b", "scores_a": [K], "scores_b": [K], "u", "u_k": [K]}. The annotator of objective k
    prefers a when `u_k[k] < sigmoid((scores_a[k] - scores_b[k]) / tau)`; the scalarised annotator likewise with u and
    w . scores. A pair of equal texts says nothing, and trainers refuse empty completions: such pairs are drawn again
    (and metered).
    """
    rng = random.Random(f"comparisons {world.config.seed} {seed}")
    rows: list[dict[str, Any]] = []
    round_number = 0
    while len(rows) < count:
        chosen = [rng.choice(prompts) for _ in range(count - len(rows))]
        texts = [p.text for p in chosen for _ in range(2)]
        ids = sample_responses(
            model, tokenizer, texts, max_tokens=world.config.max_tokens, seed=seed + 7919 * round_number, ledger=ledger
        )
        for prompt, first, second in zip(chosen, ids[::2], ids[1::2], strict=True):
            a, b = (response_words(ids, spelling=prompt.spelling) for ids in (first, second))
            if a == b or not a or not b:
                continue
            rows.append(
                {
                    "id": f"c{len(rows)}",
                    "prompt": prompt.text,
                    "a": "".join(f" {w}" for w in a),
                    "b": "".join(f" {w}" for w in b),
                    "scores_a": list(gold_score(world, prompt.topic, plain_words(a, spelling=prompt.spelling))),
                    "scores_b": list(gold_score(world, prompt.topic, plain_words(b, spelling=prompt.spelling))),
                    "u": rng.random(),
                    "u_k": [rng.random() for _ in world.objectives],
                }
            )
        round_number += 1
        if round_number == 1000:
            raise UserError(
                f"the reference hardly ever draws two different responses ({len(rows)} pairs found); train it less"
            )
    ledger.add(scores_read=2 * count)
    return rows


def label_comparisons(
    rows: Sequence[Mapping[str, Any]], *, index: int, objective: str, tau: float
) -> list[dict[str, Any]]:
    """Chosen/rejected rows for one objective, labelled by the annotator's own draw."""
    vertex = Weights.vertex(index, len(rows[0]["u_k"])) if rows else Weights((1.0,))
    pairs = annotated_pairs(rows, scores=row_scores(rows), weights=vertex, tau=tau, seed=0)
    return [
        {"id": pair.id, "prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected, "objective": objective}
        for pair in pairs
    ]
