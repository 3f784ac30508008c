"""Reward models on suites of comparisons: the table by hand, scores of a tiny model, the command to the page."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from align.objectives.reward_model import RewardModelObjective
from evals.backends.reward_model import RewardBackend, is_reward_model
from evals.items import Item, Missing, Prompt
from evals.measure.cells import Cell, ask
from evals.measure.pair_scores import PairScores
from evals.report import words
from evals.shifts import parse_shifts
from evals.tables.reward_suite import reward_table
from factories.chat_styles import chat_checkpoint
from factories.encoders import pair_encoder
from factories.html import Tags
from recipes.commands import suites


@pytest.fixture(scope="module")
def scorer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's backbone with a head of one output, made without our own code."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    torch.nn.init.normal_(model.score.weight, std=1.0)
    folder = tmp_path_factory.mktemp("scorer") / "rm"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def pairs(name: str, chosen: list[str], rejected: list[str], **more: Any) -> Item:
    return Item(name, f"about {name}", columns={"chosen": chosen, "rejected": rejected}, **more)


def cells(values: dict[str, dict[str, Any]], items: list[Item]) -> list[Cell]:
    """shift -> item -> (chosen scores, rejected scores) or Missing."""
    made = []
    for one in ask(items, suite="s", shifts=parse_shifts(list(values))):
        value = values[one.shift.name][one.item.id]
        if not isinstance(value, Missing):
            value = {"chosen": value[0], "rejected": value[1], "cut": False}
        made.append(one.measured("pairs", value))
    return made


def test_the_table_by_hand() -> None:
    """Plain: right, right, wrong, tie = 2.5 of 4; in capitals: right, wrong, wrong, right = 2 of 4."""
    items = [pairs(n, ["c"], ["r"], group="x" if n in "ab" else "y") for n in "abcd"]
    plain = {"a": ([2.0], [0.0]), "b": ([1.0], [0.0]), "c": ([0.0], [1.0]), "d": ([0.5], [0.5])}
    upper = {"a": ([1.0], [0.0]), "b": ([0.0], [1.0]), "c": ([0.0], [1.0]), "d": ([1.0], [0.0])}
    table = reward_table(cells({"none": plain, "uppercase": upper}, items))
    home, away = table["shifts"]["none"], table["shifts"]["uppercase"]
    assert home["accuracy"]["value"] == 2.5 / 4 and home["tied"] == 0.25 and home["pairs"] == 4
    assert home["subsets"]["x"]["value"] == 1 and home["subsets"]["y"]["value"] == 0.25 and home["macro"] == 0.625
    low, high = home["subsets"]["x"]["ci"]
    assert low < 1 == high, "an interval where all comparisons agree still has a width"
    losses = [math.log1p(math.exp(-m)) for m in (2, 1, -1, 0)]
    assert home["log_loss"]["value"] == pytest.approx(sum(losses) / 4)
    assert home["brier"]["value"] == pytest.approx(sum((1 - 1 / (1 + math.exp(-m))) ** 2 for m in (2, 1, -1, 0)) / 4)
    assert away["change"]["accuracy"]["value"] == pytest.approx(2 / 4 - 2.5 / 4) and "change" not in home
    same = reward_table(cells({"none": plain, "uppercase": plain}, items))["shifts"]["uppercase"]["change"]["accuracy"]
    assert same["value"] == 0 and same["ci"][0] < 0 < same["ci"][1] and same["p_holm"] == 1
    assert away["change"]["margin_ratio"] == pytest.approx((1 - 1 - 1 + 1) / (2 + 1 - 1 + 0))
    assert table["comparisons"] == 3 and "styles" not in home and home["calibration"]["ece"] > 0


def test_styles_are_nine_comparisons_of_one_base_item() -> None:
    """Scores grow with style on both sides: plain right against fancy wrong always loses (hard 0), the rest wins."""
    items = [pairs(n, list("123"), list("123"), group="chat") for n in "ab"]
    scores = {n: ([1.0, 2.0, 3.0], [0.9, 1.9, 2.9]) for n in "ab"}
    entry = reward_table(cells({"none": scores}, items))["shifts"]["none"]
    assert entry["pairs"] == 18 and entry["items"] == 2 and entry["accuracy"]["n"] == 2
    overall = entry["styles"]["overall"]
    assert (overall["hard"], overall["normal"], overall["easy"]) == (0, 1, 1)
    assert entry["accuracy"]["value"] == pytest.approx(6 / 9)


def test_missing_scores_are_counted_and_too_many_refused() -> None:
    items = [pairs(n, ["c"], ["r"]) for n in "abcd"]
    right = {n: ([1.0], [0.0]) for n in "abcd"}
    lost = {**right, "a": Missing("unsupported_system", lasting=True)}
    table = reward_table(cells({"none": right, "uppercase": lost}, items))["shifts"]
    assert table["uppercase"]["missing"] == {"unsupported_system": 1} and table["uppercase"]["items"] == 3
    gone = dict.fromkeys("abcd", Missing("unsupported_system", lasting=True))
    table = reward_table(cells({"none": right, "uppercase": gone}, items))["shifts"]
    assert table["uppercase"] == {"missing": {"unsupported_system": 4}}
    with pytest.raises(UserError, match=r"shift uppercase: 25% of the scores are missing \(not_finite 1\)"):
        reward_table(cells({"none": right, "uppercase": {**right, "a": Missing("not_finite")}}, items))


def test_scores_are_the_reward_models_own(scorer: Path) -> None:
    backend = RewardBackend.load(scorer, template="plain", batch_size=2)
    items = [pairs("a", ["bread"], ["ink"]), pairs("b", ["tea", "rope"], ["glue", "bees"])]
    plan = ask(items, suite="s", shifts=parse_shifts(["uppercase"]))
    found = PairScores().measure(plan, backend=backend)
    objective = RewardModelObjective(scorer)
    for value, one in zip(found, items, strict=True):
        assert not isinstance(value, Missing)
        prompt = one.request.upper()
        texts = [f" {text}" for text in (*one.columns["chosen"], *one.columns["rejected"])]
        expected = objective([prompt] * len(texts), texts)
        assert [*value["chosen"], *value["rejected"]] == pytest.approx(expected, abs=1e-5)
        margins = [c - r for c in value["chosen"] for r in value["rejected"]]
        assert value["margin"] == pytest.approx(sum(margins) / len(margins)) and value["tied"] == 0
        assert value["right"] == sum(m > 0 for m in margins) / len(margins) and value["cut"] is False
    long, _ = backend.scores([Prompt.user("tea " * 200)] * 2, responses=["x", "y"])
    assert not isinstance(long, Missing) and long[1] is True
    begun = backend.scores([Prompt.user("x", prefill="Sure")], responses=["y"])
    assert getattr(begun[0], "reason", "") == "unsupported_prefill"
    assert backend.generate([], config=None, seeds=[]) == [] and "logprobs" not in backend.can  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llama3", "thinking"])
def test_a_chat_reward_model_reads_the_conversation_in_its_own_template(name: str, tmp_path: Path) -> None:
    """One start token, no prefill of the template's own but where it writes one, the response to its last space."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    start = chat_checkpoint(name, tmp_path / "start")
    model = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1, pad_token_id=1)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(tmp_path / "rm")
    tokenizer = AutoTokenizer.from_pretrained(start)
    tokenizer.save_pretrained(tmp_path / "rm")
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "  yes\n"}]
    ids = tokenizer.apply_chat_template(talk, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        wanted = model.eval()(ids).logits.item()
    ((found, cut),) = RewardBackend.load(tmp_path / "rm").scores([Prompt.user("hi")], responses=["  yes\n"])
    assert found == pytest.approx(wanted, abs=1e-5) and cut is False


def test_an_output_of_several_is_named_in_the_path(tmp_path: Path) -> None:
    folder = pair_encoder(tmp_path / "rm", labels=("helpful", "harmless"))
    assert is_reward_model(f"{folder}@harmless")
    ((found, _),) = RewardBackend.load(f"{folder}@harmless").scores([Prompt.user("how hot ?")], responses=["very"])
    assert [found] == pytest.approx(RewardModelObjective(folder, label="harmless")(["how hot ?"], ["very"]), abs=1e-5)


def test_a_changed_head_is_another_fingerprint(scorer: Path) -> None:
    import torch

    backend, other = RewardBackend.load(scorer), RewardBackend.load(scorer)
    assert backend.fingerprint == other.fingerprint
    with torch.no_grad():
        other.model.score.weight[0, 0] += 1e-3
    other._fingerprint = None
    assert backend.fingerprint != other.fingerprint


def test_from_the_command_to_the_page(
    scorer: Path, tiny_model: Path, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    sides = [{"chosen": f"bread {i}", "rejected": f"ink {i}"} for i in range(8)]
    rows = [{"id": f"p{i}", "prompt": f"about tea {i}", **side} for i, side in enumerate(sides)]
    suite = write_rows(tmp_path / "made.jsonl", rows)
    assert is_reward_model(str(scorer)) and not is_reward_model(str(tiny_model)) and not is_reward_model("org/none")
    family = tmp_path / "family"
    family.mkdir()
    (family / "family.json").write_text("{}")
    assert not is_reward_model(str(family)), "a family of policies has no model of its own"
    (family / "model").mkdir()
    shutil.copy(scorer / "config.json", family / "model" / "config.json")
    assert is_reward_model(str(family)), "a run keeps its model in a folder below"
    out = tmp_path / "out"
    arguments = ["--suite", str(suite), "--shift", "uppercase", "base64", "--out", str(out)]
    assert suites.main([str(scorer), *arguments]) == 0
    table = json.loads((out / "table.json").read_text())["suites"]["made"]["rewards"]
    page = Tags((out / "report.html").read_text())
    assert set(table["shifts"]) == {"none", "uppercase", "base64"}
    for entry in table["shifts"].values():
        assert words.share(entry["accuracy"]["value"]) in page.text and words.num(entry["brier"]["value"]) in page.text
        assert words.num(entry["calibration"]["ece"]) in page.text
    assert "Comparisons in the right order" in page.text
    with pytest.raises(UserError, match="compares responses"):
        suites.main([str(tiny_model), *arguments])
    safety = write_rows(tmp_path / "safety.jsonl", [{"prompt": "tea?", "label": "harmful"}])
    with pytest.raises(UserError, match="is a reward model"):
        suites.main([str(scorer), "--suite", str(safety), "--out", str(out)])
