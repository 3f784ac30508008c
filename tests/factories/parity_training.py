"""What every path of training and sampling lets a model read, beside what its tokenizer says of the same conversation.

`training_paths(style, folder)` gives the rows of ids that each trainer is built on, or that reach the model. The wanted
ids are those of `factories.parity`; a finished reply is the whole conversation in the template, to the last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from align.data.comparisons import Pair
from align.engines.on_policy.formatted import formatted
from align.engines.on_policy.rollouts import draw
from align.engines.pairs import PairTrainingConfig, dpo_trainer
from align.engines.reference_samples import Drawing, draw_responses
from align.engines.unpaired import Example
from align.methods import kto
from align.models import load_model, load_tokenizer
from align.models.sampling import plain_sampling
from align.objectives.implicit import ImplicitReward
from align.policies.base import ModelPolicy
from align.policies.tagged import Tags
from align.runs import Ledger
from align.training import reward_model
from align.training.bits import completion_bits
from align.training.sft import training_rows
from align.turns import Turn, transcript
from factories.chat_styles import chat_checkpoint
from factories.parity import TURNS, Read, Truth, reading

PROMPT, GOOD, BAD = transcript(TURNS), " the sea", " a tree"


def training_paths(style: str, folder: Path) -> list[Read]:
    """One entry for each path of training, sampling and scoring on a tiny checkpoint of that style."""
    checkpoint = chat_checkpoint(style, folder / style)
    truth, tokenizer = Truth(style, checkpoint), load_tokenizer(checkpoint)
    head, good, bad = truth.asked(TURNS), *(finished(truth, text) for text in (GOOD, BAD))
    return [
        Read("SFT", [r["input_ids"] for r in training_rows([_row(GOOD)], tokenizer, limit=None).rows], [good]),
        Read("reward model", _reward_rows(tokenizer), [good, bad]),
        Read("DPO family", _dpo(checkpoint, folder / "dpo"), [good, bad]),
        Read("KTO", _kto(checkpoint, folder / "kto"), [good, bad]),
        Read("RLOO, GRPO", formatted(tokenizer)(text=[PROMPT])["input_ids"], [head]),
        Read("PPO, in-context samples", _drawn(checkpoint), [head]),
        Read("reference samples, best-of-n", _reference_samples(checkpoint), [head]),
        Read("policy: draw", _policy_draws(checkpoint), [head]),
        Read("policy: sequence log-probability", _policy_reads(checkpoint), [good]),
        Read("implicit reward", _implicit(checkpoint), [good, good]),
        Read("bits per byte of replies", _bits(checkpoint), [truth.begun(TURNS, GOOD.strip())]),
        Read("tags inside the user turn", _tagged(tokenizer), [truth.asked(_with_tags())]),
    ]


def finished(truth: Truth, reply: str) -> list[int]:
    """The whole conversation with its reply: as the template writes it, else the text and the end token."""
    if truth.style.template is None:
        return [*truth.begun(TURNS, reply.strip()), truth.end]
    return truth._rendered([*TURNS, Turn("assistant", reply.strip())])


def _row(reply: str) -> dict[str, str]:
    return {"prompt": PROMPT, "completion": reply}


def _reward_rows(tokenizer: object) -> list[list[int]]:
    pair = {"prompt": PROMPT, "chosen": GOOD, "rejected": BAD}
    (row,) = reward_model.encoded([pair], tokenizer, None).rows  # type: ignore[arg-type]
    return [list(row[f"{side}_ids"]) for side in ("chosen", "rejected")]


def _dpo(checkpoint: Path, folder: Path) -> list[list[int]]:
    trainer = dpo_trainer(
        [Pair("1", PROMPT, GOOD, BAD, False)], config=PairTrainingConfig(batch_size=1), reference=str(checkpoint),
        beta=0.1, folder=folder,
    )  # fmt: skip
    with reading(trainer.model) as rows:
        trainer._compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())), False)
    return rows


def _kto(checkpoint: Path, folder: Path) -> list[list[int]]:
    examples = [Example(str(i), i, PROMPT, text, i == 0) for i, text in enumerate((GOOD, BAD))]
    trainer = kto.build_trainer(examples, config=kto.Config(batch_size=2), reference=str(checkpoint), folder=folder)
    return [[*row["prompt_ids"], *row["completion_ids"]] for row in trainer.train_dataset]


def _drawn(checkpoint: Path) -> list[list[int]]:
    model, tokenizer = load_model(checkpoint).eval(), load_tokenizer(checkpoint)
    with plain_sampling(model, tokenizer, max_tokens=1) as ends, reading(model) as rows:
        draw(model, tokenizer, [PROMPT], ends=ends, batch_size=1)
    return rows[:1]


def _reference_samples(checkpoint: Path) -> list[list[int]]:
    drawing = Drawing(n=1, max_completion_length=1, batch_size=1, seed=0)
    return _seen_by_any(lambda: draw_responses(drawing, reference=str(checkpoint), prompts=[PROMPT], ledger=Ledger()))


def _policy_draws(checkpoint: Path) -> list[list[int]]:
    return _seen_by_any(lambda: ModelPolicy(checkpoint).draw([PROMPT], max_new_tokens=1, seed=0))


def _policy_reads(checkpoint: Path) -> list[list[int]]:
    return _seen_by_any(lambda: ModelPolicy(checkpoint).sequence_logprobs([PROMPT], [GOOD]))


def _implicit(checkpoint: Path) -> list[list[int]]:
    objective = ImplicitReward(str(checkpoint), reference=str(checkpoint), beta=1.0)
    return _seen_by_any(lambda: objective([PROMPT], [GOOD]))


def _bits(checkpoint: Path) -> list[list[int]]:
    row = {"prompt": PROMPT, "completion": GOOD}
    return _seen_by_any(lambda: completion_bits(load_model(checkpoint), load_tokenizer(checkpoint), [row]))


def _tagged(tokenizer: object) -> list[list[int]]:
    from align.models.formats import formatter

    return [formatter(tokenizer).prompt_ids(TAGS.apply(PROMPT, VALUES))]  # type: ignore[arg-type]


TAGS, VALUES = Tags(("helpful", "harmless"), levels=2), (0.5, 1.0)


def _with_tags() -> Sequence[Turn]:
    return [*TURNS[:-1], Turn("user", TAGS.text(VALUES) + TURNS[-1].content)]


def _seen_by_any(work) -> list[list[int]]:  # type: ignore[no-untyped-def]
    """The rows that any causal LM is called with meanwhile, without padding."""
    from transformers import LlamaForCausalLM

    rows: list[list[int]] = []
    forward = LlamaForCausalLM.forward

    def caught(self, input_ids=None, attention_mask=None, **kwargs):  # type: ignore[no-untyped-def]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        for ids, real in zip(input_ids.tolist(), mask.tolist(), strict=True):
            rows.append([token for token, one in zip(ids, real[-len(ids) :], strict=True) if one])
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    LlamaForCausalLM.forward = caught
    try:
        work()
    finally:
        LlamaForCausalLM.forward = forward
    return rows
