"""align.objectives: the direction of every sign, the reward model's exact tokens, normalizers by hand, stock GRPO."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from align.objectives import (
    OBJECTIVES,
    ImplicitReward,
    Keywords,
    Length,
    Negated,
    NoNormalizer,
    Normalized,
    Objective,
    Pattern,
    Quantile,
    RewardModelObjective,
    ZScore,
    build_objective,
    check_names,
    fit_normalizer,
    load_normalizer,
    save_normalizer,
)
from align.objectives.base import as_texts

PROMPTS = ["explain bread :", "explain tea and boats :", "explain wool :", "say :"]
COMPLETIONS = [" sure bread is clay", " sorry", " sure wool is ink and glue and paint", " x"]


def constant(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
    return [1.5, None, -2.0, 0.0][: len(completions)]


@pytest.fixture(scope="module")
def reward_models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An untrained decoder and encoder with heads large enough for the scores to differ clearly."""
    import torch

    from align.models import ModelConfig, build_model, load_scorer, load_tokenizer, save_model

    tokenizer = load_tokenizer(tiny_model)
    torch.manual_seed(4)
    decoder = load_scorer(tiny_model, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    torch.nn.init.normal_(decoder.score.weight)
    shape = ModelConfig(architecture="bert", hidden=32, layers=2, heads=2, context=128)
    encoder = build_model(shape, tokenizer, seed=4)
    torch.nn.init.normal_(encoder.classifier.weight)
    for p in encoder.bert.parameters():
        torch.nn.init.normal_(p, std=0.2)
    folder = tmp_path_factory.mktemp("reward-models")
    return {n: save_model(m, tokenizer, folder / n) for n, m in (("decoder", decoder), ("encoder", encoder))}


# ------------------------------------------------------------------------------------------------------ reward model
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_scores_are_the_model_on_the_ids_reward_trainer_makes(kind: str, reward_models: dict[str, Path]) -> None:
    """The oracle is TRL's own dataset preparation and one unpadded forward pass per text."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    folder = reward_models[kind]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    rows = [{"prompt": p, "chosen": c, "rejected": " no"} for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    args = RewardConfig(
        output_dir=str(folder.parent / "unused"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
    )
    trainer = RewardTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    prepared = trainer.train_dataset["chosen_ids"]
    assert all(ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1 for ids in prepared)
    model.eval()
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([ids])).logits.item() for ids in prepared]
        without_end = [model(input_ids=torch.tensor([ids[:-1]])).logits.item() for ids in prepared]
    scores = RewardModelObjective(folder)(PROMPTS, COMPLETIONS, other_column=[1, 2, 3, 4])
    assert scores == pytest.approx(expected, abs=1e-5)
    assert max(abs(a - b) for a, b in zip(expected, without_end, strict=True)) > 0.001  # the end token is seen
    assert max(expected) - min(expected) > 0.005
    assert RewardModelObjective(folder, scale=2.5, shift=-1.0)(PROMPTS, COMPLETIONS) == pytest.approx(
        [2.5 * s - 1.0 for s in expected], abs=1e-4
    )


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_scores_do_not_depend_on_the_batch_or_the_order(kind: str, reward_models: dict[str, Path]) -> None:
    single = RewardModelObjective(reward_models[kind], batch_size=1)
    whole = RewardModelObjective(reward_models[kind], batch_size=64)
    expected = single(PROMPTS, COMPLETIONS)
    assert whole(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
    assert whole(PROMPTS, COMPLETIONS) == whole(PROMPTS, COMPLETIONS)
    order = [2, 0, 3, 1, 0]
    shuffled = whole([PROMPTS[i] for i in order], [COMPLETIONS[i] for i in order])
    assert shuffled == pytest.approx([expected[i] for i in order], abs=1e-5)


def test_a_reward_model_scores_in_eval_mode_and_survives_pickling(reward_models: dict[str, Path]) -> None:
    from align.models import load_tokenizer, set_dropout
    from align.objectives.scoring import score

    objective = RewardModelObjective(reward_models["decoder"], name="helpful", scale=0.5)
    before = objective(PROMPTS, COMPLETIONS)
    copied = pickle.loads(pickle.dumps(objective))
    assert len(pickle.dumps(objective)) < 1000  # the model stays behind
    assert copied(PROMPTS, COMPLETIONS) == before and copied.__name__ == "helpful"
    model, tokenizer = objective._load()
    set_dropout(model, 0.5)
    model.train()
    assert [0.5 * s for s in score(model, tokenizer, PROMPTS, COMPLETIONS)] == before
    assert model.training  # restored
    assert load_tokenizer(reward_models["decoder"]).padding_side == "right"


def test_too_long_a_text_keeps_its_end(reward_models: dict[str, Path]) -> None:
    objective = RewardModelObjective(reward_models["encoder"])
    long = "z " * 200
    first, second, third = objective([long, "y" + long, long], [" sure", " sure", " sorry"])
    assert first == pytest.approx(second, abs=1e-6) and abs(first - third) > 1e-4


def test_a_language_model_is_not_a_reward_model(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a reward model"):
        RewardModelObjective(tiny_model)(["a"], ["b"])
    with pytest.raises(UserError, match="does not exist"):
        RewardModelObjective(tmp_path / "absent")(["a"], ["b"])


# -------------------------------------------------------------------------------------------------- implicit reward
def test_implicit_reward_is_beta_times_the_policys_log_ratio_with_the_end_token(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Hand computation from unpadded forward passes; swapping policy and reference turns the sign."""
    import torch

    from align.models import load_model, load_tokenizer, save_model

    tokenizer = load_tokenizer(tiny_model)
    policy = load_model(tiny_model)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.1 * torch.randn_like(p))
    folder = save_model(policy, tokenizer, tmp_path / "policy")

    def log_probability(model: Any, prompt: str, completion: str) -> float:
        head = tokenizer(prompt)["input_ids"]
        tail = [*tokenizer(completion)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([head + tail])).logits[0].log_softmax(-1)
        return sum(logp[len(head) + i - 1, token].item() for i, token in enumerate(tail))

    reference = load_model(tiny_model)
    expected = [
        0.3 * (log_probability(policy, p, c) - log_probability(reference, p, c))
        for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    objective = ImplicitReward(folder, tiny_model, beta=0.3)
    assert objective(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-4)
    assert max(map(abs, expected)) > 0.1
    swapped = ImplicitReward(tiny_model, folder, beta=0.3)(PROMPTS, COMPLETIONS)
    assert swapped == pytest.approx([-e for e in expected], abs=1e-4)
    assert pickle.loads(pickle.dumps(objective))(PROMPTS, COMPLETIONS) == objective(PROMPTS, COMPLETIONS)
    assert ImplicitReward(tiny_model, tiny_model, beta=1.0)(PROMPTS, COMPLETIONS) == [0.0] * 4
    with pytest.raises(UserError, match="beta above 0"):
        ImplicitReward(folder, tiny_model, beta=0.0)


# ------------------------------------------------------------------------------------------------------------ rules
def test_length_counts_its_unit_and_longer_is_better_unless_said(tiny_model: Path) -> None:
    texts = [" two words", "", "  a\nb  c "]
    prompts = ["a much longer prompt does not count"] * 3
    assert Length()(prompts, texts) == [2, 0, 3]
    assert Length("character")(prompts, texts) == [10, 0, 9]
    assert Length("word", longer_is_better=False)(prompts, texts) == [-2, 0, -3]
    tokens = Length("token", tokenizer=str(tiny_model))
    assert tokens(["p"] * 2, ["zq", ""]) == [2, 0]  # two bytes that no merge joins, and no end token
    assert pickle.loads(pickle.dumps(tokens))(["p"], ["zq"]) == [2]
    assert {Length().__name__, Length(longer_is_better=False).__name__} == {"length", "brevity"}
    with pytest.raises(UserError, match="word, character, token"):
        Length("line")
    with pytest.raises(UserError, match="needs tokenizer="):
        Length("token")


def test_keywords_are_whole_words_counted_once_with_the_sign_of_the_reward() -> None:
    texts = ["Sorry, I can't. sorry", "sorrysorry", "no help", "sorry can't help"]
    assert Keywords(["sorry", "can't"])([""] * 4, texts) == [2, 0, 0, 2]
    assert Keywords(["sorry", "can't", "help"], reward=-0.5, at_most=2)([""] * 4, texts) == [-1.0, 0, -0.5, -1.0]
    for words in ("sorry", [], [" "]):
        with pytest.raises(UserError, match="list of at least one word"):
            Keywords(words)


def test_pattern_reads_the_completion_only() -> None:
    assert Pattern(r"f\d")(["f1", "x"], ["x", "f2 f3"]) == [0.0, 1.0]
    with pytest.raises(UserError, match="not a regular expression"):
        Pattern("(")


def test_negated_turns_the_sign_and_keeps_what_does_not_apply() -> None:
    assert Negated(constant)([""] * 4, [""] * 4) == [-1.5, None, 2.0, 0.0]
    assert Negated(constant).__name__ == "minus_constant"


def test_messages_are_read_as_texts_and_uneven_lists_are_refused() -> None:
    asked, said = [{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": "one two"}]
    assert Length()([asked], [said]) == [2]  # type: ignore[list-item]
    assert as_texts([asked, "Hi"], [said, "x"]) == (["\n\nHuman: Hi\n\nAssistant:", "Hi"], ["one two", "x"])
    begun = [*asked, {"role": "assistant", "content": "Yes,"}]
    assert as_texts([begun], [said])[0] == ["\n\nHuman: Hi\n\nAssistant: Yes,"]
    longer = [*said, {"role": "user", "content": "More"}, {"role": "assistant", "content": "three"}]
    prompts, completions = as_texts([asked], [longer])
    assert completions == ["three"] and prompts[0].endswith("Assistant: one two\n\nHuman: More\n\nAssistant:")
    with pytest.raises(UserError, match="completion 0 is a int"):
        Length()(["a"], [3])  # type: ignore[list-item]
    with pytest.raises(UserError, match="completion 0 ends with a turn of the user's"):
        Length()(["a"], [asked])  # type: ignore[list-item]
    with pytest.raises(UserError, match="1 prompts but 2 completions"):
        Length()(["a"], ["b", "c"])


# ------------------------------------------------------------------------------------------------------ normalizers
def test_zscore_by_hand() -> None:
    normalizer = ZScore.fit([1.0, None, 3.0, 5.0, 7.0])  # mean 4, population variance (9 + 1 + 1 + 9) / 4 = 5
    assert (normalizer.mean, normalizer.n) == (4.0, 4)
    assert normalizer.std == pytest.approx(math.sqrt(5))
    assert normalizer([9.0, None, 4.0]) == [pytest.approx(math.sqrt(5)), None, 0.0]
    with pytest.raises(UserError, match="needs a spread"):
        ZScore.fit([2.0, 2.0])
    with pytest.raises(UserError, match="at least 2"):
        ZScore.fit([2.0, None])
    with pytest.raises(UserError, match="not finite"):
        ZScore.fit([2.0, math.nan])


def test_quantile_by_hand() -> None:
    normalizer = Quantile.fit([4.0, 0.0, 1.0, 3.0, 2.0, None])
    assert normalizer([0.0, 2.5, 4.0, None]) == [0.0, 0.625, 1.0, None]
    assert normalizer([-9.0, 99.0]) == [0.0, 1.0]
    ties = Quantile.fit([0.0, 1.0, 1.0, 1.0, 2.0])  # levels 0, .25, .5, .75, 1: the three equal knots meet at .5
    assert ties([0.0, 0.5, 1.0, 2.0]) == [0.0, 0.25, 0.5, 1.0]
    scores = normalizer([0.1 * i for i in range(50)])
    assert scores == sorted(scores, key=lambda s: s or 0.0)  # higher stays better
    with pytest.raises(UserError, match="no quantiles"):
        Quantile.fit([1.0, 1.0])


@pytest.mark.parametrize("kind", ["none", "zscore", "quantile"])
def test_a_normalizer_is_saved_with_its_kind_and_comes_back_equal(kind: str, tmp_path: Path) -> None:
    normalizer = fit_normalizer(kind, [0.0, 1.0, 5.0])
    save_normalizer(normalizer, tmp_path / "normalizer.json")
    assert json.loads((tmp_path / "normalizer.json").read_text())["kind"] == kind
    assert load_normalizer(tmp_path / "normalizer.json") == normalizer


def test_damaged_normalizers_and_unknown_kinds_name_the_place(tmp_path: Path) -> None:
    for content in ("{", "[]", '{"kind": "softmax"}', '{"kind": "zscore", "mean": 1}'):
        (tmp_path / "n.json").write_text(content)
        with pytest.raises(UserError, match=r"n\.json"):
            load_normalizer(tmp_path / "n.json")
    with pytest.raises(UserError, match="none, zscore, quantile"):
        fit_normalizer("softmax", [1.0, 2.0])


def test_a_normalized_objective_keeps_the_name_and_what_does_not_apply() -> None:
    objective = Normalized(constant, ZScore(mean=1.0, std=0.5, n=2))
    assert objective([""] * 3, [""] * 3) == [1.0, None, -6.0]
    assert objective.__name__ == "constant"
    assert NoNormalizer()([1.0, None]) == [1.0, None]


# ----------------------------------------------------------------------------------------------------- the library
def test_objectives_are_built_from_config_entries(tmp_path: Path) -> None:
    save_normalizer(ZScore(mean=-2.0, std=2.0, n=9), tmp_path / "n.json")
    spec = {"kind": "length", "per": "word", "name": "short", "negate": True, "normalizer": str(tmp_path / "n.json")}
    objective = build_objective(spec)
    assert objective.__name__ == "short" and isinstance(objective, Objective)
    assert objective(["p"], ["one two three four"]) == [-1.0]  # (-4 - -2) / 2: first the sign, then the normalizer
    models = {"reward_model", "shared_reward_model", "pooled_reward", "implicit"}
    assert set(OBJECTIVES) == {*models, "length", "keywords", "pattern"}
    for wrong, said in (
        ({"kind": "lenght"}, "reward_model, shared_reward_model, pooled_reward, implicit"),
        ({}, "None is not one of"),
        ({"kind": "length", "unit": "word"}, "no option 'unit'"),
        ({"kind": "pattern", "pattern": 3}, "an option of the wrong type .*; fix it"),
        ({"kind": "pattern"}, "needs 'pattern'"),
    ):
        with pytest.raises(UserError, match=said):
            build_objective(wrong)


def test_two_objectives_of_one_name_are_refused() -> None:
    assert check_names([Length(), Length(longer_is_better=False)]) == ("length", "brevity")
    with pytest.raises(UserError, match="both called 'length'"):
        check_names({"a": Length("word"), "b": Length("character")})


def test_importing_the_library_is_light() -> None:
    code = (
        "import sys, align.objectives; "
        "assert not {'torch', 'transformers', 'trl', 'datasets', 'recipes', 'evals'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("conversational", [False, True])
def test_two_objectives_train_a_stock_grpo_trainer(
    tiny_model: Path, reward_models: dict[str, Path], tmp_path: Path, conversational: bool
) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + ' : ' }}{% endfor %}"
    rows: list[Any] = [[{"role": "user", "content": p}] for p in PROMPTS] if conversational else PROMPTS
    args = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=4,
        reward_weights=[0.5, 0.5],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=str(tiny_model),
        reward_funcs=[RewardModelObjective(reward_models["decoder"], name="helpful"), Length("character")],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": p} for p in rows]),
        processing_class=tokenizer,
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert {"rewards/helpful/mean", "rewards/length/mean"} <= set(logged)
    assert logged["reward"] == pytest.approx(
        0.5 * logged["rewards/helpful/mean"] + 0.5 * logged["rewards/length/mean"], abs=1e-4
    )
