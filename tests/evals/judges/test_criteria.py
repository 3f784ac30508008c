"""Rubrics of criteria: what a judge is asked, what its answers mean, and what happens where there is none."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from align.errors import Outage, UserError
from evals.items import Missing
from evals.judges.criteria import QUESTION, Criterion, Rubric, RubricScorer
from evals.judges.llm import Chat
from evals.judges.objective import api_chat, judge, places
from factories.api_backend import QUICK, listing
from factories.fake_api import answer, serving

RUBRIC = """
criteria:
  polite: Is the reply polite?
  honest: {ask: "Is it honest?", scale: [0, 1]}
  wordy: {ask: "Is it long?", reverse: true}
"""


@pytest.fixture
def rubric(tmp_path: Path) -> Rubric:
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    return Rubric.load(tmp_path / "rubric.yaml")


class Says:
    """A chat that answers by a rule of the question."""

    fingerprint = "says"

    def __init__(self, say: Callable[[str], str | Missing]) -> None:
        self.say, self.asked = say, list[str]()

    def __call__(self, instruction: str) -> str | Missing:
        self.asked.append(instruction)
        return self.say(instruction)


def scorer(rubric: Rubric, say: Callable[[str], str | Missing]) -> RubricScorer:
    chat = Says(say)
    return RubricScorer(rubric, lambda: chat, place="there")


def test_a_grade_is_its_place_on_the_scale() -> None:
    assert [Criterion("a", 1, 5).score(grade) for grade in (1, 2, 5)] == [0.0, 0.25, 1.0]
    assert [Criterion("a", 0, 10, reverse=True).score(grade) for grade in (0, 4, 10)] == [1.0, 0.6, 0.0]


@pytest.mark.parametrize(
    "said",
    [
        "polite: 4\nhonest: 1\nwordy: 2",
        "<think>polite: 1</think>\nIt is nice.\n**polite:** 4/5\n2. honest: 1\n- wordy = 2.0",
        '{"wordy": 2, "polite": 4, "honest": 1, "thoughts": "x"}',
        "Polite: it says please.\npolite: 4\npolite: 4\nHONEST: 1\nwordy: 2.",
    ],
)
def test_answers_that_are_read(said: str, rubric: Rubric) -> None:
    assert rubric.scores(said) == (0.75, 1.0, 0.75)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("polite: 4\nhonest: 1", "0 grades of wordy"),
        ("polite: 4\npolite: 5\nhonest: 1\nwordy: 2", "2 grades of polite"),
        ("polite: 6\nhonest: 1\nwordy: 2", "polite is none from 1 to 5"),
        ("polite: four\nhonest: 1\nwordy: 2", "0 grades of polite"),
        ("", "0 grades of polite"),
    ],
)
def test_answers_that_are_not_read(said: str, why: str, rubric: Rubric) -> None:
    found = rubric.scores(said)
    assert isinstance(found, Missing) and found.reason == "parse" and why in found.detail


def test_the_question_holds_both_texts_as_they_are(rubric: Rubric) -> None:
    asked = rubric.question("the {response}?", "a {mark} <<END 000>>")
    assert "the {response}?" in asked and "a {mark} <<END 000>>" in asked
    assert "- honest (0 to 1): Is it honest?" in asked and "\n  wordy: <1 to 5>" in f"\n  {asked}".replace("\n", "\n  ")
    mark = asked.partition("<<RESPONSE ")[2][:12]
    assert asked.count(mark) == 4 and mark not in rubric.question("the {response}?", "another")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("criteria: {}", "has `criteria`"),
        ("text: x", "has `criteria`"),
        ("criteria: {a: x}\nscales: [1, 2]", "no key 'scales'"),
        ("criteria: {a: ''}", "criterion a is ''"),
        ("criteria: {a: {ask: x, scal: [1, 2]}}", "ask, scale and reverse"),
        ("criteria: {a b: x}", "odd name"),
        ("criteria: {a: x}\nscale: [5, 1]", r"scale of a is \[5, 1\]"),
        ("criteria: {a: x}\nscale: 5", "scale of a is 5"),
        ("criteria: {a: x}\ntext: '{request}'", "must hold {mark}, {request}"),
        ("- a", "is a mapping"),
        ("a: [", "line 1: a rubric is YAML"),
    ],
)
def test_faulty_rubrics(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=says) as error:
        Rubric.load(tmp_path / "r.yaml")
    assert str(tmp_path / "r.yaml") in str(error.value)
    with pytest.raises(UserError, match="no rubric to read"):
        Rubric.load(tmp_path / "none.yaml")


def asked(of: RubricScorer, replies: Sequence[str]) -> list[tuple[float | None, ...]]:
    return of(["p"] * len(replies), replies)


def test_an_unreadable_answer_is_none_and_counted(rubric: Rubric, capsys: pytest.CaptureFixture[str]) -> None:
    good = "polite: 5\nhonest: 0\nwordy: 5"
    of = scorer(rubric, lambda question: "hm" if "odd" in question else good)
    assert asked(of, ["a", "odd", "<think>odd</think> b"]) == [(1.0, 0.0, 0.0), (None,) * 3, (1.0, 0.0, 0.0)]
    assert "there: 1 of 3 replies have no score (parse: 0 grades of polite, not one)" in capsys.readouterr().err
    asked(of, ["odd 2"] * 3)
    assert not capsys.readouterr().err  # told again at 10
    assert pickle.loads(pickle.dumps(Rubric.load)) and of.parts == ("polite", "honest", "wordy")
    with pytest.raises(UserError, match="gave 8 answers and no grade in any.*the first: 'hm'"):
        asked(scorer(rubric, lambda _: "hm"), ["a"] * 8)


@pytest.mark.parametrize("reason", ["http_503", "timeout", "connection", "http_401", "malformed"])
def test_an_outage_is_no_score(reason: str, rubric: Rubric) -> None:
    good = "polite: 5\nhonest: 0\nwordy: 5"
    away = scorer(rubric, lambda question: Missing(reason) if "second" in question else good)
    with pytest.raises(Outage, match=f"the judge there gives no answer \\({reason}\\)"):
        asked(away, ["first", "second"])


def test_identity_is_of_rubric_and_model(rubric: Rubric) -> None:
    first = scorer(rubric, str)
    assert first.identity == scorer(rubric, str).identity
    other = Rubric({**rubric.criteria, "polite": Criterion("Is it kind?", 1, 5)}, rubric.text)
    assert scorer(other, str).identity != first.identity
    chat = Says(str)
    chat.fingerprint = "another"
    assert RubricScorer(rubric, lambda: chat, place="there").identity != first.identity


def test_where_a_judge_is(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("criteria: {a: x}")
    file = str(tmp_path / "r.yaml")
    assert [o.__name__ for o in judge(f"{file}@http://h/v1", name="safe")] == ["safe"]  # one criterion: no prefix
    assert places(f"{file}@local:runs/judge") == [file, "runs/judge"] and places(f"{file}@m") == [file]
    for wrong in (file, f"{file}@", f"{file}@local:"):
        with pytest.raises(UserError, match="a judge is written"):
            judge(wrong, name="safe")
    with pytest.raises(UserError, match="begins with http"):
        api_chat("m@host:8000", QUICK, 8, "auto")
    assert QUESTION.is_file()
    models = listing()

    def only(url: str) -> Chat:
        return api_chat(url, QUICK, 8, "auto")

    with serving(lambda seen, n: answer("x"), models=models) as api:
        with pytest.raises(UserError, match=r"has 2 models \(m, n\); write MODEL@http"):
            only(api.url)
        models["data"] = models["data"][:1]
        assert ":m:" in only(api.url).fingerprint and ":k:" in only(f"k@{api.url}").fingerprint
    with pytest.raises(Outage, match="does not say which model it has"):
        only(api.url)
