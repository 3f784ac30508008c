"""Suites by name: SUITES is the literal list, `load_suite` reads one of them or any file of rows."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

from align.data.load import FILE_ENDS
from align.errors import UserError
from evals.items import Item
from evals.suites import choice, classification, generated, language, rewards, safety, values
from evals.suites.base import Suite
from evals.suites.custom import custom_suite

SUITES: dict[str, Suite] = {
    "xstest": safety.XSTEST,
    "advbench": safety.ADVBENCH,
    "catqa": safety.CATQA,
    "harmfulqa": safety.HARMFULQA,
    "do_not_answer": safety.DO_NOT_ANSWER,
    "jailbreaks_in_the_wild": safety.JAILBREAKS,
    "beavertails": safety.BEAVERTAILS,
    "safety_tuned_llamas": safety.SAFETY_TUNED,
    "hh_redteam": safety.HH_REDTEAM,
    "testbed": generated.TESTBED,
    "testbed_heldout_topics": generated.TESTBED_HELDOUT,
    "testbed_cipher": generated.TESTBED_CIPHER,
    "testbed_compliance": generated.TESTBED_COMPLIANCE,
    "refuse_topic": generated.REFUSE_TOPIC,
    "open_questions": values.OPEN,
    "value_conflicts": values.VALUE_CONFLICTS,
    "hh_harmless": rewards.HH_HARMLESS,
    "rm_bench": rewards.RM_BENCH,
    "judgebench": rewards.JUDGEBENCH,
    "llmbar": rewards.LLMBAR,
    "truthfulqa": choice.TRUTHFULQA,
    "bbq": choice.BBQ,
    "persona": choice.PERSONA,
    "advanced_ai_risk": choice.AI_RISK,
    "advanced_ai_risk_lm": choice.AI_RISK_LM,
    "moralchoice": choice.MORALCHOICE,
    "mmlu": choice.MMLU,
    "sst2": classification.SST2,
    "sst2_styles": classification.SST2_STYLES,
    "movie_reviews": classification.MOVIE_REVIEWS,
    "product_reviews": classification.PRODUCT_REVIEWS,
    "ag_news": classification.AG_NEWS,
    "exam_topics": classification.EXAM_TOPICS,
    "davidson_offensive": classification.DAVIDSON_OFFENSIVE,
    "davidson_hate": classification.DAVIDSON_HATE,
    "tweeteval_offensive": classification.TWEETEVAL_OFFENSIVE,
    "tweeteval_hate": classification.TWEETEVAL_HATE,
    "hatecheck": classification.HATECHECK,
    "snli": language.SNLI,
    "mnli_matched": language.MNLI,
    "breaking_nli": language.BREAKING_NLI,
    "xquad": language.XQUAD,
    "qa_shift": language.QA_SHIFT,
    "nq_open_oracle": language.NQ_OPEN,
    "multi30k": language.MULTI30K,
    "multi30k_2017": language.MULTI30K_2017,
    "xquad_questions": language.XQUAD_QUESTIONS,
    "wikitext2": language.WIKITEXT2,
    "masc": language.MASC,
    "speeches": language.SPEECHES,
    "c4": language.C4,
}


def find_suite(name_or_path: str | Path) -> Suite:
    """A suite by name, or the suite of a file of rows; UserError with the nearest name for neither."""
    name = str(name_or_path)
    if name in SUITES:
        return SUITES[name]
    if name.endswith(FILE_ENDS) or Path(name).expanduser().exists():
        suite = custom_suite(Path(name).expanduser())
        return replace(suite, name=f"{suite.name}_file") if suite.name in SUITES else suite
    near = difflib.get_close_matches(name, SUITES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(SUITES)}"
    raise UserError(f"no suite {name!r}, and no file of that name; {hint}")


def load_suite(
    name_or_path: str | Path, *, data: str | Path | None = None, limit: int | None = None
) -> tuple[Suite, list[Item]]:
    """A suite and its items; see `Suite.load`. A file of rows is its own data."""
    suite = find_suite(name_or_path)
    return suite, suite.load(data if suite.name in SUITES else suite.file, limit=limit)


def shift_pairs() -> list[tuple[str, str]]:
    """(Suite in distribution, its natural shift) for all suites that name partners."""
    return [(name, partner) for name, suite in SUITES.items() for partner in suite.partners]
