"""Conditioned DPO against its labels, its loss and the optimum; what no conditioned method can mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align.data.comparisons import row_scores
from align.engines import tagged
from align.engines import tagged_pairs as tagged_training
from align.engines.tagged_pairs import TaggedPair
from align.errors import UserError
from align.methods import conditioned_dpo, conditioned_rl, mo_odpo
from align.models import load_model, load_tokenizer
from align.policies.base import ModelPolicy
from align.policies.load import load_family
from align.policies.tagged import forbid, tag_ids, tagged_checkpoint
from align.preferences import Targets, Weights
from align.runs import Ledger, open_run
from factories.formulae import dpo_loss
from factories.made_conditioned_methods import MIDDLE, ONLINE, TAGS
from factories.tagged_bandit import VERTEX_AND_MIDDLE, Recorder, pair_share, recorders
from factories.tiny_bandit import (
    BETA,
    PROMPT_ROWS,
    PROMPTS,
    RL,
    WORDS,
    fit,
    make_tokenizer,
    pair_rows,
    problem_of,
    reward,
    same_weights,
)

PAIRS = {"beta": BETA, "learning_rate": 5e-3, "batch_size": 128, "tau": 0.4, "levels": 10}


@pytest.fixture(scope="module")
def start(many_tokens: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tagged_checkpoint(many_tokens, tags=TAGS, out=tmp_path_factory.mktemp("tagged") / "model")


# ----------------------------------------------------------------------------------- conditioned DPO: labels and pairs


def test_each_comparison_is_judged_at_its_own_weights(reference: str) -> None:
    rows = pair_rows(300)
    config = conditioned_dpo.Config(**{**PAIRS, "tau": 1e-9}, draws=2, vertices=0.2)  # an annotator who never errs
    pairs = conditioned_dpo.judged(rows, scores=row_scores(rows), config=config, reference=reference, objectives=2)
    assert len(pairs) == 600 and len({p.values for p in pairs}) > 400
    opposed = 0
    for row, pair in zip(rows * 2, pairs, strict=True):
        assert pair.prompt == row["prompt"]
        a, b = (WORDS.index(row[side].strip()) for side in ("a", "b"))
        margin = sum(w * (x - y) for w, x, y in zip(pair.values, row["scores_a"], row["scores_b"], strict=True))
        if margin:
            assert pair.chosen == ((a, 1) if margin > 0 else (b, 1))
        assert {pair.chosen, pair.rejected} == {(a, 1), (b, 1)}
        opposed += margin * (row["scores_a"][0] - row["scores_b"][0]) < 0
    assert opposed > 60  # the weights decide: the first objective alone would order these the other way
    assert 80 < sum(max(p.values) == 1.0 for p in pairs) < 160  # a fifth of 600 are vertices


def test_an_annotator_s_noise_follows_the_weighted_difference(reference: str) -> None:
    row = {"prompt": "x :", "a": " A", "b": " C", "scores_a": [1.0, 0.0], "scores_b": [0.0, 1.0]}
    rows = [{**row, "id": str(i), "u": (i + 0.5) / 2000} for i in range(2000)]
    config = conditioned_dpo.Config(**{**PAIRS, "tau": 0.5}, draws=1, vertices=0.0)
    pairs = conditioned_dpo.judged(rows, scores=row_scores(rows), config=config, reference=reference, objectives=2)
    for low in (0.0, 0.25, 0.5, 0.75):  # a wins with probability sigmoid((2 w - 1) / tau)
        these = [p for p in pairs if low <= p.values[0] < low + 0.25]
        expected = sum(1 / (1 + math.exp(-(2 * p.values[0] - 1) / 0.5)) for p in these) / len(these)
        assert sum(p.chosen[0] == WORDS.index("A") for p in these) / len(these) == pytest.approx(expected, abs=0.08)


# ------------------------------------------------------------------------------------ the reference, and TRL's own loss


def encode(start: str, reference: str, pairs: Sequence[TaggedPair], **changes: Any) -> list[dict[str, Any]]:
    untagged = changes.pop("untagged", True)
    config = tagged_training.pair_config(mo_odpo.Config(**ONLINE), **changes)
    return tagged_training.encoded(
        pairs, tokenizer=load_tokenizer(start), tags=TAGS, reference=tagged_training.frozen(reference),
        ledger=Ledger(), config=config, untagged=untagged,
    )  # fmt: skip


TWO_PAIRS = [
    TaggedPair("x :", (0.2, 0.8), chosen=(5, 6, 1), rejected=(7, 1)),
    TaggedPair("y y :", (1.0, 0.0), chosen=(8, 1), rejected=(5, 5, 5)),  # the last one was cut: no end token
]


def test_reference_log_probabilities_are_those_of_the_prompt_without_tags(many_tokens: str, start: str) -> None:
    rows = encode(start, many_tokens, TWO_PAIRS)
    one, two = len(WORDS), len(WORDS) + 11
    assert [row["prompt_ids"] for row in rows] == [[one + 2, two + 8, 2, 4], [one + 10, two, 3, 3, 4]]
    assert [row["rejected_ids"] for row in rows] == [[7, 1], [5, 5, 5]]
    oracle = ModelPolicy(many_tokens)
    (chosen,) = oracle.sequence_logprobs(["x :"], [" A B"])
    assert rows[0]["ref_chosen_logps"] == pytest.approx(chosen, abs=1e-4)
    (cut,) = oracle.sequence_logprobs(["y y :"], [" A A A"], max_new_tokens=3)
    assert rows[1]["ref_rejected_logps"] == pytest.approx(cut, abs=1e-4)
    tagged_ones = encode(start, start, TWO_PAIRS, untagged=False)
    assert abs(tagged_ones[0]["ref_chosen_logps"] - chosen) > 0.01


def test_pairs_that_the_length_makes_equal_are_left_out(many_tokens: str, start: str) -> None:
    alike = replace(TWO_PAIRS[0], chosen=(5, 6, 1), rejected=(5, 7, 1))
    assert len(encode(start, many_tokens, [alike, TWO_PAIRS[1]], max_length=5 + 1)) == 2
    assert len(encode(start, many_tokens, [alike, replace(TWO_PAIRS[0])], max_length=5)) == 1
    with pytest.raises(UserError, match="max_length = 4 leaves no pair"):
        encode(start, many_tokens, [alike], max_length=4)


def test_responses_are_cut_to_the_length_that_tags_leave(many_tokens: str, start: str) -> None:
    rows = encode(start, many_tokens, TWO_PAIRS, max_length=6)
    assert [(row["chosen_ids"], row["rejected_ids"]) for row in rows] == [([5, 6], [7, 1]), ([8], [5])]
    (cut,) = ModelPolicy(many_tokens).sequence_logprobs(["x :"], [" A B"], max_new_tokens=2)
    assert rows[0]["ref_chosen_logps"] == pytest.approx(cut, abs=1e-4)
    assert len(encode(start, many_tokens, TWO_PAIRS, max_length=5)) == 1  # "y y :" and its tags fill it
    long = replace(TWO_PAIRS[0], chosen=(5,) * 13)
    with pytest.raises(UserError, match="a tagged comparison: 17 tokens, but the model has 16"):
        encode(start, many_tokens, [long])


def test_trl_s_loss_on_given_ids_is_dpo_of_the_law_without_tag_tokens(
    many_tokens: str, start: str, tmp_path: Path
) -> None:
    """The contract with TRL: rows of ids set after construction are what its loss reads, the head's bias included."""
    from datasets import Dataset

    config = tagged_training.pair_config(mo_odpo.Config(**ONLINE))
    trainer = tagged_training.build_pair_trainer(
        config, start=start, tags=TAGS, beta=2.5, folder=tmp_path,
        dataset=Dataset.from_list(encode(start, many_tokens, TWO_PAIRS)),
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[0] == 4
    trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch).item()
    plain = load_model(start)
    logps = {}
    for pair in TWO_PAIRS:
        head = load_tokenizer(start)(TAGS.apply(pair.prompt, pair.values))["input_ids"]
        for side in ("chosen", "rejected"):
            ids = getattr(pair, side)
            with torch.no_grad():
                logits = plain(input_ids=torch.tensor([[*head, *ids]])).logits[0, :, : len(WORDS)]
            logp = logits.log_softmax(-1)
            logps[pair.prompt, side] = sum(logp[len(head) - 1 + i, t].item() for i, t in enumerate(ids))
    refs = {
        (pair.prompt, side): row[f"ref_{side}_logps"]
        for pair, row in zip(TWO_PAIRS, encode(start, many_tokens, TWO_PAIRS), strict=True)
        for side in ("chosen", "rejected")
    }

    def column(values: dict[tuple[str, str], float], side: str) -> torch.Tensor:
        return torch.tensor([values[p.prompt, side] for p in TWO_PAIRS])

    expected = dpo_loss(
        column(logps, "chosen"), rejected_B=column(logps, "rejected"), ref_chosen_B=column(refs, "chosen"),
        ref_rejected_B=column(refs, "rejected"), beta=2.5,
    )  # fmt: skip
    assert loss == pytest.approx(expected.mean().item(), abs=1e-4)


def test_conditioned_dpo_goes_to_the_optimum_of_every_weight_in_one_run(reference: str, tmp_path: Path) -> None:
    ledger, rows = Ledger(), pair_rows(2000)
    config = conditioned_dpo.Config(**PAIRS, draws=4, scheduler="linear")
    family = fit(
        conditioned_dpo, config, reference=reference, weights=VERTEX_AND_MIDDLE, out=tmp_path, comparisons=rows,
        ledger=ledger,
    )  # fmt: skip
    for weights in VERTEX_AND_MIDDLE:
        mine = pair_share(family.policy(weights), reference, weights)
        assert mine < 0.25, (weights.label, mine)
        for other in VERTEX_AND_MIDDLE:
            assert mine <= pair_share(family.policy(other), reference, weights)
    assert ledger.scores_read == 4 * 2000 and ledger.samples_drawn == 0
    metrics = open_run(tmp_path / "conditioned").metrics
    assert metrics["pairs"] == 8000 and metrics["tags_kl"] > 0.1
    assert not (tmp_path / "conditioned" / "start").exists()
    assert "at every w at once" in family.optimises["1,0"]


def test_conditioned_dpo_asks_objectives_and_takes_three_of_them(reference: str, tmp_path: Path) -> None:
    bare = [{k: row[k] for k in ("id", "prompt", "a", "b", "u")} for row in pair_rows(40)]
    objectives = {**recorders(), "three": Recorder("three", lambda p, texts, **_: [float(len(t)) for t in texts])}
    third = Weights((0.2, 0.3, 0.5))
    models = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        ledger, config = Ledger(), conditioned_dpo.Config(**PAIRS, labels="objectives", seed=seed, mle_weight=0.1)
        family = fit(
            conditioned_dpo, config, reference=reference, weights=[third], out=tmp_path / name, comparisons=bare,
            objectives=objectives, ledger=ledger,
        )  # fmt: skip
        models.append(family.model)
        assert ledger.scores_read == 3 * 80 + 2 * 40
    assert same_weights(models[0], models[1]) and not same_weights(models[0], models[2])
    assert set(objectives["three"].prompts) == set(PROMPTS)
    assert "NLL" in family.optimises[third.label] and len(family.policy(third).values) == 3


def test_lora_is_merged_into_one_model_for_all_weights(reference: str, tmp_path: Path) -> None:
    config = conditioned_dpo.Config(**{**PAIRS, "learning_rate": 2e-2}, lora_r=4)
    family = fit(conditioned_dpo, config, reference=reference, weights=MIDDLE, out=tmp_path, comparisons=pair_rows(256))
    assert (Path(family.model) / "model.safetensors").is_file()
    assert not (Path(family.model) / "adapter_config.json").exists()
    before, after = (load_model(path).model.layers[0].mlp.down_proj.weight for path in (reference, family.model))
    assert not torch.equal(before, after)
    family.save(tmp_path)
    tmp_path.rename(tmp_path.with_name("moved"))
    assert load_family(tmp_path.with_name("moved")).policy(MIDDLE[0]).generate(["x :"], max_new_tokens=1, seed=0)


# --------------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("module", [conditioned_dpo, mo_odpo, conditioned_rl], ids=lambda m: m.__name__.split(".")[-1])
def test_what_cannot_be_meant_is_refused(module: Any, reference: str, tmp_path: Path) -> None:
    settings = dict(PAIRS if module is conditioned_dpo else ONLINE if module is mo_odpo else RL)
    data = {"comparisons": pair_rows(4), "prompts": PROMPT_ROWS}

    def run(weights: Any = MIDDLE, **changes: Any) -> Any:
        return fit(
            module, module.Config(**{**settings, **changes}), reference=reference, weights=weights, out=tmp_path, **data
        )

    with pytest.raises(UserError, match="alpha must be above 0"):
        run(alpha=0.0)
    with pytest.raises(UserError, match="vertices must be a share"):
        run(vertices=1.5)
    with pytest.raises(UserError, match="tags must be one of"):
        run(tags="words")
    with pytest.raises(UserError, match="beta must be above 0"):
        run(beta=0.0)
    with pytest.raises(UserError, match="asked by weights"):
        run(weights=[Targets((0.5, 0.5))])
    data.clear()
    with pytest.raises(UserError, match="needs (comparisons|prompts)"):
        run()


def test_given_labels_say_nothing_about_mixtures(reference: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="given labels follow one objective"):
        fit(
            conditioned_dpo, conditioned_dpo.Config(**PAIRS, labels="given"), reference=reference, weights=MIDDLE,
            out=tmp_path, comparisons=pair_rows(4),
        )  # fmt: skip


def test_sampled_responses_are_scored_on_their_ids_and_metered(many_tokens: str, start: str) -> None:
    model, tokenizer = tagged_training.frozen(start), load_tokenizer(start)
    forbid(model, tag_ids(tokenizer, TAGS))
    objectives, ledger = recorders(), Ledger()
    asked = [(PROMPT_ROWS[i % 2], (0.5, 0.5) if i % 3 else None) for i in range(60)]
    settings: dict[str, Any] = {
        "tags": TAGS,
        "objectives": objectives,
        "ledger": ledger,
        "asked": asked,
    }
    config = mo_odpo.Config(max_completion_length=4, sample_batch_size=16)
    state = torch.get_rng_state()
    drawn = tagged.sample(model, tokenizer, config=config, seed=3, **settings)
    assert torch.equal(torch.get_rng_state(), state)  # a trainer's own stream of random numbers goes on
    assert [r.prompt for r in drawn] == [row["prompt"] for row, _ in asked]
    again, other = (tagged.sample(model, tokenizer, config=config, seed=seed, **settings) for seed in (3, 4))
    assert drawn == again != other
    for r, ids in zip(drawn, objectives["one"].columns[0]["completion_ids"], strict=True):
        assert r.ids == tuple(ids) and len(ids) <= 4 and max(ids) < len(WORDS)
        assert 1 not in ids[:-1]  # nothing after the end token
        assert r.scores == (reward("one", r.prompt, WORDS[ids[0]]), reward("two", r.prompt, WORDS[ids[0]]))
    assert any(len(r.ids) == 4 and r.ids[-1] != 1 for r in drawn)  # a cut response has no end token
    assert ledger.samples_drawn == 180 and ledger.scores_read == 360
    with pytest.raises(UserError, match="longest tagged prompt and max_completion_length: 18 tokens"):
        tagged.sample(model, tokenizer, config=replace(config, max_completion_length=13), seed=3, **settings)


def test_response_ids_continue_their_prompts_and_drawn_ones_stay_as_drawn() -> None:
    asked = ["x :", "y y :", "x :"], [" A", " B C", ""]
    assert tagged.response_ids(make_tokenizer(), *asked) == [(5, 1), (6, 7, 1), (1,)]
    assert tagged.response_ids(make_tokenizer(), *asked, [None, (6, 7), (5, 5, 5)]) == [(5, 1), (6, 7), (5, 5, 5)]


def test_drawn_comparisons_are_trained_at_their_ids_and_cut_ones_get_no_end(reference: str) -> None:
    row = pair_rows(1)[0] | {"a_ids": [5, 6, 7], "b_ids": None}  # a was cut: no end token
    config = conditioned_dpo.Config(**{**PAIRS, "tau": 1e-9}, draws=3)
    pairs = conditioned_dpo.judged([row], scores=row_scores([row]), config=config, reference=reference, objectives=2)
    assert all({p.chosen, p.rejected} == {(5, 6, 7), (WORDS.index(row["b"].strip()), 1)} for p in pairs)
    problem = problem_of(reference, comparisons=[row])
    ((a, b),) = tagged.scored_pairs(problem, source="rows", ledger=Ledger())
    assert a.ids == (5, 6, 7) and b.ids[-1] == 1 and a.scores == tuple(row["scores_a"])
