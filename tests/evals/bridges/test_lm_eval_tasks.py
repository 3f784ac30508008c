"""Whole tasks of many kinds through lm_eval, on its HF model and on our bridge: the same numbers, the same texts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align.models import load_model, load_tokenizer
from align.models.formats import Choice
from align.models.reading import Reader, completion_logprobs
from align.policies.load import load_family
from align.policies.tagged import TaggedFamily, Tags, tagged_checkpoint
from align.preferences import Weights
from evals.backends.policies import backend_of
from evals.bridges.policy_lm import generation_of, policy_lm, policy_lm_of
from evals.items import Prompt
from factories.chat_styles import chat_checkpoint
from factories.lm_eval_parts import needs_lm_eval
from factories.tagged_styles import checkpoint

STOPS = "mkwu13479,\n"  # in no name of a special token, behind which lm_eval's model stops by what else is in the batch
CHOICES = ["the sea", "a tree", "salt"]
ROWS = [
    {"q": f"Which is number {i}, sea or tree?", "choices": CHOICES[: 2 + i % 2], "t": i % 2, "text": f"The hat {i} is"}
    for i in range(5)
]
CLOSED = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "t"}
OPEN = {"output_type": "generate_until", "doc_to_target": "text"}


def tasks() -> list[dict[str, Any]]:
    """Choices; choices behind shots and a begun answer; choices behind nothing, plain and by mutual information; a last
    word; answers with stop words, and with none and no limit; whole texts."""
    kinds: dict[str, dict[str, Any]] = {
        "choices": {**CLOSED, "doc_to_text": "q", "metrics": ["acc", "acc_norm"]},
        "shots": {**CLOSED, "doc_to_text": "q", "gen_prefix": "It is", "num_fewshot": 2, "metrics": ["acc"]},
        "minimal_pairs": {**CLOSED, "doc_to_text": "", "target_delimiter": "", "metrics": ["acc"]},
        "mutual": {**CLOSED, "doc_to_text": "Q: {{q}}\nA: ", "metrics": ["acc_mutual_info"]},
        "last_word": {
            "output_type": "loglikelihood", "doc_to_text": "q", "doc_to_target": " {{choices[t]}}",
            "metrics": ["acc", "perplexity"],
        },
        "stopped": {
            **OPEN, "doc_to_text": "Q: {{q}}\nA:", "num_fewshot": 1, "metrics": ["exact_match"],
            "generation_kwargs": {"until": list(STOPS), "max_gen_toks": 24, "do_sample": False},
        },
        "open": {**OPEN, "doc_to_text": "q", "metrics": ["exact_match"], "generation_kwargs": {"until": []}},
        "texts": {
            "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text * 80}}",
            "metrics": ["word_perplexity"],
        },
    }  # fmt: skip
    return [
        {
            "task": name, "custom_dataset": data_set, "test_split": "test", "fewshot_split": "test",
            "metric_list": [{"metric": metric} for metric in settings.pop("metrics")], **settings,
        }
        for name, settings in kinds.items()
    ]  # fmt: skip


def data_set(**_: Any) -> dict[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(ROWS)}


def answers(lm: Any, *, chat: bool) -> dict[str, list[Any]]:
    """Task -> all that the model answered, document by document, and the scores."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model=lm, tasks=tasks(), task_manager=TaskManager(include_defaults=False), bootstrap_iters=0,
        log_samples=True, apply_chat_template=chat,
    )  # fmt: skip
    return {
        name: [[one["doc_id"], flat(one["resps"]), [one[metric] for metric in one["metrics"]]] for one in rows]
        for name, rows in found["samples"].items()
    }


def flat(answer: Any) -> list[Any]:
    """What is in nested lists, in order; whether an answer is the greedy one as a bool."""
    if isinstance(answer, (list, tuple)):
        return [value for part in answer for value in flat(part)]
    return [answer if isinstance(answer, (str, float)) else bool(answer)]


@needs_lm_eval
@pytest.mark.parametrize("style", ["base_bos", "llama3"])
def test_every_kind_of_task_is_lm_evals(style: str, tmp_path: Path) -> None:
    """A base and a chat model whose tokenizers write a start token. In float64, so that padding changes nothing."""
    from lm_eval.models.huggingface import HFLM

    file = chat_checkpoint(style, tmp_path) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_position_embeddings": 700}))
    model, chat = load_model(tmp_path).double(), style == "llama3"
    ours = policy_lm_of(model, load_tokenizer(tmp_path), template=Choice("chat" if chat else "plain"))
    theirs = HFLM(model, tokenizer=load_tokenizer(tmp_path), batch_size=3)
    own, reference = answers(ours, chat=chat), answers(theirs, chat=chat)
    assert not ours.missing and set(own) == {task["task"] for task in tasks()}
    for task, rows in reference.items():
        for mine, other in zip(own[task], rows, strict=True):
            texts = [[v for v in flat(row) if isinstance(v, (str, bool))] for row in (mine, other)]
            assert texts[0] == texts[1], (task, mine, other)
            numbers = [[float(v) for v in flat(row) if not isinstance(v, str)] for row in (mine, other)]
            assert numbers[0] == pytest.approx(numbers[1], rel=1e-6), task
    written = [text for task in ("stopped", "open") for row in own[task] for text in row[1]]
    assert not any(set(STOPS) & set(row[1][0]) for row in own["stopped"]) and len(set(written)) > 2
    assert max(len(row[1][0]) for row in own["open"]) > 100, "else no answer is as long as the limit allows"


def test_options_of_a_generation_are_read_as_lm_eval_reads_them() -> None:
    assert generation_of({"temperature": 0.7}, longest=9).temperature == 0.7  # a temperature alone asks for samples
    assert generation_of({"temperature": 0.7, "do_sample": False}, longest=9).temperature == 0
    assert generation_of({"max_tokens": 5}, longest=9).max_new_tokens == 5
    assert generation_of({"max_completion_tokens": 6, "max_new_tokens": 4}, longest=9).max_new_tokens == 4


# ----------------------------------------------------------------------------------------------- in-context policies


@needs_lm_eval
@pytest.mark.parametrize("base", ["llama3", "bytes"])
@pytest.mark.parametrize("tokens", [False, True])
def test_a_tagged_policy_is_asked_with_its_tags(
    base: str, tokens: bool, tmp_path: Path, request_of: Callable[..., Any]
) -> None:
    """Its numbers are those of the policy itself; a text without a user's turn has no place for tags: Missing."""
    reference, tags = checkpoint(base, tmp_path / "reference"), Tags(("one", "two"), tokens=tokens)
    TaggedFamily("ric", tagged_checkpoint(reference, tags=tags, out=tmp_path / "model"), tags).save(tmp_path)
    policy = load_family(tmp_path).policy(Weights((0.3, 0.7)))
    backend: Any = backend_of(str(tmp_path), weights="0.3,0.7")
    lm = policy_lm(backend)
    said = backend.renderer.said(Prompt.user("how do I use tea?"))
    (value, greedy), lost = lm.loglikelihood([request_of(said, " the tea"), request_of("", " the tea", number=1)])
    ids, tail = policy.prompt_ids([said])[0], backend.form.reply_ids(said, " the tea", ended=False)
    reader = Reader(pad_id=backend.tokenizer.pad_token_id, banned=backend.banned)
    assert value == pytest.approx(sum(completion_logprobs(policy.model, [(ids, tail)], reader=reader)[0]), abs=1e-4)
    (best,) = backend.continued([ids], n=len(tail))
    assert bool(greedy) == (best == tail) and math.isnan(lost[0])
    assert math.isnan(lm.loglikelihood_rolling([request_of("the tea", number=2)])[0])
    assert {number: why.reason for (_, number), why in lm.missing.items()} == {1: "no_user_turn", 2: "no_user_turn"}
    (text,) = lm.generate_until([request_of(said, {"max_gen_toks": 4})])
    (drawn,) = backend.generate([Prompt.user(said)], config=generation_of({}, longest=4), seeds=[0])
    assert text == drawn.text and not set(drawn.ids) & set(backend.banned)


@pytest.fixture
def request_of() -> Callable[..., Any]:
    return lambda *arguments, number=0: SimpleNamespace(args=arguments, task_name="t", doc_id=number, idx=0)
