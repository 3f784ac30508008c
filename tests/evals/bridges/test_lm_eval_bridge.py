"""The lm_eval bridge: its numbers equal lm_eval's own HF model."""

from __future__ import annotations

import math
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align.errors import UserError
from align.turns import Turn
from evals.backends.base import Completion, Generation
from evals.bridges.lm_eval_bridge import (
    accuracy,
    answer_scores,
    chrf,
    run_suites,
    run_tasks,
    target_probability,
)
from evals.bridges.policy_lm import as_prompt, generation_of, policy_lm, policy_lm_of
from evals.bridges.rolling import windows
from evals.items import Item, Missing, Prompt
from evals.suites import base
from evals.suites.base import Suite
from factories.lm_eval_parts import closed, needs_lm_eval

LOST = Missing("context", "too long")


class Scripted:
    """A backend whose answers are looked up: continuation -> log-probability, text of the prompt -> completion."""

    name, fingerprint, can = "scripted", "f00d", frozenset({"logprobs", "prefill"})

    def __init__(self, logprobs: Mapping[str, Any] | None = None, texts: Mapping[str, Any] | None = None) -> None:
        self.logprobs_of, self.texts = dict(logprobs or {}), dict(texts or {})
        self.asked: list[tuple[Prompt, str]] = []
        self.generated: list[tuple[Prompt, Generation, int]] = []

    def generate(self, prompts: Sequence[Prompt], *, config: Generation, seeds: Sequence[int]) -> list[Any]:
        self.generated += [(prompt, config, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        found = [self.texts[prompt.turns[-1].content] for prompt in prompts]
        return [text if isinstance(text, Missing) else Completion(text, 1, True) for text in found]

    def continuation_logprobs(self, prompts: Sequence[Prompt], *, continuations: Sequence[str]) -> list[Any]:
        self.asked += list(zip(prompts, continuations, strict=True))
        found = [
            self.logprobs_of.get((prompt.turns[-1].content, text), self.logprobs_of.get(text))
            for prompt, text in zip(prompts, continuations, strict=True)
        ]
        return [value if isinstance(value, Missing) else (value, 1) for value in found]


def suite(kind: str, items: Sequence[Item], name: str = "made") -> tuple[Suite, list[Item]]:
    return Suite(name, getattr(base, kind.upper()), "made here", lambda placed: list(items)), list(items)


def request(*arguments: Any, number: int = 0, task: str = "t", idx: int = 0) -> SimpleNamespace:
    return SimpleNamespace(args=arguments, task_name=task, doc_id=number, idx=idx)


# --- scores ----------------------------------------------------------------------------------------------------------


def test_accuracy_shares_the_point_of_a_tie() -> None:
    assert accuracy([-1.0, -2.0], target=0) == 1 and accuracy([-1.0, -2.0], target=1) == 0
    assert accuracy([-1.0, -1.0, -3.0], target=0) == accuracy([-1.0, -1.0, -3.0], target=1) == 0.5
    assert accuracy([-1.0, -1.0, -3.0], target=2) == 0


def test_the_targets_probability_is_a_softmax_over_the_choices() -> None:
    assert target_probability([math.log(0.1), math.log(0.3)], target=1) == pytest.approx(0.75)
    assert target_probability([-1e4, -1e4 - math.log(3)], target=0) == pytest.approx(0.75)  # no underflow


def test_answers_are_compared_as_squad_does() -> None:
    """ "the red clay pot" against "red pots and clay": words red, clay in common; F1 = 2 * 2 / (3 + 4)."""
    found = answer_scores(" The red, clay pot. ", answers=["red pots and clay", "a spade"])
    assert found == {"f1": pytest.approx(4 / 7), "exact": 0.0}
    assert answer_scores("A Red Clay Pot!", answers=["rope", "red clay pot"]) == {"f1": 1.0, "exact": 1.0}
    assert answer_scores("", answers=["rope"]) == {"f1": 0.0, "exact": 0.0}
    assert answer_scores("tea tea", answers=["tea"])["f1"] == pytest.approx(2 / 3)  # words count as often as they occur


@needs_lm_eval
def test_chrf_by_hand() -> None:
    """Hypothesis "ab", reference "abc". 1-grams: 2/2, 2/3; 2-grams: 1/1, 1/2. Orders above 2 do not exist in the
    hypothesis. Mean precision 1, recall 7/12; F_2 = 5 P R / (4 P + R)."""
    recall = (2 / 3 + 1 / 2) / 2
    assert chrf("ab", reference="abc") == pytest.approx(5 * recall / (4 + recall))
    assert chrf("abc", reference="abc") == pytest.approx(1.0) and chrf("", reference="abc") == 0.0


# --- requests --------------------------------------------------------------------------------------------------------


def test_generation_options_are_read() -> None:
    assert generation_of({}, longest=9) == Generation(9, 0.0, ())
    greedy = generation_of({"until": "\n", "max_gen_toks": 4, "do_sample": False}, longest=9)
    assert greedy == Generation(4, 0.0, ("\n",))
    sampled = generation_of({"until": ["a", "b"], "do_sample": True, "temperature": 0.7}, longest=9)
    assert sampled == Generation(9, 0.7, ("a", "b"))
    assert generation_of({"do_sample": True, "temperature": 0}, longest=9).temperature == 0
    assert generation_of({"top_p": 0.5}, longest=9).temperature == 0  # greedy decoding has no nucleus
    with pytest.raises(UserError, match="top_p=0.5"):
        generation_of({"do_sample": True, "top_p": 0.5}, longest=9)
    with pytest.raises(UserError, match="num_beams=4"):
        generation_of({"num_beams": 4}, longest=9)


@needs_lm_eval
def test_chat_turns_arrive_as_turns() -> None:
    lm = policy_lm(Scripted())
    turns = [("system", "Be brief."), ("user", "tea?"), ("assistant", "Yes"), ("user", "why?")]
    context = lm.apply_chat_template([{"role": role, "content": text} for role, text in turns])
    assert as_prompt(context) == Prompt(tuple(Turn(role, text) for role, text in turns))
    assert as_prompt("tea?") == Prompt.user("tea?")


@needs_lm_eval
def test_missing_is_recorded_and_never_a_number() -> None:
    lm = policy_lm(Scripted({"\x20yes": -1.0, " no": LOST}, {"a": LOST, "b": "tea"}))
    found = lm.loglikelihood([request("q", " yes", number=4), request("q", " no", number=5)])
    assert found[0][0] == -1.0 and math.isnan(found[1][0])
    assert lm.generate_until([request("a", {}, number=6), request("b", {}, number=7)]) == ["", "tea"]
    assert set(lm.missing) == {("t", 5), ("t", 6)}


@needs_lm_eval
def test_greedy_is_asked_only_when_read_and_once_for_all() -> None:
    backend = Scripted({" yes": -1.0, " no": -2.0}, {"q": " yes!", "r": LOST})
    lm = policy_lm(backend)
    asked = [request("q", " yes"), request("q", " no"), request("r", " yes")]
    yes, no, lost = (found[1] for found in lm.loglikelihood(asked))
    assert backend.generated == []
    assert bool(yes) is True and int(no) == 0 and not lost and len(backend.generated) == 3
    assert pickle.loads(pickle.dumps(yes)) is True


@needs_lm_eval
def test_repeats_are_drawn_with_other_seeds_and_options_stay_with_their_requests() -> None:
    backend = Scripted(texts={"a": "x", "b": "y"})
    same, other = request("a", {"max_gen_toks": 3}), request("b", {"max_gen_toks": 5}, number=1)
    assert policy_lm(backend).generate_until([same, other, same]) == ["x", "y", "x"]
    seeds = [seed for _, _, seed in backend.generated]
    assert len(set(seeds)) == 3
    assert [(p.turns[0].content, c.max_new_tokens) for p, c, _ in backend.generated] == [("a", 3), ("a", 3), ("b", 5)]


@needs_lm_eval
def test_a_backend_without_logprobs_is_refused() -> None:
    backend = Scripted()
    backend.can = frozenset()  # type: ignore[misc]
    with pytest.raises(UserError, match="scripted gives no log-probabilities"):
        policy_lm(backend)


def test_without_the_extra_the_mend_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(UserError, match=r"pip install 'align-tradeoffs\[lm-eval\]'"):
        policy_lm(Scripted())


# --- against lm_eval's own model -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tiny_model: Path) -> tuple[Any, Any]:
    """(Our LM in plain text, lm_eval's HF model) on one tiny model with far from flat distributions."""
    pytest.importorskip("lm_eval", reason="lm_eval is not installed (pip install 'align-tradeoffs[lm-eval]')")
    import torch
    from lm_eval.models.huggingface import HFLM

    from align.models import load_model, load_tokenizer

    model, tokenizer = load_model(tiny_model), load_tokenizer(tiny_model)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(20)
        for name, p in model.named_parameters():
            if "proj" in name:
                p.mul_(8)
    ours = policy_lm_of(model, tokenizer, template="plain")
    return ours, HFLM(pretrained=model, tokenizer=load_tokenizer(tiny_model), batch_size=2, max_length=128)


def instances(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, a, 0, ("t", i, 1)) for i, a in enumerate(arguments)]  # type: ignore[arg-type]


@needs_lm_eval
def test_log_likelihoods_and_greedy_equal_lm_evals(models: tuple[Any, Any]) -> None:
    """Boundaries: a leading space, a trailing space of the context, no space, several tokens, other scripts."""
    ours, theirs = models
    pairs = [
        ("bread and cheese", " great"), ("bread and cheese ", "tea"), ("tea", "boats"), ("knives\n", " are é ☃ sharp"),
        ("bread and rope is glue", " bees"), ("a", " b"), ("wool ink", " ink ink ink ink"),
    ]  # fmt: skip
    own, reference = (lm.loglikelihood(instances("loglikelihood", pairs)) for lm in (ours, theirs))
    assert [value for value, _ in own] == pytest.approx([value for value, _ in reference], abs=2e-4)
    assert [bool(greedy) for _, greedy in own] == [greedy for _, greedy in reference]
    written = theirs.generate_until(instances("generate_until", [("tea", {"until": [], "max_gen_toks": 2})]))[0]
    greedy = ours.loglikelihood(instances("loglikelihood", [("tea", written)]))[0][1]
    assert bool(greedy), "else no case of the test is greedy"


@needs_lm_eval
def test_whole_texts_equal_lm_evals_within_and_beyond_the_context(models: tuple[Any, Any]) -> None:
    ours, theirs = models
    texts = [("bread and cheese",), ("tea rope boats glue " * 30,), ("x" * 128,), ("x" * 129,), ("x" * 256,), ("",)]
    own = ours.loglikelihood_rolling(instances("loglikelihood_rolling", texts))
    reference = theirs.loglikelihood_rolling(instances("loglikelihood_rolling", texts[:-1]))
    assert own[:-1] == pytest.approx(reference, rel=1e-5) and own[-1] == 0


@needs_lm_eval
def test_windows_are_lm_evals() -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    for length in range(1, 14):
        ids = list(range(length))
        theirs = [
            make_disjoint_window(pair)
            for pair in get_rolling_token_windows(ids, prefix_token=99, max_seq_len=4, context_len=1)
        ]
        fed = [((context + predicted)[:-1], predicted) for context, predicted in theirs]
        assert windows(ids, start=99, context=4) == fed, length


@needs_lm_eval
def test_an_overlong_context_is_missing_here_and_cut_in_lm_eval(models: tuple[Any, Any]) -> None:
    ours, theirs = models
    pair = [("x" * 200, " tea")]
    assert math.isfinite(theirs.loglikelihood(instances("loglikelihood", pair))[0][0])
    assert math.isnan(ours.loglikelihood(instances("loglikelihood", pair))[0][0])
    assert next(iter(ours.missing.values())).reason == "context"


# --- runs ------------------------------------------------------------------------------------------------------------


@needs_lm_eval
def test_suites_come_back_by_item_with_missing_apart() -> None:
    """b is asked about with another text whose "yes" does not fit: Missing, and neither right nor wrong."""
    items = [closed("a", 1), closed("b", 1), closed("c", 0, cluster="a")]
    backend = Scripted({" no": -2.0, " yes": -1.0, ("Is tea good? b", " yes"): LOST})
    asked = Item("q", "Where?\nQuestion: in", target="the pot", columns={"answers": ["the pot", "a pan"]})
    spoken = Item("m", "Translate to German: tea", target="tee")
    backend.texts = {asked.request: "pan", spoken.request: "tee"}
    suites = [suite("classification", items), suite("qa", [asked], "asked"), suite("translation", [spoken], "spoken")]
    found = run_suites(backend, suites=suites)
    made = found["made"]
    assert made.scores["accuracy"] == {"a": 1.0, "b": LOST, "c": 0.0}
    assert made.scores["p_target"]["c"] == pytest.approx(1 / (1 + math.e))
    assert made.clusters == {"a": "a", "b": "b", "c": "a"} and made.better["accuracy"] is True
    assert found["asked"].scores == {"f1": {"q": 1.0}, "exact": {"q": 1.0}}
    assert found["spoken"].scores["chrf"]["m"] == pytest.approx(1.0)
    contexts = {prompt.turns[0].content: text for prompt, text in backend.asked}
    assert contexts["Is tea good? a"] in (" no", " yes"), "one space stands between context and choice"
    limits = {prompt.turns[0].content: (c.max_new_tokens, c.stop) for prompt, c, _ in backend.generated}
    assert limits == {asked.request: (16, ("\n",)), spoken.request: (64, ("\n",))}


@needs_lm_eval
def test_suites_that_are_no_task_are_refused() -> None:
    with pytest.raises(UserError, match="kind safety"):
        run_suites(Scripted(), suites=[suite("safety", [Item("a", "tea?", label="benign")])])
    item = Item("a", "tea?", choices=("no", "yes"), target=0, before=(Turn("user", "hello"),))
    with pytest.raises(UserError, match="earlier turns"):
        run_suites(Scripted(), suites=[suite("choice", [item])])


@needs_lm_eval
def test_tasks_by_name_run_from_a_yaml_file_and_local_rows(
    tmp_path: Path, write_rows: Callable[[Path, list[dict[str, Any]]], Path]
) -> None:
    """Two rows, of which the first is right; "yes" is the likelier answer everywhere, "no" the longer one."""
    rows = write_rows(tmp_path / "rows.jsonl", [{"id": "x", "q": "tea?", "t": 1}, {"id": "y", "q": "rope?", "t": 0}])
    (tmp_path / "made.yaml").write_text(
        f"task: made_here\ndataset_path: json\ndataset_kwargs:\n  data_files: {rows}\ntest_split: train\n"
        "output_type: multiple_choice\ndoc_to_text: q\ndoc_to_target: t\ndoc_to_choice: ['no', 'yes']\n"
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    backend = Scripted({" no": -2.0, " yes": -1.0}, {"tea?": " yes", "rope?": " yes"})
    found = run_tasks(backend, names=["made_here"], include_path=str(tmp_path), bundled=False)
    assert found["made_here"].scores["acc"] == {"x": 1.0, "y": 0.0}
    assert found["made_here"].better["acc"] is True and found["made_here"].clusters == {"x": "x", "y": "y"}
    one = run_tasks(backend, names=["made_here"], include_path=str(tmp_path), bundled=False, limit=1)
    assert list(one["made_here"].scores["acc"]) == ["x"]
    with pytest.raises(UserError, match="no task 'maed_here'"):
        run_tasks(backend, names=["maed_here"], include_path=str(tmp_path), bundled=False)


def many(n: int = 210) -> list[Item]:
    """Closed questions of two to four choices, some of several words."""
    words = ["the sea", "a tree", "rust", "salt in the water", "her hat", "nine", "the inn"]
    return [
        Item(
            f"q{i}", f"Which of them is number {i}? It is {words[i % 7]} or {words[(i + 3) % 7]}.",
            choices=tuple(words[(i + k) % 7] for k in range(2 + i % 3)), target=i % 2,
        )
        for i in range(n)
    ]  # fmt: skip


@needs_lm_eval
@pytest.mark.slow
@pytest.mark.parametrize("style", ["chatml", "llama3", "gemma", "thinking", "base", "base_bos"])
def test_multiple_choice_is_lm_evals(style: str, tmp_path: Path) -> None:
    """Against lm_eval's HF model on 210 items, with its chat template where there is one; our way and the bridge's.

    Behind a chat template lm_eval counts the template's last line end to every choice, so that all log-probabilities of
    an item differ from ours by one number. Mistral's template writes a space before a reply, which lm_eval leaves out.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from align.models import load_model, load_tokenizer
    from align.models.formats import Choice
    from evals.backends.transformers import TransformersBackend
    from evals.bridges.lm_eval_bridge import suite_task
    from evals.measure.cells import ask
    from evals.measure.measurements import Choices
    from evals.shifts.base import Shift
    from factories.chat_styles import BY_NAME, chat_checkpoint

    chat_checkpoint(style, tmp_path)
    model, tokenizer, chat = load_model(tmp_path), load_tokenizer(tmp_path), BY_NAME[style].template is not None
    kwargs = {"enable_thinking": False} if style == "thinking" else {}
    backend = TransformersBackend(model, tokenizer, name=style, template=Choice("chat" if chat else "plain", kwargs))
    one = suite("choice", many())
    theirs = lm_eval.simple_evaluate(
        model=HFLM(model, tokenizer=load_tokenizer(tmp_path), batch_size=64, **kwargs), tasks=[suite_task(*one)],
        task_manager=TaskManager(include_defaults=False), bootstrap_iters=0, log_samples=True,
        apply_chat_template=chat,
    )["samples"]["made"]  # fmt: skip
    none = Shift("none", "none", "none", lambda text, rng: Prompt.user(text))
    ours = Choices().measure(ask(one[1], suite="made", shifts=[none]), backend=backend)
    bridged = run_suites(backend, suites=[one])["made"].scores["accuracy"]
    assert len(theirs) == len(ours) == 210
    for value, sample in zip(ours, theirs, strict=True):
        found = [logprob for ((logprob, _),) in sample["resps"]]
        gaps = [a - b for a, b in zip(value["logprobs"], found, strict=True)]
        assert max(gaps) - min(gaps) < 2e-3 and (chat or abs(gaps[0]) < 2e-3)
        assert value["chosen"] == max(range(len(found)), key=found.__getitem__)
        assert bridged[sample["doc"]["item"]] == float(value["correct"]) == sample["accuracy"]
    assert 0.1 < sum(value["correct"] for value in ours) / 210 < 0.9


@needs_lm_eval
@pytest.mark.parametrize("style", ["base", "base_bos"])
def test_empty_contexts_and_start_tokens_are_lm_evals(style: str, tmp_path: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    from align.models import load_model, load_tokenizer
    from factories.chat_styles import chat_checkpoint

    chat_checkpoint(style, tmp_path)
    model = load_model(tmp_path)
    ours = policy_lm_of(model, load_tokenizer(tmp_path), template="plain")
    theirs = HFLM(model, tokenizer=load_tokenizer(tmp_path), batch_size=2)
    start = "<s>" if style == "base_bos" else "<|endoftext|>"
    pairs = [("", " the cat sits"), ("", "the"), ("", f"{start}the cat"), ("the tea", " is hot"), ("tea ", "hot")]
    own, reference = (lm.loglikelihood(instances("loglikelihood", pairs)) for lm in (ours, theirs))
    assert [value for value, _ in own] == pytest.approx([value for value, _ in reference], abs=2e-4)
    assert not ours.missing


@needs_lm_eval
def test_a_task_that_names_no_limit_gets_lm_evals() -> None:
    backend = Scripted(texts={"a": "x"})
    policy_lm(backend).generate_until([request("a", {"until": ["Question:"]})])
    assert [config.max_new_tokens for _, config, _ in backend.generated] == [256]
