"""Suites: what each column becomes, twins and clusters, samples that a limit keeps, and one line for every mistake."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from align.turns import Turn
from evals.items import Item
from evals.suites import SUITES, load_suite, shift_pairs
from evals.suites.base import chance, choose, clustered, majority, same_text
from evals.suites.choice import shuffled
from evals.suites.safety import turns_of

Rows = Sequence[Mapping[str, Any]]


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., list[Item]]:
    """Items of a suite whose file has the given rows."""

    def loaded(name: str, rows: Rows, **options: Any) -> list[Item]:
        path = tmp_path / SUITES[name].file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
        return load_suite(name, data=tmp_path, **options)[1]

    return loaded


# --- all suites ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SUITES))
def test_a_suite_reads_its_file_and_says_what_it_is(name: str, request: pytest.FixtureRequest) -> None:
    suite = SUITES[name]
    data = request.getfixturevalue("shared_data") if suite.file else None
    items = suite.load(data, limit=40)
    assert suite.name == name and suite.about and 10 <= len(items) <= 40
    assert len({item.id for item in items}) == len(items) and all(item.request.strip() for item in items)
    if suite.kind.name == "safety":
        assert {item.label for item in items} <= {"harmful", "benign", "borderline"}
    if suite.kind.name in ("choice", "classification"):
        targets = [item.choices[item.target] for item in items if isinstance(item.target, int)]
        assert len(targets) == len(items) and len(set(targets)) > 1
        assert all(choice == choice.strip() and choice for item in items for choice in item.choices)
    if suite.kind.name == "classification":
        assert all(item.label == item.choices[item.target] for item in items if isinstance(item.target, int))
    if suite.kind.name == "reward_pairs":
        assert all(item.columns["chosen"] and item.columns["rejected"] for item in items)
    if suite.kind.name in ("qa", "translation"):
        assert all(isinstance(item.target, str) and item.target for item in items)


def test_partners_are_suites_of_the_same_kind() -> None:
    pairs = shift_pairs()
    assert len(pairs) > 20 and all(SUITES[a].kind == SUITES[b].kind and a != b for a, b in pairs)
    assert {("sst2", "sst2_styles"), ("snli", "breaking_nli"), ("davidson_hate", "hatecheck")} <= set(pairs)


def test_directions_of_metrics() -> None:
    assert SUITES["xstest"].metrics == {"asr": False, "over_refusal": False}
    assert SUITES["sst2"].metrics["accuracy"] is True and SUITES["c4"].metrics == {"bits_per_byte": False}
    assert SUITES["persona"].metrics["accuracy"] is None
    assert {suite.kind.name for suite in SUITES.values()} == {
        "safety", "choice", "classification", "qa", "translation", "reward_pairs", "text",
    }  # fmt: skip


# --- limits and clusters ---------------------------------------------------------------------------------------------


def test_a_larger_limit_adds_items_and_keeps_the_order() -> None:
    items = clustered([Item(f"i{i}", f"text {i}") for i in range(60)])
    small, large = choose(items, limit=10), choose(items, limit=25)
    assert len(small) == 10 and {i.id for i in small} < {i.id for i in large}
    assert [i.id for i in large] == [i.id for i in items if i in large]
    assert small != items[:10] and choose(items, limit=60) == items == choose(items, limit=None)
    assert {i.id for i in choose(items[::-1], limit=10)} == {i.id for i in small}


def test_a_limit_takes_one_of_each_cluster_before_a_second_one() -> None:
    items = [Item(f"{c}{i}", "x", columns={"cluster": c}) for c in "abcdef" for i in range(5)]
    assert Counter(map(attrgetter("cluster"), choose(items, limit=6))) == Counter("abcdef")
    assert set(Counter(map(attrgetter("cluster"), choose(items, limit=12))).values()) == {2}
    assert max(Counter(map(attrgetter("cluster"), choose(items, limit=8))).values()) == 2


def test_twins_come_together_and_partners_keep_the_same_base_items() -> None:
    twins = [Item(f"{s}{i}", f"{s} {i}", twin=f"{o}{i}") for i in range(20) for s, o in ("pq", "qp")]
    chosen = choose(clustered(twins), limit=8)
    assert all(item.twin in {other.id for other in chosen} for item in chosen) and len(chosen) == 8
    home = [Item(f"h{i}", "x", columns={"cluster": f"c{i}"}) for i in range(50)]
    away = [Item(f"a{i}-{s}", "y", columns={"cluster": f"c{i}"}) for s in range(3) for i in range(50)]
    kept = [set(map(attrgetter("cluster"), choose(items, limit=12))) for items in (home, away)]
    assert kept[0] == kept[1] and len(kept[0]) == 12


def test_items_with_the_same_text_share_a_cluster() -> None:
    before = (Turn("user", "hello"), Turn("assistant", "hi"))
    texts = {"a": "Tea, please!", "b": "tea please", "c": "tea pleased"}
    made = [*(Item(name, text) for name, text in texts.items()), Item("d", "tea please", before=before)]
    items = clustered(made)
    assert [item.cluster for item in items] == ["a", "a", "c", "d"]
    assert same_text("!?") == "!?" and Item("x", "y").cluster == "x"


def test_chance_and_majority() -> None:
    two, four = Item("a", "?", choices=("x", "y"), target=0), Item("b", "?", choices=("x", "y", "z", "w"), target=3)
    assert chance([two, four]) == pytest.approx(3 / 8) and chance([Item("a", "?")]) is None and chance([]) is None
    assert chance([Item("a", "?", columns={"chosen": ["x"], "rejected": ["y"]})]) == 0.5
    assert majority([two, two, Item("c", "?", choices=("x", "y"), target=1)]) == pytest.approx(2 / 3)
    assert majority([two, four]) is None  # no common classes


# --- columns ---------------------------------------------------------------------------------------------------------


def test_xstest_labels_and_twins(load: Callable[..., list[Item]]) -> None:
    rows = [
        {"id": "1", "prompt": "kill a process", "type": "homonyms", "label": "safe", "focus": "kill"},
        {"id": "2", "prompt": "stop a baker", "type": "contrast_homonyms", "label": "unsafe", "focus": "kill"},
        {"id": "3", "prompt": "where does X live", "type": "privacy_public", "label": "safe", "focus": "X"},
        {"id": "4", "prompt": "address of X", "type": "contrast_privacy", "label": "unsafe", "focus": "X"},
        {"id": "5", "prompt": "boil water", "type": "homonyms", "label": "safe", "focus": "boil"},
        {"id": "6", "prompt": "boil milk", "type": "homonyms", "label": "safe", "focus": "boil"},
    ]
    items = load("xstest", rows)
    assert [item.twin for item in items] == ["2", "1", "4", "3", None, None]
    assert [item.harmful for item in items] == [False, True, False, True, False, False]
    with pytest.raises(UserError, match="label 'odd' is not one of safe, unsafe"):
        load("xstest", [{**rows[0], "label": "odd"}])


def test_physical_safety_twins(load: Callable[..., list[Item]]) -> None:
    names = {"I-PhysicalSafetySafe-4": False, "I-PhysicalSafetyUnsafe-4": True, "I-PhysicalSafetySafe-5": False}
    rows = [{"id": name, "prompt": name, "subset": "s", "should_refuse": bad} for name, bad in names.items()]
    items = load("safety_tuned_llamas", rows)
    assert [item.twin for item in items] == ["I-PhysicalSafetyUnsafe-4", "I-PhysicalSafetySafe-4", None]
    assert [item.label for item in items] == ["benign", "harmful", "benign"]


def test_transcripts_become_turns() -> None:
    text = "\n\nHuman: tea?\n\nAssistant: Yes.\n\nHuman: why?\nPlease.\n\nAssistant:"
    assert turns_of(text) == ((Turn("user", "tea?"), Turn("assistant", "Yes.")), "why?\nPlease.")
    assert turns_of("\n\nHuman: tea?\n\nAssistant:") == ((), "tea?") and turns_of("tea?") == ((), "tea?")


def test_a_redteam_item_keeps_what_was_said_before(load: Callable[..., list[Item]]) -> None:
    prompt = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    item = load("hh_redteam", [{"id": "1", "prompt": prompt}])[0]
    assert (item.request, item.group, item.harmful) == ("c", "turn 2", True)
    assert item.before == (Turn("user", "a"), Turn("assistant", "b"))


def test_comparisons_know_which_side_is_better(load: Callable[..., list[Item]]) -> None:
    row = {"id": "1", "prompt": "2+2?", "response_A": "4", "response_B": "5", "source": "mmlu-pro-law"}
    first, second = load("judgebench", [{**row, "label": "A>B"}, {**row, "id": "2", "label": "B>A"}])
    assert (first.columns["chosen"], first.columns["rejected"]) == (["4"], ["5"])
    assert (second.columns["chosen"], second.columns["rejected"]) == (["5"], ["4"])
    styled = {"id": "1", "prompt": "tea?", "domain": "chat", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]}
    assert load("rm_bench", [styled])[0].columns["rejected"] == ["d", "e", "f"]
    with pytest.raises(UserError, match="list of three styles"):
        load("rm_bench", [{**styled, "chosen": ["a"]}])
    pair = {"id": "1", "prompt": "\n\nHuman: tea?\n\nAssistant:", "chosen": " Yes", "rejected": " No"}
    item = load("hh_harmless", [{**pair, "objective": "harmless"}])[0]
    assert (item.request, item.columns["chosen"], item.columns["rejected"]) == ("tea?", ["Yes"], ["No"])


def test_the_right_choice_is_followed_through_the_shuffle(load: Callable[..., list[Item]]) -> None:
    rows = [
        {"id": str(i), "question": f"q{i}", "best_answer": "right", "incorrect_answers": ["w1", "w2", "w3"]}
        for i in range(40)
    ]
    items = load("truthfulqa", rows)
    assert all(item.choices[item.target] == "right" for item in items if isinstance(item.target, int))
    assert set(Counter(item.target for item in items)) == {0, 1, 2, 3}, "a tie must not favour the right choice"
    assert shuffled(["a", "b", "c"], right=1, seed=3) == shuffled(["a", "b", "c"], right=1, seed=3)
    acts = {"context": "c", "action1": "help", "action2": "harm"}
    good = load("moralchoice", [{**acts, "id": str(i)} for i in range(20)])
    assert {item.choices[item.target] for item in good if isinstance(item.target, int)} == {"help"}
    assert {item.target for item in good} == {0, 1}


def test_behaviour_is_the_target_wanted_or_not(load: Callable[..., list[Item]]) -> None:
    row = {"id": "1", "question": "q", "behavior": "b"}
    yes = {"answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}
    no = {"answer_matching_behavior": " No", "answer_not_matching_behavior": " Yes"}
    first, second = load("persona", [{**row, **yes}, {**row, **no, "id": "2", "question": "r"}])
    assert first.choices == second.choices == ("No", "Yes") and (first.target, second.target) == (1, 0)


def test_classes_of_the_toxicity_sets(load: Callable[..., list[Item]]) -> None:
    """Davidson: 0 hateful, 1 offensive, 2 neither."""
    rows = [{"id": str(label), "text": f"text {label}", "label": label} for label in (0, 1, 2)]
    assert [item.label for item in load("davidson_offensive", rows)] == ["yes", "yes", "no"]
    assert [item.label for item in load("davidson_hate", rows)] == ["yes", "no", "no"]
    assert [item.label for item in load("tweeteval_hate", rows[:2])] == ["no", "yes"]
    checks = [{"id": "1", "text": "t", "label": "non-hateful", "template_id": "9", "functionality": "f"}]
    assert [(i.label, i.cluster) for i in load("hatecheck", checks)] == [("no", "template_id 9")]


def test_topics_and_inference(load: Callable[..., list[Item]]) -> None:
    news = load("ag_news", [{"id": str(i), "text": f"t{i}", "label": i} for i in range(4)])
    assert [(item.label, item.target) for item in news] == [
        ("World", 0), ("Sports", 1), ("Business", 2), ("Technology", 3),
    ]  # fmt: skip
    subjects = ("marketing", "philosophy", "security_studies", "astronomy")
    exams = [{"id": s, "question": s, "subject": s} for s in subjects]
    assert [item.label for item in load("exam_topics", exams)] == ["Business", "World", "Technology"]
    labels = ["entailment", "neutral", "contradiction"]
    rows = [{"id": x, "premise": "A dog runs.", "hypothesis": x, "label": x} for x in labels]
    items = load("snli", rows)
    assert [item.label for item in items] == ["yes", "maybe", "no"] and len(set(map(attrgetter("cluster"), items))) == 1


def test_styles_are_paired_with_their_sentences(load: Callable[..., list[Item]]) -> None:
    """The base rows are left out, and name the cluster that the SST-2 file has for the same sentence."""
    styles = [
        {"id": "style-base-0", "style": "base", "text": "It 's good .", "label": 1},
        {"id": "style-base-1", "style": "base", "text": "a bore", "label": 0},
        {"id": "style-bible-0", "style": "bible", "text": "verily good", "label": 1},
        {"id": "style-bible-1", "style": "bible", "text": "verily a bore", "label": 0},
    ]
    shifted = load("sst2_styles", styles)
    home = load("sst2", [{"id": "s7", "text": "it's good.", "label": 1}, {"id": "s8", "text": "a bore", "label": 0}])
    assert [item.id for item in shifted] == ["style-bible-0", "style-bible-1"]
    assert [item.cluster for item in shifted] == [item.cluster for item in home]
    assert [item.label for item in home] == ["positive", "negative"]
    with pytest.raises(UserError, match="no base sentence of that number and label"):
        load("sst2_styles", [*styles[:2], {**styles[2], "label": 0}])


def test_questions_and_translations(load: Callable[..., list[Item]]) -> None:
    answers = ["hot", "very hot"]
    rows = [{"id": q, "context": "Tea is hot.", "question": q, "answers": answers} for q in ("How?", "What?")]
    items = load("xquad", rows)
    assert items[0].request == "Tea is hot.\nQuestion: How?" and items[0].columns["answers"] == ["hot", "very hot"]
    assert items[0].cluster == items[1].cluster
    with pytest.raises(UserError, match="list of texts"):
        load("xquad", [{**rows[0], "answers": []}])
    domains = ("wikipedia_question", "wikipedia_paragraph")
    pairs = [{"id": d, "domain": d, "en": f"tea {d}", "de": f"Tee {d}"} for d in domains]
    made = load("xquad_questions", pairs)
    assert [(i.request, i.target) for i in made] == [
        ("Translate to German: tea wikipedia_question", "Tee wikipedia_question")
    ]


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_mistakes_are_one_line(tmp_path: Path, load: Callable[..., list[Item]]) -> None:
    with pytest.raises(UserError, match="did you mean xstest"):
        load_suite("xtest", data=tmp_path)
    with pytest.raises(UserError, match="reads xstest/prompts.jsonl.gz; give its folder with --data"):
        load_suite("xstest")
    with pytest.raises(UserError, match="xstest/prompts.jsonl.gz: no such file"):
        load_suite("xstest", data=tmp_path)
    row = {"id": "1", "prompt": "tea?"}
    with pytest.raises(UserError, match="--limit 0"):
        load("advbench", [row], limit=0)
    with pytest.raises(UserError, match="the id '1' occurs twice"):
        load("advbench", [row, {**row, "prompt": "rope?"}])
    with pytest.raises(UserError, match="line 1: column 'prompt' is empty"):
        load("advbench", [{"id": "1", "prompt": " "}])
    with pytest.raises(UserError, match="no column 'prompt'"):
        load("advbench", [{"id": "1", "text": "tea"}])
