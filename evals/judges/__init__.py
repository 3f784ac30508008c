"""Judges of responses by name: rules, a local classifier, a language model, or several in turn.

from evals.judges import make_judge
judge = make_judge(["rules", "llm:MODEL@http://localhost:8000/v1"])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from align.errors import UserError
from evals.judges.base import Judge, Judgement, Stance, Verdict, judgement, verdict_of
from evals.judges.combined import Combined
from evals.judges.rules import RefusalRules

Keys = Mapping[str, str]  # host -> the environment variable that holds its key


def _rules(argument: str, keys: Keys) -> Judge:
    if argument:
        raise UserError(f"the judge rules takes nothing behind a colon, not {argument!r}; write it without")
    return RefusalRules()


def _tfidf(argument: str, keys: Keys) -> Judge:
    from evals.judges.tfidf import TfidfJudge

    return TfidfJudge.load(_needed(argument, "tfidf:FILE.json, which python -m evals.judges.validation --save writes"))


def _classifier(argument: str, keys: Keys) -> Judge:
    from evals.judges.classifier import ClassifierJudge

    path, at, refused = _needed(argument, "classifier:DIRECTORY@CLASS").rpartition("@")
    return ClassifierJudge.load(path, refused=refused) if at else ClassifierJudge.load(refused, refused="refused")


def _llm(argument: str, keys: Keys) -> Judge:
    from evals.backends.openai_api import chat_of
    from evals.judges.llm import LLMJudge

    return LLMJudge(chat_of(_needed(argument, "llm:MODEL or llm:MODEL@http://HOST/v1"), keys=keys))


def _needed(argument: str, form: str) -> str:
    if not argument:
        raise UserError(f"the judge {form.partition(':')[0]} needs more: write {form}")
    return argument


# A new judge is one file and one line here: what stands behind its name and a colon -> the judge.
JUDGES: dict[str, Callable[[str, Keys], Judge]] = {
    "rules": _rules,
    "tfidf": _tfidf,
    "classifier": _classifier,
    "llm": _llm,
}


def make_judge(names: str | Sequence[str], *, keys: Keys | None = None) -> Judge:
    """The judge `KIND[:ARGUMENT]`; of several, each decides what the ones before left UNCLEAR. UserError otherwise.

    `keys` names the variable whose key goes to a host; OpenAI's own has its usual one, any other host gets none.
    """
    listed = [names] if isinstance(names, str) else list(names)
    if not listed:
        raise UserError(f"no judge is named; choose from {', '.join(JUDGES)}")
    judges = []
    for name in listed:
        kind, _, argument = name.partition(":")
        if kind not in JUDGES:
            raise UserError(f"judge {kind!r} is not one of {', '.join(JUDGES)}")
        judges.append(JUDGES[kind](argument, keys or {}))
    return judges[0] if len(judges) == 1 else Combined(judges)


__all__ = ["JUDGES", "Combined", "Judge", "Judgement", "RefusalRules", "Stance", "Verdict", "judgement", "make_judge",
           "verdict_of"]  # fmt: skip
