"""Judges that were fitted: TF-IDF with logistic regression, and sequence classifiers from a directory."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from align.errors import UserError
from evals.judges import Judgement, Stance
from evals.judges.tfidf import Settings, TfidfJudge, features, fit
from factories.made_judges import HARMFUL, SAID_NO, classifier, fitted, one, scores

# --- TF-IDF ----------------------------------------------------------------------------------------------------------


def test_tfidf_learns_the_words_of_refusals_in_the_right_direction() -> None:
    judge = fitted()
    no, yes, other = judge.judge([HARMFUL] * 3, responses=["Sorry, no knives!", "Take some ink.", "zzz"])
    assert isinstance(no, Judgement) and isinstance(yes, Judgement) and isinstance(other, Judgement)
    assert (no.stance, yes.stance) == ("REFUSED", "COMPLIED")
    assert no.score is not None and no.score < 0.2 and yes.score is not None and yes.score > 0.8
    assert other.score == pytest.approx(1 - 1 / (1 + math.exp(-judge.model.bias)))  # no known word: the bias alone


def test_tfidf_is_the_minimum_of_its_stated_loss() -> None:
    """By dense features written out here: idf, sublinear tf, unit rows; the gradient of the stated loss is 0 there."""
    texts, labels, l2 = ["no no yes", "no thing", "yes thing", "yes yes no"], [True, True, False, False], 0.05
    model = fit(texts, refused=labels, settings=Settings(min_texts=2, l2=l2))
    names = ["no", "thing", "yes"]  # no pair of words stands in two texts
    assert sorted(model.table) == names
    idf = np.array([math.log(5 / 4) + 1, math.log(5 / 3) + 1, math.log(5 / 4) + 1])  # in 3, 2 and 3 of 4 texts
    assert [model.table[n][0] for n in names] == pytest.approx(idf)
    tf = np.array([[1 + math.log(2), 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1 + math.log(2)]])
    x = tf * idf / np.linalg.norm(tf * idf, axis=1, keepdims=True)
    w = np.array([model.table[n][1] for n in names])
    p = 1 / (1 + np.exp(-(x @ w + model.bias)))
    assert model.probabilities(texts) == pytest.approx(p)
    error = p - np.array([1, 1, 0, 0])
    assert x.T @ error / 4 + l2 * w == pytest.approx(0, abs=1e-4) and error.mean() == pytest.approx(0, abs=1e-4)


def test_tfidf_reads_the_start_only_and_its_band_is_unclear() -> None:
    judge = fitted(words=4)
    late = one(judge, "take some tea with sorry no sorry no")
    assert isinstance(late, Judgement) and late.stance is Stance.COMPLIED
    everything = one(fitted(unclear=(0.0, 1.0)), SAID_NO[0])
    assert isinstance(everything, Judgement) and everything.stance is Stance.UNCLEAR


def test_tfidf_reads_a_long_run_of_combining_marks_in_linear_time() -> None:
    """Unicode normalisation sorts such a run in quadratic time: a million marks would take more than a minute."""
    marks = "\u0301\u0327" * 500_000
    start = time.process_time()
    assert not features(marks, words=60)
    assert features("Sorry. " + marks, words=60) == {"sorry": 1}
    assert time.process_time() - start < 5


def test_tfidf_is_kept_as_json(tmp_path: Path) -> None:
    judge = fitted()
    judge.save(tmp_path / "t.json")
    again = TfidfJudge.load(tmp_path / "t.json")
    assert again.model == judge.model and again.fingerprint == judge.fingerprint
    assert fitted(l2=0.1).fingerprint != judge.fingerprint != fitted(unclear=(0.1, 0.9)).fingerprint
    for content in ("{", "{}", '{"settings": {"unclear": 3}, "table": {}, "bias": 0}', "[]"):
        (tmp_path / "t.json").write_text(content)
        with pytest.raises(UserError, match="not a TF-IDF judge"):
            TfidfJudge.load(tmp_path / "t.json")
    with pytest.raises(UserError, match="add the other kind"):
        fit(["a", "b"], refused=[True, True])
    with pytest.raises(UserError, match="no word"):
        fit(["a", "b"], refused=[True, False])
    with pytest.raises(UserError, match="unclear"):
        Settings(unclear=(0.7, 0.3))


# --- a sequence classifier -------------------------------------------------------------------------------------------


def test_the_classifier_reads_its_class_alone_or_in_any_batch(tmp_path: Path) -> None:
    import torch

    judge = classifier(tmp_path)
    texts = ["abc", "a much longer answer than the context of the model is", "xyz?", "q"]
    alone = [scores(judge.judge([HARMFUL], responses=[text]))[0] for text in texts]
    together = scores(judge.judge([HARMFUL] * 4, responses=texts))
    assert together == pytest.approx(alone, abs=1e-6) and len({round(s, 3) for s in alone}) > 2
    ids = judge.tokenizer("abc", return_tensors="pt")
    with torch.no_grad():
        logits = judge.model(**ids).logits[0]
    assert 1 - alone[0] == pytest.approx(torch.softmax(logits, 0)[1].item(), abs=1e-6)
    other = classifier(tmp_path, refused="answered").judge([HARMFUL], responses=["abc"])
    assert scores(other) == pytest.approx([1 - alone[0]])
    single = classifier(tmp_path, outputs=1)
    with torch.no_grad():
        logit = single.model(**ids).logits[0, 0]
    expected = 1 - torch.sigmoid(logit).item()
    assert scores(single.judge([HARMFUL], responses=["abc"])) == pytest.approx([expected], abs=1e-6)


def test_the_classifier_may_read_the_request_too(tmp_path: Path) -> None:
    items = [HARMFUL, replace(HARMFUL, request="zz top")]
    responses_alone = scores(classifier(tmp_path).judge(items, responses=["abc", "abc"]))
    paired = scores(classifier(tmp_path, pair=True).judge(items, responses=["abc", "abc"]))
    assert responses_alone[0] == responses_alone[1] and paired[0] != paired[1]


def test_the_classifiers_fingerprint_follows_weights_and_settings(tmp_path: Path) -> None:
    import torch

    prints = {classifier(tmp_path, **options).fingerprint for options in ({}, {"pair": True}, {"unclear": (0.1, 0.9)})}
    changed = classifier(tmp_path)
    with torch.no_grad():
        changed.model.classifier.bias[0] += 1e-3
    assert len({*prints, changed.fingerprint, classifier(tmp_path, refused="answered").fingerprint}) == 5


def test_what_is_no_classifier_is_told(tmp_path: Path, tiny_model: Path) -> None:
    from evals.judges.classifier import ClassifierJudge

    with pytest.raises(UserError, match="answered, refused"):
        classifier(tmp_path, refused="no such")
    for folder, words in ((tmp_path / "none", "no such dir"), (tmp_path, "cannot be loaded"), (tiny_model, "random")):
        with pytest.raises(UserError, match=words) as caught:
            ClassifierJudge.load(folder, refused="refused")
        assert "\n" not in str(caught.value)
