"""Rewards in context: scores as tags, one normalisation for all rounds, targets on the boundary, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.engines import tagged
from align.engines import tagged_pairs as tagged_training
from align.engines.tagged_pairs import Example
from align.errors import UserError
from align.methods import ric
from align.models import load_tokenizer
from align.policies.tagged import Tags, tagged_checkpoint
from align.preferences import Targets, Thresholds, Weights
from align.runs import Ledger, open_run
from factories.tagged_bandit import killed_at, law, recorders
from factories.tiny_bandit import (
    BETA,
    PROMPT_ROWS,
    PROMPTS,
    RESPONSES,
    WORDS,
    fit,
    make_tokenizer,
    pair_rows,
    reward,
    same_weights,
)

WEIGHTS = [Weights((0.5, 0.5))]
QUICK = {
    "learning_rate": 1e-2, "batch_size": 64, "epochs": 1.0, "online_rounds": 2, "online_samples": 64, "replay": 32,
    "online_learning_rate": 1e-3, "max_completion_length": 1, "beta": BETA,
}  # fmt: skip


# --------------------------------------------------------------------------------------------- targets and the filter


@pytest.mark.parametrize("objectives", [2, 3, 5])
def test_targets_are_at_the_maximum_but_for_the_smallest_draw(objectives: int) -> None:
    """The official `sample_goals`: all but argmin == max."""
    low, high = np.linspace(-3, 1, objectives), np.linspace(2, 9, objectives)
    targets_NK = ric.upper_right(3000, low=low, high=high, rng=np.random.default_rng(0))
    at_most_NK = targets_NK == high
    assert (at_most_NK.sum(1) == objectives - 1).all()
    free_N = (~at_most_NK).argmax(1)
    assert (targets_NK >= low).all() and (targets_NK <= high).all()
    counts = np.bincount(free_N, minlength=objectives)
    assert counts == pytest.approx(3000 / objectives, rel=0.15)  # wide ranges are free no more often than narrow ones
    # The smallest of K uniform draws has mean 1 / (K + 1).
    share_N = ((targets_NK - low) / (high - low))[np.arange(3000), free_N]
    assert share_N.mean() == pytest.approx(1 / (objectives + 1), abs=0.02)


def test_the_filter_keeps_any_or_all() -> None:
    scores = [[0.0, 9.0], [1.0, 8.0], [2.0, 0.0], [3.0, 1.0]]  # medians 1.5 and 4.5
    assert ric.good_enough(scores, keep="any", quantile=0.5).tolist() == [True, True, True, True]
    assert ric.good_enough(scores, keep="all", quantile=0.5).tolist() == [False, False, False, False]
    mixed = [[0.0, 0.0], [1.0, 8.0], [2.0, 0.0], [3.0, 9.0]]
    assert ric.good_enough(mixed, keep="any", quantile=0.5).tolist() == [False, True, True, True]
    assert ric.good_enough(mixed, keep="all", quantile=0.5).tolist() == [False, False, False, True]
    assert ric.good_enough([[5.0], [1.0]], keep="all", quantile=1 - 1e-9).tolist() == [True, False]  # high is good


# ---------------------------------------------------------------------------------------------------- normalisation


def test_scores_are_normalised_with_the_statistics_of_the_offline_responses() -> None:
    scores = [(0.0, 10.0), (2.0, 30.0), (4.0, 20.0), (2.0, 20.0)]  # means 2 and 20, deviations sqrt(2) and sqrt(50)
    stats = ric.Stats.fit(scores, config=ric.Config())
    assert stats((4.0, 10.0)) == pytest.approx((2 / 2**0.5, -10 / 50**0.5))
    assert stats.low == pytest.approx((-(2**0.5), -(2**0.5))) and stats.high == pytest.approx((2**0.5, 2**0.5))
    unit = ric.Stats.fit(scores, config=ric.Config(normalise="minmax"))
    assert unit((1.0, 25.0)) == pytest.approx((0.25, 0.75)) and (unit.low, unit.high) == ((0.0, 0.0), (1.0, 1.0))
    inner = ric.Stats.fit([(float(i),) for i in range(101)], config=ric.Config(normalise="minmax", end_quantile=0.1))
    assert (inner.low, inner.high) == (pytest.approx((0.1,)), pytest.approx((0.9,)))
    official = ric.Stats.fit(scores, config=ric.Config(ends="normal"))
    assert official.low == (-4.3, -4.3) and official.high == (4.3, 4.3)
    with pytest.raises(UserError, match="objective 2 scores all responses alike"):
        ric.Stats.fit([(0.0, 1.0), (1.0, 1.0)], config=ric.Config())


def test_the_tags_span_all_offline_scores_and_targets_in_round_steps() -> None:
    stats = ric.Stats((0.0,), (1.0,), (-1.23,), (2.01,))
    offline = [tagged.Response("p", (1,), (s,)) for s in (-1.5, 2.6)]
    ends = ric.tag_range(offline, stats=stats, levels=20)
    assert ends == {"low": -1.5, "high": pytest.approx(3.5)}  # steps of .25, the first multiple of .05 that reaches 2.6
    unit = ric.Stats((0.0,), (1.0,), (0.0,), (1.0,))
    inside = [tagged.Response("p", (1,), (s,)) for s in (0.0, 1.0)]
    assert ric.tag_range(inside, stats=unit, levels=20) == {"low": 0.0, "high": 1.0}


def test_statistics_are_fitted_once_and_reused_online(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, trained = [], []
    plain_fit, plain_imitate = ric.Stats.fit, ric.imitate

    def counting_fit(scores: Any, **kwargs: Any) -> Any:
        fitted.append(plain_fit(scores, **kwargs))
        return fitted[-1]

    def recording_imitate(examples: Any, **kwargs: Any) -> Any:
        trained.append(examples)
        return plain_imitate(examples, **kwargs)

    monkeypatch.setattr(ric.Stats, "fit", counting_fit)
    monkeypatch.setattr(ric, "imitate", recording_imitate)
    rows = pair_rows(100)
    fit(
        ric, ric.Config(**QUICK), reference=reference, weights=WEIGHTS, out=tmp_path, comparisons=rows,
        prompts=PROMPT_ROWS,
    )  # fmt: skip
    (stats,) = fitted
    saved = json.loads((tmp_path / "offline" / ric.STATS_FILE).read_text())
    assert ric.Stats(**{k: tuple(v) for k, v in saved.items()}) == stats
    offline, first, second = trained
    assert len(offline) == 200
    for examples in trained:
        for e in examples:
            word = WORDS[e.ids[0]]
            assert e.values == pytest.approx(stats([reward(n, e.prompt, word) for n in ("one", "two")]))
    kept = [tagged.kept(tmp_path / f"online-{i}", tagged.Response) for i in (1, 2)]
    assert len(first) == len(kept[0]) + 32 and len(second) == len(kept[0]) + len(kept[1]) + 32  # rounds add up
    metrics = open_run(tmp_path / "online-1").metrics
    assert metrics["kept"] == len(kept[0]) < metrics["of"] == 64 and len(metrics["distance_to_targets"]) == 2
    assert not (tmp_path / "offline" / "model").exists() and (tmp_path / "online-2" / "model").is_dir()


# ----------------------------------------------------------------------------------------------------- what is trained


def test_the_loss_falls_on_the_response_and_its_end_token_only(reference: str, tmp_path: Path) -> None:
    """The official code left the end token out until 2024-11-03."""
    import torch

    tags = Tags(("one", "two"), tokens=True)
    start = tagged_checkpoint(reference, tags=tags, out=tmp_path / "start")
    ids = tagged.response_ids(make_tokenizer(), ["x :", "y y :"], [" A B", " C"])
    assert ids == [(5, 6, 1), (7, 1)]
    examples = [Example("x :", (0.2, 0.8), ids[0]), Example("y y :", (1.0, 0.0), ids[1])]
    trainer = tagged_training.build_sft_trainer(
        examples, config=ric.Config(**QUICK), model=start, tags=tags, folder=tmp_path, epochs=1.0
    )
    batch = next(iter(trainer.get_train_dataloader()))
    columns = [batch[name].tolist() for name in ("input_ids", "attention_mask", "labels")]
    rows = {
        tuple(i for i, m in zip(read, mask, strict=True) if m): [label for label in labels if label != -100]
        for read, mask, labels in zip(*columns, strict=True)
    }
    one, two = len(WORDS), len(WORDS) + 11
    assert rows == {(one + 2, two + 8, 2, 4, 5, 6, 1): [5, 6, 1], (one + 10, two, 3, 3, 4, 7, 1): [7, 1]}
    # The loss is that of the law without tag tokens, which have probability 0 while it trains.
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch).item()
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logp = logits[..., : len(WORDS)].log_softmax(-1)[:, :-1]
    target = batch["labels"][:, 1:]
    taken = logp.gather(-1, target.clamp(min=0)[..., None])[..., 0][target != -100]
    assert loss == pytest.approx(-taken.mean().item(), abs=1e-4)


def test_asked_for_a_response_s_own_scores_it_answers_with_that_response(reference: str, tmp_path: Path) -> None:
    """The fixed point of the offline stage: the law of the pairs' responses among those of the asked scores."""
    rows = pair_rows(600)
    config = ric.Config(**{**QUICK, "epochs": 6.0, "online_rounds": 0, "levels": 40})
    family = fit(ric, config, reference=reference, weights=WEIGHTS, out=tmp_path, comparisons=rows)
    stats = ric.Stats(**{k: tuple(v) for k, v in json.loads((tmp_path / "offline" / "stats.json").read_text()).items()})
    for prompt in PROMPTS:
        for word in RESPONSES:
            asked = Targets(stats([reward(n, prompt, word) for n in ("one", "two")]))
            assert law(family.policy(asked), prompt)[WORDS.index(word)] > 0.8, (prompt, word)
    best = family.policy(Weights((1.0, 0.0))).values  # the highest score of the first objective, the lowest of the rest
    assert best == family.tags.rounded((stats.high[0], stats.low[1]))


def test_objectives_see_prompts_without_tags_and_are_charged_once(reference: str, tmp_path: Path) -> None:
    objectives, ledger = recorders(), Ledger()
    bare = [{k: row[k] for k in ("id", "prompt", "a", "b")} for row in pair_rows(50)]
    config = ric.Config(**{**QUICK, "scores": "objectives"})
    fit(
        ric, config, reference=reference, weights=WEIGHTS, out=tmp_path, comparisons=bare, prompts=PROMPT_ROWS,
        objectives=objectives, ledger=ledger,
    )  # fmt: skip
    for objective in objectives.values():
        assert set(objective.prompts) == set(PROMPTS)
        assert not any("<" in text.replace("<end>", "") for text in objective.completions)
        assert objective.columns[-1]["id"]  # the prompts' other columns come along
    assert ledger.scores_read == 2 * (100 + 2 * 64)
    assert ledger.samples_drawn == 2 * 64 and ledger.tokens > 0 and ledger.flops > 6 * ledger.tokens


def test_scores_of_the_rows_and_asked_ones_train_the_same(reference: str, tmp_path: Path) -> None:
    rows = pair_rows(50)
    one, two = (
        fit(ric, ric.Config(**QUICK, scores=source), reference=reference, weights=WEIGHTS, out=tmp_path / source,
            comparisons=rows)
        for source in ("rows", "objectives")
    )  # fmt: skip
    assert same_weights(one.model, two.model)
    other = fit(
        ric, ric.Config(**QUICK, seed=1), reference=reference, weights=WEIGHTS, out=tmp_path / "s", comparisons=rows
    )
    assert not same_weights(one.model, other.model)


def test_an_interrupted_run_goes_on_with_the_finished_parts(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, config = pair_rows(50), ric.Config(**QUICK)
    whole = fit(ric, config, reference=reference, weights=WEIGHTS, out=tmp_path / "whole", comparisons=rows)
    with monkeypatch.context() as patch:
        patch.setattr(tagged, "sample", killed_at(2, tagged.sample))
        with pytest.raises(KeyboardInterrupt):
            fit(ric, config, reference=reference, weights=WEIGHTS, out=tmp_path / "cut", comparisons=rows)
    assert (tmp_path / "cut" / "online-1").is_dir() and not (tmp_path / "cut" / "online-2").exists()
    ledger = Ledger()
    again = fit(
        ric, config, reference=reference, weights=WEIGHTS, out=tmp_path / "cut", comparisons=rows, ledger=ledger
    )
    assert same_weights(whole.model, again.model)
    assert ledger.samples_drawn == 2 * 64  # the finished round is charged all the same


def test_three_objectives(reference: str, tmp_path: Path) -> None:
    rows = [
        {**r, "scores_a": [*r["scores_a"], len(r["prompt"]) / 10 + r["u"]], "scores_b": [*r["scores_b"], r["u"]]}
        for r in pair_rows(50)
    ]
    objectives = {**recorders(), "three": lambda prompts, completions, **_: [float(len(p)) for p in prompts]}
    family = fit(
        ric, ric.Config(**QUICK), reference=reference, weights=[Weights((0.2, 0.3, 0.5))], out=tmp_path,
        comparisons=rows, objectives=objectives,
    )  # fmt: skip
    assert len(family.policy(Weights((0.2, 0.3, 0.5))).values) == 3
    assert "no J" in family.optimises["0.2,0.3,0.5"] and "targets_l2" in family.optimises["0.2,0.3,0.5"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": "some"}, "keep must be one of any, all"),
        ({"normalise": "rank"}, "normalise must be one of"),
        ({"ends": "normal", "normalise": "minmax"}, "set normalise: zscore"),
        ({"aim": "weights"}, "aim must be one of targets_l2"),
        ({"quantile": 1.0}, "quantile in"),
        ({"end_quantile": 0.5}, "end_quantile must be in"),
        ({"epochs": 0.0}, "epochs must be above 0"),
        ({"scores": "both"}, "scores must be one of"),
    ],
)
def test_impossible_configurations_are_refused(
    changes: dict[str, Any], message: str, reference: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        fit(
            ric, ric.Config(**{**QUICK, **changes}), reference=reference, weights=WEIGHTS, out=tmp_path,
            comparisons=pair_rows(4),
        )  # fmt: skip


def test_preferences_of_other_kinds_and_missing_scores_are_refused(reference: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="asked by weights or targets"):
        fit(ric, ric.Config(), reference=reference, weights=[Thresholds((0.1, 0.2))], out=tmp_path)  # type: ignore[list-item]
    bare = [{k: row[k] for k in ("id", "prompt", "a", "b")} for row in pair_rows(4)]
    with pytest.raises(UserError, match="no scores_a and scores_b"):
        fit(ric, ric.Config(), reference=reference, weights=WEIGHTS, out=tmp_path, comparisons=bare)
    short = [{**row, "scores_a": [1.0]} for row in pair_rows(4)]
    with pytest.raises(UserError, match="1 scores for 2 objectives"):
        fit(ric, ric.Config(), reference=reference, weights=WEIGHTS, out=tmp_path, comparisons=short)
    with pytest.raises(UserError, match="does not apply to 'x :'"):
        fit(
            ric, ric.Config(**QUICK), reference=reference, weights=WEIGHTS, out=tmp_path, comparisons=pair_rows(20),
            prompts=PROMPT_ROWS[:1], objectives={**recorders(), "two": lambda prompts, *_, **__: [None] * len(prompts)},
        )  # fmt: skip


def test_families_of_the_tokenizer_s_own_text_need_no_tokens(tiny_model: Path, tmp_path: Path) -> None:
    rows = [
        {"id": a, "prompt": f"sell {a} :", "a": f" {a} yes", "b": " no", "scores_a": [1.0, i], "scores_b": [0.0, 3]}
        for i, a in enumerate(("bread", "tea", "clay"))
    ]
    lengths = {
        "one": lambda prompts, completions, **_: [float(len(text)) for text in completions],
        "two": lambda prompts, completions, **_: [float(i) for i in range(len(completions))],
    }
    config = ric.Config(**{**QUICK, "online_rounds": 1, "online_samples": 4, "levels": 4, "max_completion_length": 3})
    family = fit(
        ric, config, reference=str(tiny_model), weights=WEIGHTS, out=tmp_path, comparisons=rows,
        objectives=lengths,
    )  # fmt: skip
    assert not family.tags.tokens
    assert len(load_tokenizer(family.model)) == len(load_tokenizer(tiny_model))
    assert family.policy(WEIGHTS[0]).generate(["sell tea :"], max_new_tokens=3, seed=0)
