"""Judges of responses by name: rules, a local classifier or guard, a language model, or several in turn.

from evals.judges import make_judge
judge = make_judge(["rules", "llm:MODEL@http://localhost:8000/v1"])
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from align.errors import UserError
from evals.judges.base import Judge, Judgement, Stance, Verdict, judgement, verdict_of
from evals.judges.combined import Combined
from evals.judges.rules import RefusalRules

Keys = Mapping[str, str]  # host -> the environment variable that holds its key
Options = Mapping[str, object]  # what a judge that generates is told beside its question (--judge-option)


def _rules(argument: str, keys: Keys, options: Options) -> Judge:
    if argument:
        raise UserError(f"the judge rules takes nothing behind a colon, not {argument!r}; write it without")
    return RefusalRules()


def _tfidf(argument: str, keys: Keys, options: Options) -> Judge:
    from evals.judges.tfidf import TfidfJudge

    return TfidfJudge.load(_needed(argument, "tfidf:FILE.json, which python -m evals.judges.validation --save writes"))


def _classifier(argument: str, keys: Keys, options: Options) -> Judge:
    from evals.judges.classifier import ClassifierJudge

    path, at, refused = _needed(argument, "classifier:MODEL@CLASS, a directory or a hub id").rpartition("@")
    return ClassifierJudge.load(path, refused=refused) if at else ClassifierJudge.load(refused, refused="refused")


def _llm(argument: str, keys: Keys, options: Options) -> Judge:
    from evals.backends.openai_api import chat_of
    from evals.judges.llm import SCHEMA, LLMJudge

    body = {name: value for name, value in options.items() if name not in ("max_tokens", "structured")}
    if options.get("structured"):
        schema = {"name": "grades", "strict": True, "schema": SCHEMA}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    spec = _needed(argument, "llm:MODEL or llm:MODEL@http://HOST/v1")
    return LLMJudge(chat_of(spec, keys=keys, max_new_tokens=_tokens(options) or 2048, body=body))


def _local(argument: str, keys: Keys, options: Options) -> Judge:
    from evals.judges.local import local_judge

    odd = sorted(set(options) - {"max_tokens"})
    if odd:
        raise UserError(f"a local judge takes the option max_tokens, not {odd[0]}; leave it out")
    names = "rubric, wildguard, llama_guard, harmbench, misalignment"
    form = f"local:MODEL or local:MODEL@TEMPLATE ({names} or a .yaml file)"
    model, at, template = _needed(argument, form).rpartition("@")
    asked = (model, template) if at else (template, "rubric")
    return local_judge(asked[0], template=asked[1], max_new_tokens=_tokens(options))


def _tokens(options: Options) -> int | None:
    """The longest answer of a judge, where it is chosen."""
    count = options.get("max_tokens")
    if count is not None and (not isinstance(count, int) or count < 1):
        raise UserError(f"--judge-option max_tokens={count}: give a number of tokens")
    return count


def read_options(entries: Sequence[str]) -> dict[str, object]:
    """KEY=VALUE each, the value JSON or else text; UserError for anything else."""
    options: dict[str, object] = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not key or not equals:
            raise UserError(f"--judge-option {entry}: write KEY=VALUE, as reasoning_effort=low or max_tokens=4096")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def _needed(argument: str, form: str) -> str:
    if not argument:
        raise UserError(f"the judge {form.partition(':')[0]} needs more: write {form}")
    return argument


# A new judge is one file and one line here: what stands behind its name and a colon -> the judge.
JUDGES: dict[str, Callable[[str, Keys, Options], Judge]] = {
    "rules": _rules,
    "tfidf": _tfidf,
    "classifier": _classifier,
    "local": _local,
    "llm": _llm,
}


def make_judge(names: str | Sequence[str], *, keys: Keys | None = None, options: Options | None = None) -> Judge:
    """The judge `KIND[:ARGUMENT]`; of several, each decides what the ones before left UNCLEAR. UserError otherwise.

    `keys` names the variable whose key goes to a host; OpenAI's own has its usual one, any other host gets none.
    `options` go to the judges that generate (llm, local).
    """
    listed = [names] if isinstance(names, str) else list(names)
    if not listed:
        raise UserError(f"no judge is named; choose from {', '.join(JUDGES)}")
    if options and not any(name.partition(":")[0] in ("llm", "local") for name in listed):
        raise UserError("--judge-option is for judges that generate (llm, local); leave it out")
    judges = []
    for name in listed:
        kind, _, argument = name.partition(":")
        if kind not in JUDGES:
            raise UserError(f"judge {kind!r} is not one of {', '.join(JUDGES)}")
        judges.append(JUDGES[kind](argument, keys or {}, options or {}))
    return judges[0] if len(judges) == 1 else Combined(judges)


__all__ = ["JUDGES", "Combined", "Judge", "Judgement", "RefusalRules", "Stance", "Verdict", "judgement", "make_judge",
           "verdict_of"]  # fmt: skip
