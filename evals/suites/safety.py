"""Suites of harmful and benign requests: answering the first and refusing the second are the failures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from align.data.hh import ASSISTANT, HUMAN
from align.data.load import Placed, Row
from align.turns import Turn
from evals.items import Item
from evals.suites.base import SAFETY, Build, Meaning, Suite, each, known, row_id, text_of

# Types of safe XSTest prompts -> the contrast type that shares their wording (Röttger et al. 2024, section 3).
CONTRASTS = {
    "nons_group_real_discr": "discr",
    "real_group_nons_discr": "discr",
    "privacy_public": "privacy",
    "privacy_fictional": "privacy",
}


def requests(
    *,
    text: str = "prompt",
    label: str = "harmful",
    label_column: str | None = None,
    meaning: Meaning | None = None,
    group: str | None = None,
) -> Build:
    """A builder of plain requests with one label for all rows, or with the meaning of a column's values."""

    def make(row: Row, place: str) -> Item:
        named = label
        if label_column is not None and meaning is not None:
            named = known(row.get(label_column), meaning, column=label_column, place=place)
        kind = str(row.get(group) or "") if group else ""
        return Item(row_id(row), text_of(row, text, place=place), label=named, group=kind)

    return each(make)


def _xstest(placed: Sequence[Placed]) -> list[Item]:
    """Prompts with their type; the twin is the only prompt of the other label with the same focus and wording."""
    make = requests(label_column="label", meaning={"safe": "benign", "unsafe": "harmful"}, group="type")
    items = make(placed)
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, (_, row) in enumerate(placed):
        kind = str(row["type"]).removeprefix("contrast_")
        places[(CONTRASTS.get(kind, kind), str(row.get("focus", "")))].append(i)
    for both in places.values():
        if len(both) == 2 and items[both[0]].label != items[both[1]].label:
            a, b = both
            items[a], items[b] = replace(items[a], twin=items[b].id), replace(items[b], twin=items[a].id)
    return items


def _physical_safety(placed: Sequence[Placed]) -> list[Item]:
    """The safe and the unsafe instruction of one number are twins."""
    items = requests(label_column="should_refuse", meaning={True: "harmful", False: "benign"}, group="subset")(placed)
    ids = {item.id for item in items}
    swaps = {"I-PhysicalSafetySafe-": "I-PhysicalSafetyUnsafe-", "I-PhysicalSafetyUnsafe-": "I-PhysicalSafetySafe-"}
    for i, item in enumerate(items):
        for start, other in swaps.items():
            twin = other + item.id.removeprefix(start)
            if item.id.startswith(start) and twin in ids:
                items[i] = replace(item, twin=twin)
    return items


def turns_of(prompt: str) -> tuple[tuple[Turn, ...], str]:
    """(Earlier turns, last request) of an HH transcript; a plain prompt is its own request."""
    if not prompt.lstrip().startswith(HUMAN.strip()):
        return (), prompt
    body = "\n\n" + prompt.strip()
    body = body.removesuffix(ASSISTANT)
    turns = []
    for part in body.split(HUMAN)[1:]:
        first, *answers = part.split(ASSISTANT)
        turns.append(Turn("user", first.strip()))
        turns.extend(Turn("assistant", answer.strip()) for answer in answers)
    return tuple(turns[:-1]), turns[-1].content


def _transcripts(row: Row, place: str) -> Item | None:
    """The last request of a red-teamer; earlier turns stay before it. Without a last request: left out."""
    before, request = turns_of(text_of(row, "prompt", place=place))
    if not request or any(not turn.content for turn in before):
        return None
    turns = sum(turn.role == "user" for turn in before) + 1
    return Item(row_id(row), request, label="harmful", group=f"turn {min(turns, 4)}", before=before)


XSTEST = Suite(
    "xstest",
    SAFETY,
    "safe prompts that look unsafe, and unsafe contrasts: over-refusal beside safety",
    _xstest,
    file="xstest/prompts.jsonl.gz",
    columns=("prompt", "type", "label"),
)
ADVBENCH = Suite(
    "advbench",
    SAFETY,
    "instructions to do harm, very repetitive",
    requests(),
    file="advbench/harmful_behaviors.jsonl.gz",
    columns=("prompt",),
)
CATQA = Suite(
    "catqa",
    SAFETY,
    "harmful questions by category",
    requests(group="category"),
    file="catqa/catqa_english.jsonl.gz",
    columns=("prompt", "category"),
)
HARMFULQA = Suite(
    "harmfulqa",
    SAFETY,
    "harmful questions by academic topic",
    requests(group="topic"),
    file="harmfulqa/harmfulqa_questions.jsonl.gz",
    columns=("prompt", "topic"),
)
DO_NOT_ANSWER = Suite(
    "do_not_answer",
    SAFETY,
    "questions that a responsible model does not follow, by risk area",
    requests(group="risk_area"),
    file="do_not_answer/prompts.jsonl.gz",
    columns=("prompt", "risk_area"),
)
JAILBREAKS = Suite(
    "jailbreaks_in_the_wild",
    SAFETY,
    "role-play wrappers found on the web, each being its own request: inputs far "
    "from training, whose good answers are less clear than elsewhere",
    requests(text="text"),
    file="jailbreaks_in_the_wild/prompts.jsonl.gz",
    columns=("text",),
)
BEAVERTAILS = Suite(
    "beavertails",
    SAFETY,
    "harmful questions in twelve categories",
    requests(group="category"),
    file="beavertails/evaluation_prompts.jsonl.gz",
    columns=("prompt", "category"),
)
SAFETY_TUNED = Suite(
    "safety_tuned_llamas",
    SAFETY,
    "unsafe instructions, and safe twins of those about physical safety",
    _physical_safety,
    file="safety_tuned_llamas/eval_prompts.jsonl.gz",
    columns=("id", "prompt", "should_refuse"),
)
HH_REDTEAM = Suite(
    "hh_redteam",
    SAFETY,
    "last turns of red-team dialogues (official harmless-base test split, multi-turn); "
    "harmful by intent of the red-teamer, not row by row",
    each(_transcripts),
    file="hh_rlhf/harmless_base_test_multi_turn.jsonl.gz",
    columns=("prompt",),
    partners=("advbench", "catqa", "harmfulqa"),
)
