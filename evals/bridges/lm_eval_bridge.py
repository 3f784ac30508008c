"""Standard tasks through `lm_eval` on a policy in memory: ours from suites, offline; any other by its name.

What comes back are scores per item, keyed by our item ids, so that paired and clustered statistics apply; `lm_eval`'s
own averages and standard errors are never used. A document without an answer is Missing, not wrong.
"""

from __future__ import annotations

import logging
import math
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from align.errors import UserError
from evals.backends.base import Backend
from evals.bridges.policy_lm import policy_lm
from evals.items import Fields, Item, Json, Missing
from evals.suites.base import Suite

Score = float | Missing
GENERATION = {"qa": 16, "translation": 64}  # longest answer in tokens


@dataclass(frozen=True)
class TaskScores:
    """Scores of one task: metric -> item -> score or Missing. `better`: metric -> whether higher is better."""

    task: str
    scores: Mapping[str, Mapping[str, Score]]
    better: Mapping[str, bool | None]
    clusters: Mapping[str, str]


# --- scores of one item ----------------------------------------------------------------------------------------------


def accuracy(logprobs: Sequence[float], *, target: int) -> float:
    """1 when the target is the likeliest choice; choices that tie at the top share the point."""
    top = max(logprobs)
    best = [i for i, value in enumerate(logprobs) if value == top]
    return 1 / len(best) if target in best else 0.0


def target_probability(logprobs: Sequence[float], *, target: int) -> float:
    """The target's probability among the choices: it moves where the likeliest choice does not (cf. Brier's score)."""
    top = max(logprobs)
    return math.exp(logprobs[target] - top) / sum(math.exp(value - top) for value in logprobs)


def plain_answer(text: str) -> list[str]:
    """Words of an answer without case, punctuation and articles (the normalisation of SQuAD's evaluation)."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def token_f1(text: str, *, answer: str) -> float:
    """F1 of the words of an answer against one reference, as counts (Rajpurkar et al. 2016)."""
    ours, theirs = plain_answer(text), plain_answer(answer)
    if not ours or not theirs:
        return float(ours == theirs)
    same = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * same / (len(ours) + len(theirs))


def answer_scores(text: str, *, answers: Sequence[str]) -> dict[str, float]:
    """Best F1 and best exact match over the references. An empty answer is an answer, and wrong."""
    exact = max(float(plain_answer(text) == plain_answer(answer)) for answer in answers)
    return {"f1": max(token_f1(text, answer=answer) for answer in answers), "exact": exact}


def chrf(text: str, *, reference: str) -> float:
    """Sentence chrF2 by sacrebleu (Popović 2015), divided by 100."""
    import sacrebleu  # type: ignore[import-untyped,import-not-found,unused-ignore]

    return float(sacrebleu.sentence_chrf(text.strip(), [reference]).score) / 100


# --- suites as tasks -------------------------------------------------------------------------------------------------


def suite_task(suite: Suite, items: Sequence[Item]) -> Json:
    """The configuration of an `lm_eval` task that asks a suite's items; UserError for suites that are no such task.

    The data set is made from the items in memory. `lm_eval` writes one space between context and choice.
    """
    if suite.kind.name not in ("choice", "classification", *GENERATION):
        kinds = "choices, classes, questions or translations"
        words = f"suite {suite.name} is of kind {suite.kind.name}, which is no task of lm_eval"
        raise UserError(f"{words}; it takes {kinds}")
    if any(item.before for item in items):
        raise UserError(f"suite {suite.name} has earlier turns, which no task of lm_eval holds; use align evaluate")
    docs = [
        {"item": i.id, "request": i.request, "choices": list(i.choices), "answers": _references(i), "target": i.target}
        for i in items
    ]
    common: Json = {
        "task": suite.name, "custom_dataset": lambda **_: _data_set(docs), "test_split": "test",
        "doc_to_text": _request, "num_fewshot": 0, "metadata": {"version": 1},
        "metric_list": [_metric(name, better) for name, better in suite.metrics.items()],
    }  # fmt: skip
    if suite.kind.name not in GENERATION:
        closed = {"output_type": "multiple_choice", "doc_to_choice": _choices, "doc_to_target": _target}
        return {**common, **closed, "process_results": _closed_scores}
    options = {"until": ["\n"], "max_gen_toks": GENERATION[suite.kind.name], "do_sample": False}
    score = _qa_scores if suite.kind.name == "qa" else _translation_scores
    made = {"output_type": "generate_until", "doc_to_target": _first_reference, "generation_kwargs": options}
    return {**common, **made, "process_results": score}


def _references(item: Item) -> list[str]:
    return [str(answer) for answer in item.columns.get("answers", [item.target])]


def _metric(name: str, better: bool | None) -> Json:
    return {"metric": name, "aggregation": "mean", "higher_is_better": better is not False}


def _data_set(docs: Sequence[Fields]) -> Json:
    from datasets import Dataset

    return {"test": Dataset.from_list([{**doc, "target": str(doc["target"])} for doc in docs])}


def _request(doc: Fields) -> str:
    return str(doc["request"])


def _choices(doc: Fields) -> list[str]:
    return list(doc["choices"])


def _target(doc: Fields) -> int:
    return int(doc["target"])


def _first_reference(doc: Fields) -> str:
    return str(doc["answers"][0])


def _closed_scores(doc: Fields, results: Sequence[tuple[float, Any]]) -> dict[str, float]:
    logprobs, target = [logprob for logprob, _ in results], _target(doc)
    if any(value != value for value in logprobs):  # Missing: whatever stands here is not read
        return {"accuracy": math.nan, "p_target": math.nan}
    return {"accuracy": accuracy(logprobs, target=target), "p_target": target_probability(logprobs, target=target)}


def _qa_scores(doc: Fields, results: Sequence[str]) -> dict[str, float]:
    return answer_scores(results[0], answers=doc["answers"])


def _translation_scores(doc: Fields, results: Sequence[str]) -> dict[str, float]:
    return {"chrf": chrf(results[0], reference=doc["answers"][0])}


# --- runs ------------------------------------------------------------------------------------------------------------


def run_suites(backend: Backend, *, suites: Sequence[tuple[Suite, Sequence[Item]]]) -> dict[str, TaskScores]:
    """Suite -> scores of its items, all suites in one run of `lm_eval` without network; UserError as `suite_task`."""
    from_name = {suite.name: (suite, items) for suite, items in suites}
    samples, missing, _ = _evaluate(backend, [suite_task(s, items) for s, items in suites], bundled=False, limit=None)
    results = {}
    for name, (suite, items) in from_name.items():
        ids = {sample["doc_id"]: str(sample["doc"]["item"]) for sample in samples[name]}
        scores = _scores(samples[name], missing=missing, task=name, ids=ids)
        clusters = {item.id: item.cluster for item in items}
        results[name] = TaskScores(name, scores, suite.metrics, clusters)
    return results


def run_tasks(
    backend: Backend, *, names: Sequence[str], limit: int | None = None, include_path: str | None = None,
    bundled: bool = True,
) -> dict[str, TaskScores]:  # fmt: skip
    """Task -> scores per document of tasks by name: `lm_eval`'s own (`bundled`), and YAML files of `include_path`.

    An item is named by the document's `id`, else by its number. Metrics that exist for a whole corpus only (such as
    BLEU) are left out: they have no score per item. UserError for an unknown task and for one that cannot be loaded.
    """
    samples, missing, better = _evaluate(backend, list(names), bundled=bundled, limit=limit, include_path=include_path)
    results = {}
    for task, rows in samples.items():
        ids = _document_ids(rows)
        scores = _scores(rows, missing=missing, task=task, ids=ids)
        directions = {name: better.get(task, {}).get(name.split(",")[0]) for name in scores}
        results[task] = TaskScores(task, scores, directions, {name: name for name in ids.values()})
    return results


def _document_ids(rows: Sequence[Fields]) -> dict[int, str]:
    """Number of a document -> its `id`; its number where ids are lacking or repeat."""
    ids = {row["doc_id"]: str(row["doc"].get("id", row["doc_id"])) for row in rows}
    return ids if len(set(ids.values())) == len(ids) else {number: str(number) for number in ids}


def _scores(
    samples: Sequence[Fields], *, missing: Mapping[tuple[str, int], Missing], task: str,
    ids: Mapping[int, str],
) -> dict[str, dict[str, Score]]:  # fmt: skip
    """Metric -> item -> score. A metric under a filter of its own is named "metric,filter"."""
    scores: dict[str, dict[str, Score]] = {}
    for sample in samples:
        lost = missing.get((task, sample["doc_id"]))
        for name in sample["metrics"]:
            value = sample[name]
            if isinstance(value, (tuple, list, dict, str)):
                continue  # parts of a metric of the whole corpus
            full = name if sample["filter"] == "none" else f"{name},{sample['filter']}"
            scores.setdefault(full, {})[ids[sample["doc_id"]]] = lost if lost is not None else float(value)
    return scores


def _evaluate(
    backend: Backend, tasks: list[Any], *, bundled: bool, limit: int | None, include_path: str | None = None
) -> tuple[dict[str, list[Json]], dict[tuple[str, int], Missing], dict[str, dict[str, bool]]]:
    """(Task -> logged samples, what is Missing, task -> metric -> whether higher is better)."""
    lm = policy_lm(backend)
    with _quiet():
        import lm_eval  # type: ignore[import-untyped,import-not-found,unused-ignore]
        from lm_eval.tasks import TaskManager  # type: ignore[import-untyped,import-not-found,unused-ignore]

        manager = TaskManager(include_path=include_path, include_defaults=bundled)
        known = set(manager.all_tasks)
        for task in tasks:
            if isinstance(task, str) and task not in known:
                where = "of lm_eval" if bundled else f"in {include_path}"
                raise UserError(f"no task {task!r} {where}; `lm_eval ls tasks` lists them, a YAML file may add one")
        try:
            results = lm_eval.simple_evaluate(
                model=lm, tasks=tasks, task_manager=manager, limit=limit, bootstrap_iters=0, log_samples=True,
                apply_chat_template=getattr(getattr(backend, "renderer", None), "template", None) == "chat",
            )  # fmt: skip
        except (OSError, ConnectionError) as error:
            raise UserError(f"a task's data cannot be read ({_brief(error)}); check network or files") from error
    return results["samples"], lm.missing, results.get("higher_is_better", {})


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without `lm_eval`'s notes and progress; its errors stay."""
    from datasets import disable_progress_bars

    disable_progress_bars()
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
