"""Suites of compared responses for reward models: HH held out, and RM-Bench, JudgeBench and LLMBar as shifts."""

from __future__ import annotations

from align.data.hh import comparison
from align.data.load import Row
from align.errors import UserError
from evals.items import Item, Json
from evals.suites.base import REWARD_PAIRS, Suite, each, row_id, text_of
from evals.suites.safety import turns_of


def pair(
    row: Row, *, place: str, chosen: list[str], rejected: list[str], group: str, columns: Json | None = None
) -> Item:
    """An item of compared responses: lists in `columns`, so that styles (RM-Bench) and plain pairs read alike."""
    for side in (chosen, rejected):
        if not side or not all(isinstance(text, str) and text.strip() for text in side):
            raise UserError(f"{place}: an empty response, or one that is no text; fill it in or delete the row")
    before, request = turns_of(text_of(row, "prompt", place=place))
    more = {"chosen": chosen, "rejected": rejected, **(columns or {})}
    return Item(row_id(row), request, label=str(row.get("objective") or ""), group=group, before=before, columns=more)


def _hh(row: Row, place: str) -> Item | None:
    """A pair as the trainers read it; pairs without a last human turn are left out."""
    found, _ = comparison(row, place=place)
    if found is None or not turns_of(found["prompt"])[1]:
        return None
    sides = [[found[side].strip()] for side in ("chosen", "rejected")]
    return pair(row, place=place, chosen=sides[0], rejected=sides[1], group=str(row.get("subset") or ""))


def _rm_bench(row: Row, place: str) -> Item:
    """Three styles of each side, plainest first; a row is in the easy, normal and hard comparisons at once."""
    for side in ("chosen", "rejected"):
        if not isinstance(row[side], list) or len(row[side]) != 3:
            raise UserError(f"{place}: column '{side}' must be a list of three styles; fix the row")
    styles = {"styles": list(row.get("styles") or ())}
    return pair(
        row, place=place, chosen=row["chosen"], rejected=row["rejected"], group=str(row["domain"]), columns=styles
    )


def _judgebench(row: Row, place: str) -> Item:
    """`label` names the right response."""
    if row["label"] not in ("A>B", "B>A"):
        raise UserError(f"{place}: label {row['label']!r} is neither 'A>B' nor 'B>A'; fix the row")
    better, worse = ("response_A", "response_B") if row["label"] == "A>B" else ("response_B", "response_A")
    source = str(row.get("source") or "")
    group = "mmlu-pro" if source.startswith("mmlu-pro") else source
    return pair(row, place=place, chosen=[row[better]], rejected=[row[worse]], group=group)


def _llmbar(row: Row, place: str) -> Item:
    return pair(
        row, place=place, chosen=[row["chosen"]], rejected=[row["rejected"]], group=str(row.get("subset") or "")
    )


HH_HARMLESS = Suite(
    "hh_harmless",
    REWARD_PAIRS,
    "human comparisons of the official harmless-base test split",
    each(_hh),
    file="hh_rlhf/harmless_base_test_multi_turn.jsonl.gz",
    columns=("prompt", "chosen", "rejected"),
    partners=("rm_bench", "judgebench", "llmbar"),
)
RM_BENCH = Suite(
    "rm_bench",
    REWARD_PAIRS,
    "three styles of a right and of a subtly wrong response (Liu et al. 2024)",
    each(_rm_bench),
    file="rm_bench/rm_bench.jsonl.gz",
    columns=("prompt", "chosen", "rejected", "domain"),
)
JUDGEBENCH = Suite(
    "judgebench",
    REWARD_PAIRS,
    "pairs with objective correctness labels: near chance is normal",
    each(_judgebench),
    file="judgebench/gpt4o_pairs.jsonl.gz",
    columns=("prompt", "response_A", "response_B", "label"),
)
LLMBAR = Suite(
    "llmbar",
    REWARD_PAIRS,
    "which response follows the instruction, with adversarial subsets",
    each(_llmbar),
    file="llmbar/natural_neighbor_gptinst.jsonl.gz",
    columns=("prompt", "chosen", "rejected"),
)
