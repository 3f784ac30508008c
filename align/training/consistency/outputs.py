"""Consistency of outputs (BCT): the policy's own replies to plain prompts, imitated behind the shifted ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.models import count_parameters
from align.models.sampling import Drawn
from align.runs import Ledger
from align.training.consistency.settings import ConsistencyConfig, FinishedPolicy, PromptPair
from align.training.rows import Encoder, Reply, require_any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

Written = Callable[[PromptPair, str], str | None]  # a plain reply as it is due behind a pair's shifted prompt


def own_replies(
    policy: FinishedPolicy, prompts: Sequence[str], *, config: ConsistencyConfig, parameters: int, ledger: Ledger
) -> list[list[Drawn]]:
    """For each prompt `config.replies` replies of the policy, drawn at temperature 1.

    The ledger is charged with the samples, and `2 parameters` FLOPs for every token read.
    """
    asked = [prompt for prompt in prompts for _ in range(config.replies)]
    drawn = policy.draw(asked, max_new_tokens=config.max_new_tokens, seed=config.seed, batch_size=config.sampling_batch)
    read = sum(map(len, policy.prompt_ids(asked))) + sum(len(one.ids) for one in drawn)
    ledger.add(samples_drawn=len(drawn), flops=2.0 * parameters * read)
    policy.release()
    return [drawn[i : i + config.replies] for i in range(0, len(drawn), config.replies)]


def imitation_rows(
    pairs: Sequence[PromptPair], replies: Sequence[Sequence[Drawn]], *, encoder: Encoder, written: Written | None = None
) -> list[dict[str, list[int]]]:
    """Ids and labels of each shifted prompt with the replies to its plain one; the loss falls on the reply alone.

    `replies` are those of the pairs' plain prompts, pair by pair. A reply is trained at the ids that were drawn, so
    that one that was cut is taught no end; with `written` it is a text in another spelling, closed as its format closes
    it, and left out where it was cut or cannot be written so. The encoder counts what is left out.
    """
    rows = []
    for pair, drawn in zip(pairs, replies, strict=True):
        for one in drawn:
            reply = _due(pair, one, written)
            if reply is None:
                encoder.lost["replies_not_written"] += 1
                continue
            row = encoder(pair.shifted, reply)
            if row is not None:
                (tail,) = row.replies
                rows.append({"input_ids": [*row.prompt, *tail], "labels": [-100] * len(row.prompt) + tail})
    return rows


def _due(pair: PromptPair, one: Drawn, written: Written | None) -> Reply | None:
    """The reply as it is due behind the shifted prompt; None where it cannot be written."""
    if written is None:
        return one.text, one.ids
    text = written(pair, one.text) if one.ended else None
    return None if text is None else (text, None)


def output_trainer(
    config: ConsistencyConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, policy: FinishedPolicy,
    pairs: Sequence[PromptPair], written: Written | None, out: Path, ledger: Ledger,
) -> tuple[Trainer, Counter[str]]:  # fmt: skip
    """The trainer on these pairs, and the counts of what was left out or cut. UserError where no row is left."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    plain = list(dict.fromkeys(pair.plain for pair in pairs))
    parameters = count_parameters(model, embeddings=False)
    drawn = own_replies(policy, plain, config=config, parameters=parameters, ledger=ledger)
    found = dict(zip(plain, drawn, strict=True))
    encoder = Encoder(tokenizer, max_length=config.max_length)
    rows = imitation_rows(pairs, [found[pair.plain] for pair in pairs], encoder=encoder, written=written)
    require_any(rows, encoder, what="reply")
    cut = sum(not one.ended for replies in drawn for one in replies)
    counts = Counter({**encoder.lost, "replies_without_end": cut})
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**config.arguments(out), packing=False, max_length=None, shuffle_dataset=False),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    return trainer, counts
