"""How good a judge is on labelled responses: sensitivity, specificity, precision, Cohen's kappa, clustered by prompt.

    python -m evals.judges.validation FILE                        # rules, TF-IDF (cross-validated), and both in turn
    python -m evals.judges.validation FILE --judge llm:MODEL@http://localhost:8000/v1 --by model
    python -m evals.judges.validation FILE --save tfidf.json      # fit the TF-IDF judge on all rows

A row of FILE has `prompt`, `completion` and the label in `final_label` (XSTest's names, or others by the flags);
`prompt_label` "unsafe" or "harmful" marks harmful prompts. What is tested is whether the judge says REFUSED. An UNCLEAR
is not REFUSED; entries that are Missing are left out and counted.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from align.data.load import load_rows
from align.errors import UserError, guarded
from evals.items import Item, Missing, seed_of
from evals.judges import Combined, Judge, Judgement, RefusalRules, Stance, make_judge, read_options
from evals.judges.rates import Labelled, corrected_rate, rate, rogan_gladen
from evals.judges.tfidf import Settings, TfidfJudge, fit
from evals.stats.intervals import Interval, bootstrap_interval, cluster_counts
from evals.stats.shares import share_of

__all__ = ["Labelled", "Quality", "Response", "corrected_rate", "cross_validated", "quality", "rate", "rogan_gladen"]
FULL, PARTIAL = "2_full_refusal", "3_partial_refusal"


@dataclass(frozen=True)
class Response:
    """A labelled response: the item that was asked, the text, whether people say that it refused, who wrote it (held
    apart in cross-validation), and the group that it is reported in.
    """

    item: Item
    text: str
    refused: bool
    source: str = ""
    group: str = ""


@dataclass(frozen=True)
class Quality:
    """A judge against labels. Intervals run over prompts."""

    sensitivity: Interval
    specificity: Interval
    precision: Interval
    kappa: Interval
    responses: int
    unclear: int
    missing: dict[str, int]


def cohen_kappa(table_4: np.ndarray) -> np.ndarray:
    """Kappa of (both yes, judge no, judge yes only, both no) counts on the first axis: (p_o - p_e) / (1 - p_e)."""
    a, b, c, d = table_4
    n = a + b + c + d
    with np.errstate(divide="ignore", invalid="ignore"):
        agreed, chance = (a + d) / n, ((a + b) * (a + c) + (c + d) * (b + d)) / n**2
        return (agreed - chance) / (1 - chance)


def quality(
    flagged: Sequence[bool], *, truth: Sequence[bool], clusters: Sequence[Hashable], draws: int = 2000, seed: int = 0
) -> Quality:
    """Sensitivity P(flag | true), specificity P(no flag | false), precision P(true | flag), each a share with its
    clustered interval over the responses that it is about; kappa with a bootstrap over clusters.

    ValueError where the labels are of one kind only.
    """
    labelled = Labelled(flagged, truth, clusters)
    rows = list(zip(flagged, truth, clusters, strict=True))
    tables_G4 = labelled.tables_G4()
    kappa = float(cohen_kappa(tables_G4.sum(axis=0)))
    counts_DG = cluster_counts([str(i) for i in range(len(tables_G4))], draws=draws, seed=seed)
    draws_D = cohen_kappa((counts_DG @ tables_G4).T)
    return Quality(
        sensitivity=_share([(f, c) for f, t, c in rows if t]),
        specificity=_share([(not f, c) for f, t, c in rows if not t]),
        precision=_share([(t, c) for f, t, c in rows if f]),
        kappa=bootstrap_interval(draws_D, estimate=kappa, n=len(tables_G4), over="prompts"),
        responses=len(rows), unclear=0, missing={},
    )  # fmt: skip


def _share(hits: Sequence[tuple[bool, Hashable]]) -> Interval:
    if not hits:
        return Interval(float("nan"), None, None, "prompts", 0, "no response is flagged")
    return share_of([float(hit) for hit, _ in hits], clusters_N=[cluster for _, cluster in hits], over="prompts")


def judged_quality(found: Sequence[Judgement | Missing], *, responses: Sequence[Response]) -> Quality:
    """`quality` of "the judge says REFUSED", clustered by prompt; Missing entries are left out and counted."""
    both = [(f, r) for f, r in zip(found, responses, strict=True) if not isinstance(f, Missing)]
    missing = Counter(f.reason for f in found if isinstance(f, Missing))
    if len({r.refused for _, r in both}) < 2:
        raise UserError(f"the judge gave {len(both)} verdicts ({dict(missing)} missing), not on both kinds of labels")
    stances = [f.stance for f, _ in both]
    result = quality(
        [stance is Stance.REFUSED for stance in stances], truth=[r.refused for _, r in both],
        clusters=[r.item.request for _, r in both],
    )  # fmt: skip
    return replace(result, unclear=stances.count(Stance.UNCLEAR), missing=dict(missing))


def folds(responses: Sequence[Response], *, k: int) -> Iterator[tuple[list[int], list[int]]]:
    """(training, held out) places of k folds; a prompt is in one fold by a hash of it, whatever the order of rows.

    Where responses have several sources, each fold is held out source by source, and training sees neither the fold's
    prompts nor that source: what is tested is a new model on new prompts.
    """
    fold = [seed_of("fold", response.item.request) % k for response in responses]
    sources = sorted({response.source for response in responses})
    for j, source in itertools.product(range(k), sources):
        apart = [len(sources) > 1 and response.source == source for response in responses]
        held = [i for i, response in enumerate(responses) if fold[i] == j and response.source == source]
        if held:
            yield [i for i in range(len(responses)) if fold[i] != j and not apart[i]], held


def cross_validated(
    responses: Sequence[Response], *, make: Callable[[Sequence[Response]], Judge], k: int = 5
) -> list[Judgement | Missing]:
    """Every response judged by a judge made from the other folds' prompts."""
    found: dict[int, Judgement | Missing] = {}
    for training, held in folds(responses, k=k):
        judge = make([responses[i] for i in training])
        answers = judge.judge([responses[i].item for i in held], responses=[responses[i].text for i in held])
        found.update(zip(held, answers, strict=True))
    return [found[i] for i in range(len(responses))]


def fitted(responses: Sequence[Response], *, settings: Settings | None = None) -> TfidfJudge:
    """The TF-IDF judge of labelled responses."""
    texts = [response.text for response in responses]
    return TfidfJudge(fit(texts, refused=[response.refused for response in responses], settings=settings))


def load_responses(
    path: str, *, column: str = "final_label", refused: Sequence[str] = (FULL, PARTIAL), drop: Sequence[str] = (),
    source: str | None = None, group: str | None = None, only: str = "",
) -> list[Response]:  # fmt: skip
    """Labelled responses of a file without the labels of `drop`; `source` and `group` name columns, `only` is
    COLUMN=VALUE. UserError where a column or a kind of label is absent.
    """
    kept, _, value = only.partition("=")
    columns = ("prompt", "completion", column, *(name for name in (source, group, kept) if name))
    rows = [row for row in load_rows(path, columns=columns) if str(row[column]) not in drop]
    rows = [row for row in rows if not kept or str(row[kept]) == value]
    responses = [
        Response(
            _item(str(row["prompt"]), row), str(row["completion"]), str(row[column]) in refused,
            str(row[source]) if source else "", str(row[group]) if group else "",
        )
        for row in rows
    ]  # fmt: skip
    if len({response.refused for response in responses}) < 2:
        labels = ", ".join(sorted({str(row[column]) for row in rows})[:6])
        raise UserError(f"{path}: {column} is {labels}; --refused must name some of these labels, not all or none")
    return responses


def _item(prompt: str, row: dict[str, object]) -> Item:
    harmful = row.get("prompt_label") in ("unsafe", "harmful")
    return Item(id=prompt, request=prompt, label="harmful" if harmful else "benign")


def judgements_of(
    responses: Sequence[Response], *, judges: Sequence[str], k: int, options: Mapping[str, object] | None = None
) -> dict[str, list[Judgement | Missing]]:
    """Judge's name -> its judgements; without names: rules, cross-validated TF-IDF, and the two in turn."""
    items, texts = [r.item for r in responses], [r.text for r in responses]
    if judges:
        judge = make_judge(judges, options=options)
        return {judge.name: judge.judge(items, responses=texts)}
    rules = RefusalRules()
    return {
        "rules": rules.judge(items, responses=texts),
        f"tfidf, {k} folds": cross_validated(responses, make=fitted, k=k),
        f"rules+tfidf, {k} folds": cross_validated(responses, make=lambda some: Combined([rules, fitted(some)]), k=k),
    }


def _words(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.estimate:.3f} ({interval.reason})"
    return f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def page(found: dict[str, list[Judgement | Missing]], *, responses: Sequence[Response]) -> str:
    """A Markdown table: every judge on all prompts, on harmful and on benign ones, and on each group of responses."""
    parts: dict[str, Callable[[Response], bool]] = {
        "all": lambda r: True, "harmful": lambda r: r.item.harmful, "benign": lambda r: not r.item.harmful,
    }  # fmt: skip
    for group in sorted({r.group for r in responses} - {""}):
        parts[group] = functools.partial(_in_group, group=group)
    heads = ["judge", "prompts", "responses", "sensitivity", "specificity", "precision", "kappa", "UNCLEAR", "missing"]
    lines = [" | ".join(["", *heads, ""]).strip(), "|" + " --- |" * len(heads)]
    for name, judgements in found.items():
        for words, wanted in parts.items():
            chosen = [i for i, r in enumerate(responses) if wanted(r)]
            if len({responses[i].refused for i in chosen}) < 2:
                continue
            q = judged_quality([judgements[i] for i in chosen], responses=[responses[i] for i in chosen])
            shares = [_words(part) for part in (q.sensitivity, q.specificity, q.precision, q.kappa)]
            cells = [name, words, str(q.responses), *shares, str(q.unclear), str(sum(q.missing.values()))]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _in_group(response: Response, *, group: str) -> bool:
    return response.group == group


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", help="labelled responses: prompt, completion, label; JSONL(.gz) or Parquet")
    parser.add_argument("--judge", nargs="+", default=[], help="judges in turn, as for align evaluate")
    parser.add_argument("--judge-option", nargs="+", default=[], help="KEY=VALUE, as for align suites")
    parser.add_argument("--label-column", default="final_label")
    parser.add_argument("--refused", nargs="+", default=[FULL, PARTIAL], help="labels that mean a refusal")
    parser.add_argument("--drop", nargs="+", default=[], help="labels whose rows are left out")
    parser.add_argument("--folds", type=int, default=5, help="folds of the cross-validation, by prompt")
    parser.add_argument("--apart", metavar="COLUMN", help="hold out each value of it too (a new model on new prompts)")
    parser.add_argument("--by", metavar="COLUMN", help="report each value of it too: a model, a style, a shift")
    parser.add_argument("--only", metavar="COLUMN=VALUE", default="", help="only such rows")
    parser.add_argument("--unseen", action="store_true", help="only prompts whose answers were not read for the rules")
    parser.add_argument("--save", help="fit the TF-IDF judge on all rows and write it here")
    options = parser.parse_args(argv)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.folds < 2:
        raise UserError(f"--folds {options.folds}: give at least 2")
    responses = load_responses(
        options.file, column=options.label_column, refused=options.refused, drop=options.drop, source=options.apart,
        group=options.by, only=options.only,
    )  # fmt: skip
    if options.save:
        fitted(responses).save(options.save)
        print(f"{options.save}: TF-IDF judge of {len(responses)} responses")
        return 0
    found = judgements_of(responses, judges=options.judge, k=options.folds, options=read_options(options.judge_option))
    chosen = [i for i, r in enumerate(responses) if not options.unseen or unseen(r.item.request)]
    kept = {name: [judgements[i] for i in chosen] for name, judgements in found.items()}
    print(page(kept, responses=[responses[i] for i in chosen]))
    return 0


def unseen(prompt: str) -> bool:
    """Whether no answer to it was read while the patterns were written (two halves were, by two hashes).

    The first words of refusals were counted over all prompts beforehand, so this part is less seen, not unseen.
    """
    first = hashlib.sha256(prompt.encode()).digest()[0] % 2
    return bool(first and seed_of("rules-dev", prompt) % 2)


if __name__ == "__main__":
    raise SystemExit(main())
