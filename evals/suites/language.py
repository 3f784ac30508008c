"""NLI, question answering, translation and plain text: suites with natural shifts of domain."""

from __future__ import annotations

from align.data.load import Row
from align.errors import UserError
from evals.items import Item
from evals.suites.base import (
    CLASSIFICATION,
    QA,
    TEXT,
    TRANSLATION,
    Build,
    Suite,
    each,
    known,
    row_id,
    same_text,
    text_of,
)
from evals.suites.classification import asked

NLI = ("yes", "maybe", "no")
ENTAILS = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}


def _nli(row: Row, place: str) -> Item:
    """A premise and whether the hypothesis follows; clusters are premises, which the sets repeat."""
    premise, hypothesis = (text_of(row, name, place=place) for name in ("premise", "hypothesis"))
    question = f"Question: {hypothesis.strip()} Yes, no or maybe?"
    label = known(row["label"], ENTAILS, column="label", place=place)
    return asked(
        row,
        premise,
        names=NLI,
        label=label,
        place=place,
        question=question,
        group=str(row.get("category") or ""),
        columns={"cluster": f"premise {same_text(premise)}"},
    )


def _qa(row: Row, place: str) -> Item:
    """A passage and a question; clusters are passages. `columns["answers"]` are all that count as right."""
    answers = row["answers"]
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise UserError(f"{place}: column 'answers' must be a list of texts, none empty; fix or delete the row")
    context, question = text_of(row, "context", place=place), text_of(row, "question", place=place)
    return Item(
        row_id(row),
        f"{context.strip()}\nQuestion: {question.strip()}",
        group=str(row.get("domain") or ""),
        target=answers[0],
        columns={"answers": answers, "cluster": f"passage {same_text(context)}"},
    )


def translation(source: str, target: str, *, language: str, domain: str | None = None) -> Build:
    """A builder of translation items between two columns; `domain` keeps the rows of one domain."""

    def make(row: Row, place: str) -> Item | None:
        if domain is not None and row.get("domain") != domain:
            return None
        text = text_of(row, source, place=place).strip()
        return Item(
            row_id(row),
            f"Translate to {language}: {text}",
            group=str(row.get("domain") or ""),
            target=text_of(row, target, place=place).strip(),
        )

    return each(make)


def _text(row: Row, place: str) -> Item:
    """A document; `group` is its genre or domain."""
    return Item(row_id(row), text_of(row, "text", place=place), group=str(row.get("domain") or ""))


_PAIR, _PASSAGE = ("premise", "hypothesis", "label"), ("context", "question", "answers")

SNLI = Suite(
    "snli",
    CLASSIFICATION,
    "inference on captions",
    each(_nli),
    file="nli/snli_1k.jsonl.gz",
    columns=_PAIR,
    partners=("mnli_matched", "breaking_nli"),
)
MNLI = Suite(
    "mnli_matched",
    CLASSIFICATION,
    "inference in mixed genres",
    each(_nli),
    file="nli/mnli_matched_1k.jsonl.gz",
    columns=_PAIR,
)
BREAKING_NLI = Suite(
    "breaking_nli",
    CLASSIFICATION,
    "inference that turns on one word; 87 % contradiction",
    each(_nli),
    file="nli/breaking_nli_3k.jsonl.gz",
    columns=_PAIR,
)
XQUAD = Suite(
    "xquad",
    QA,
    "questions on Wikipedia paragraphs (SQuAD)",
    each(_qa),
    file="xquad/qa_en.jsonl.gz",
    columns=_PASSAGE,
    partners=("qa_shift", "nq_open_oracle"),
)
QA_SHIFT = Suite(
    "qa_shift",
    QA,
    "adversarial questions, coreference and movie plots",
    each(_qa),
    file="qa_shift/extractive_qa.jsonl.gz",
    columns=_PASSAGE,
)
NQ_OPEN = Suite(
    "nq_open_oracle",
    QA,
    "questions typed into a search engine, with the right passage",
    each(_qa),
    file="nq_open_oracle/nq_open_oracle.jsonl.gz",
    columns=_PASSAGE,
)
MULTI30K = Suite(
    "multi30k",
    TRANSLATION,
    "image captions, English to German",
    translation("en", "de", language="German"),
    file="multi30k/test_2016_flickr.jsonl.gz",
    columns=("en", "de"),
    partners=("multi30k_2017", "xquad_questions"),
)
MULTI30K_2017 = Suite(
    "multi30k_2017",
    TRANSLATION,
    "captions of other pictures, English to German",
    translation("en", "de", language="German"),
    file="multi30k/test_2017_flickr.jsonl.gz",
    columns=("en", "de"),
)
XQUAD_QUESTIONS = Suite(
    "xquad_questions",
    TRANSLATION,
    "questions on Wikipedia, English to German",
    translation("en", "de", language="German", domain="wikipedia_question"),
    file="xquad/parallel_en_de_es_ro.jsonl.gz",
    columns=("en", "de", "domain"),
)
WIKITEXT2 = Suite(
    "wikitext2",
    TEXT,
    "Wikipedia articles",
    each(_text),
    file="wikitext2/valid.jsonl.gz",
    columns=("text",),
    partners=("masc", "speeches", "c4"),
)
MASC = Suite("masc", TEXT, "14 genres", each(_text), file="masc/masc_genres.jsonl.gz", columns=("text",))
SPEECHES = Suite(
    "speeches",
    TEXT,
    "addresses of US presidents before 1990",
    each(_text),
    file="presidential_speeches/before_1990.jsonl.gz",
    columns=("text",),
)
C4 = Suite("c4", TEXT, "web pages", each(_text), file="c4_sample/c4_demo.jsonl.gz", columns=("text",))
