"""Margins, labels by themselves and rows that are left out: what offline methods read is what is sampled and scored."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.data.comparisons import Pair
from align.engines.pairs import PairTrainingConfig, dpo_trainer, pair_rows, train_on_pairs
from align.engines.unpaired import Example, given_examples
from align.errors import UserError
from align.methods import kto
from align.models import load_tokenizer
from align.models.formats import formatter
from align.objectives import ImplicitReward
from align.objectives.metered import objective_scores
from align.policies.base import ModelPolicy
from align.preferences import Weights
from align.runs import Ledger
from align.turns import Turn, transcript
from factories.chat_styles import STYLES, chat_checkpoint
from factories.tiny_bandit import workspace

PROMPT = transcript((Turn("user", "Is the tea hot?"), Turn("assistant", "It is."), Turn("user", "Then wait")))
SYSTEM = transcript((Turn("system", "Be kind"), Turn("user", "Sit here")))
CONFIG = PairTrainingConfig(batch_size=2, learning_rate=1e-2, logging_steps=1)


@pytest.mark.parametrize("style", [style.name for style in STYLES])
def test_implicit_margins_are_dpos_own_quantities(style: str, tmp_path: Path) -> None:
    """beta times (policy - reference), each as DPO's trainer reads it; a cut sample is read as it was drawn."""
    policy, reference = (chat_checkpoint(style, tmp_path / name, seed=seed) for seed, name in enumerate("pr"))
    form = formatter(load_tokenizer(reference))
    cut = form.reply_ids("Sit here", " in the start", ended=False)
    rows = [
        {"id": "text", "prompt": PROMPT, "chosen": " the sea", "rejected": " a tree"},
        {"id": "cut", "prompt": "Sit here", "chosen": form.decode(cut), "rejected": form.decode(cut)}
        | {"chosen_ids": cut, "rejected_ids": [*cut, form.format.end]},
    ]
    columns = [
        dpo_trainer(
            [Pair.of(row) for row in rows], config=CONFIG, reference=str(model), beta=0.1, folder=tmp_path / "out"
        ).train_dataset
        for model in (policy, reference)
    ]
    implicit = ImplicitReward(policy, reference, beta=0.5)
    for i, row in enumerate(rows):
        ((chosen,), (rejected,)) = objective_scores([row], objectives={"one": implicit}, ledger=Ledger())[row["id"]]
        own, base = (part[i] for part in columns)
        assert chosen == pytest.approx(0.5 * (own["ref_chosen_logps"] - base["ref_chosen_logps"]), abs=1e-4)
        assert rejected == pytest.approx(0.5 * (own["ref_rejected_logps"] - base["ref_rejected_logps"]), abs=1e-4)
        if row["id"] == "cut":
            assert abs(chosen - rejected) > 1e-3  # the end is one token more


def test_a_prompt_that_ends_in_a_space_is_trained_where_it_is_sampled(tmp_path: Path) -> None:
    """The sampled log-odds move the way of the labels, as they do behind a prompt without that space."""
    reference = chat_checkpoint("base", tmp_path / "reference")
    for prompt, good, bad in (("Answer:", " the", " stir"), ("Answer: ", "the", "stir")):
        pairs = [Pair(str(i), prompt, good, bad, False) for i in range(8)]
        point = workspace(tmp_path / str(len(prompt)))
        train_on_pairs(pairs, config=CONFIG, reference=str(reference), beta=0.1, run=point)

        def odds(policy: ModelPolicy, prompt: str = prompt, good: str = good, bad: str = bad) -> float:
            tokenizer = policy.tokenizer
            apart = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (good, bad)]
            return _logp(policy, prompt, apart[0]) - _logp(policy, prompt, apart[1])

        assert odds(ModelPolicy(point.folder / "model")) > odds(ModelPolicy(reference)) + 1.0


def _logp(policy: ModelPolicy, prompt: str, ids: tuple[int, ...]) -> float:
    from align.models.sampling import Drawn

    return policy.sequence_logprobs([prompt], [Drawn(ids, False)])[0]


def test_kto_trains_samples_as_drawn_and_leaves_out_what_the_length_makes_equal(tmp_path: Path) -> None:
    reference = chat_checkpoint("llama3", tmp_path / "reference")
    form = formatter(load_tokenizer(reference))
    head, start = form.row("Sit here", "the start", ended=False)
    row = {"id": "1", "prompt": "Sit here", "chosen": "the start", "rejected": "a", "chosen_ids": start}
    examples = given_examples([row], weights=Weights((1.0,)), names=["one"])
    config = kto.Config(batch_size=2)
    trainer = kto.build_trainer(examples, config=config, reference=str(reference), folder=tmp_path / "a")
    found = {bool(r["label"]): r for r in trainer.train_dataset}
    assert found[True]["completion_ids"] == start and found[True]["prompt_ids"] == head
    assert (
        found[False]["completion_ids"][-1] == form.format.end
        and found[True]["KL_completion_ids"][-1] == form.format.end
    )
    rows = [(r["prompt_ids"], r[name]) for r in found.values() for name in ("completion_ids", "KL_completion_ids")]
    logps = [r[name] for r in found.values() for name in ("ref_logps", "ref_KL_logps")]
    policy = ModelPolicy(reference)
    assert logps == pytest.approx([_logp(policy, "Sit here", tuple(ids)) for _, ids in rows], abs=1e-4)

    texts = [("the start", True), ("the stir", False), ("a", True), ("inst", False)]
    listed = [Example(str(i), 0, "Sit here", text, label) for i, (text, label) in enumerate(texts)]
    limited = kto.Config(batch_size=2, max_length=len(head) + 3)
    trainer = kto.build_trainer(listed, config=limited, reference=str(reference), folder=tmp_path / "b")
    assert trainer.lost["examples_dropped_as_equal"] == 2 and trainer.lost["examples"] == 2
    assert trainer.lost["examples_cut_by_length"] == 2 and trainer.lost["examples_dropped_by_length"] == 0


def test_pairs_that_a_template_cannot_say_are_left_out_and_counted(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(chat_checkpoint("gemma", tmp_path))
    pairs = [Pair("1", SYSTEM, " a", " the", False), Pair("2", "Sit here", " a", " the", False)]
    rows, lost = pair_rows(pairs, tokenizer=tokenizer, max_length=None)
    assert [row["id"] for row in rows] == ["2"] and lost["pairs_dropped_by_unsupported_system"] == 1
    with pytest.raises(UserError, match="no pair is left to train on .1 dropped_by_unsupported_system"):
        pair_rows(pairs[:1], tokenizer=tokenizer, max_length=None)
