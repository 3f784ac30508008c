"""Multiple-choice suites by log-likelihood: TruthfulQA, BBQ, model-written evals, MoralChoice, MMLU."""

from __future__ import annotations

import random
from collections.abc import Sequence

from align.data.load import Row
from align.errors import UserError
from evals.items import Item, Json, seed_of
from evals.suites.base import CHOICE, Suite, each, row_id, text_of


def closed(
    row: Row,
    request: str,
    *,
    choices: Sequence[object],
    target: object,
    place: str,
    label: str = "",
    group: str = "",
    columns: Json | None = None,
) -> Item:
    """An item with at least two different choices and the index of the right one."""
    texts = [str(choice).strip() for choice in choices]
    if len(texts) < 2 or len(set(texts)) < len(texts) or not all(texts):
        raise UserError(f"{place}: it needs at least two choices, all different and none empty; fix the row")
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < len(texts):
        raise UserError(f"{place}: the target {target!r} is no index of its {len(texts)} choices; fix the row")
    return Item(
        row_id(row), request, label=label, group=group, choices=tuple(texts), target=target, columns=columns or {}
    )


def shuffled(texts: list[str], *, right: int, seed: int) -> tuple[list[str], int]:
    """The choices in a fixed random order and the new place of the right one: a tie must not favour it."""
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    return [texts[i] for i in order], order.index(right)


def _truthfulqa(row: Row, place: str) -> Item:
    """The best answer among the false ones (MC1 of Lin et al. 2022), in a fixed random order."""
    best = text_of(row, "best_answer", place=place)
    false = [text for text in dict.fromkeys(str(t).strip() for t in row["incorrect_answers"]) if text != best.strip()]
    choices, target = shuffled([best, *false], right=0, seed=seed_of("truthfulqa", row_id(row)))
    question = text_of(row, "question", place=place)
    return closed(row, question, choices=choices, target=target, place=place, group=str(row.get("category") or ""))


def _bbq(row: Row, place: str) -> Item:
    """Context and question; clusters are the questions of a category, which come from one template (Parrish 2022)."""
    question = text_of(row, "question", place=place)
    more = {name: row.get(name) for name in ("question_polarity", "answer_info", "stereotyped_groups")}
    return closed(
        row,
        f"{text_of(row, 'context', place=place)}\n{question}",
        choices=row["choices"],
        target=row["label"],
        place=place,
        label=str(row["context_condition"]),
        group=str(row["category"]),
        columns={**more, "cluster": f"bbq {row['category']}: {question}"},
    )


def _model_written(row: Row, place: str) -> Item:
    """The target is the answer that shows the named behaviour, wanted or not."""
    shows = text_of(row, "answer_matching_behavior", place=place).strip()
    other = text_of(row, "answer_not_matching_behavior", place=place).strip()
    choices = sorted((shows, other))
    return closed(
        row,
        text_of(row, "question", place=place),
        choices=choices,
        target=choices.index(shows),
        place=place,
        group=str(row["behavior"]),
        columns={"confidence": row.get("label_confidence")},
    )


def _moralchoice(row: Row, place: str) -> Item:
    """Two actions, of which the first is the clearly preferred one, in a fixed random order (Scherrer et al. 2023)."""
    actions = [text_of(row, name, place=place) for name in ("action1", "action2")]
    choices, target = shuffled(actions, right=0, seed=seed_of("moralchoice", row_id(row)))
    request = f"{text_of(row, 'context', place=place)}\nWhat do you do?"
    return closed(
        row, request, choices=choices, target=target, place=place, group=str(row.get("generation_rule") or "")
    )


def _mmlu(row: Row, place: str) -> Item | None:
    """Answers by their own text, not by a letter. Rows that repeat an answer have no single right one: left out."""
    if len({str(choice).strip() for choice in row["choices"]}) < len(row["choices"]):
        return None
    question = text_of(row, "question", place=place)
    return closed(row, question, choices=row["choices"], target=row["label"], place=place, group=str(row["subject"]))


TRUTHFULQA = Suite(
    "truthfulqa",
    CHOICE,
    "the best answer among common falsehoods",
    each(_truthfulqa),
    file="truthfulqa/truthfulqa.jsonl.gz",
    columns=("question", "best_answer", "incorrect_answers"),
)
BBQ = Suite(
    "bbq",
    CHOICE,
    "social bias in ambiguous and disambiguated contexts",
    each(_bbq),
    file="bbq/bbq_5_categories.jsonl.gz",
    columns=("context", "question", "choices", "label", "category", "context_condition"),
)
_BEHAVIOUR = ("question", "behavior", "answer_matching_behavior", "answer_not_matching_behavior")
PERSONA = Suite(
    "persona",
    CHOICE,
    "yes or no to statements of a persona: how often the named behaviour shows, by behaviour",
    each(_model_written),
    file="model_written_evals/persona_subset.jsonl.gz",
    columns=_BEHAVIOUR,
    aim="none",
)
AI_RISK = Suite(
    "advanced_ai_risk",
    CHOICE,
    "human-written questions on power seeking, corrigibility, self-preservation, ...",
    each(_model_written),
    file="model_written_evals/advanced_ai_risk_human.jsonl.gz",
    columns=_BEHAVIOUR,
    aim="none",
)
AI_RISK_LM = Suite(
    "advanced_ai_risk_lm",
    CHOICE,
    "the same behaviours as advanced_ai_risk, written by a model",
    each(_model_written),
    file="model_written_evals/advanced_ai_risk_lm_subset.jsonl.gz",
    columns=_BEHAVIOUR,
    aim="none",
)
MORALCHOICE = Suite(
    "moralchoice",
    CHOICE,
    "the clearly preferred of two actions",
    each(_moralchoice),
    file="moralchoice/low_ambiguity.jsonl.gz",
    columns=("context", "action1", "action2"),
)
MMLU = Suite(
    "mmlu",
    CHOICE,
    "knowledge in 57 subjects, 60 questions each",
    each(_mmlu),
    file="mmlu/test_60_per_subject.jsonl.gz",
    columns=("question", "choices", "label", "subject"),
)
