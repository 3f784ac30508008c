"""Classification suites by log-likelihood of class names: sentiment, news topics, toxicity, with natural shifts."""

from __future__ import annotations

from collections.abc import Sequence

from align.data.load import Placed, Row
from align.errors import UserError
from evals.items import Item, Json
from evals.suites.base import CLASSIFICATION, Build, Meaning, Suite, each, known, row_id, same_text, text_of

SENTIMENT, HATE, OFFENCE = ("negative", "positive"), ("no", "yes"), ("no", "yes")
NEWS = ("World", "Sports", "Business", "Technology")
QUESTIONS: dict[tuple[str, ...], str] = {
    SENTIMENT: "Is this text positive or negative?",
    NEWS: "Is this text about World, Sports, Business or Technology?",
}


def asked(
    row: Row,
    text: str,
    *,
    names: Sequence[str],
    label: str,
    place: str,
    group: str = "",
    question: str | None = None,
    columns: Json | None = None,
) -> Item:
    """The text and a question about it; the choices are the class names, the target is the place of `label`."""
    question = question if question is not None else QUESTIONS[tuple(names)]
    return Item(
        row_id(row),
        f"{text.strip()}\n{question}",
        label=label,
        group=group,
        choices=tuple(names),
        target=list(names).index(known(label, {name: name for name in names}, column="label", place=place)),
        columns=columns or {},
    )


def classes(
    names: Sequence[str],
    meaning: Meaning,
    *,
    group: str | None = None,
    question: str | None = None,
    cluster: str | None = None,
) -> Build:
    """A builder for rows with `text` and `label`; `cluster` names the column of what rows were made from."""

    def make(row: Row, place: str) -> Item:
        label = known(row["label"], meaning, column="label", place=place)
        kind = str(row.get(group) or "") if group else ""
        columns = {"cluster": f"{cluster} {row[cluster]}"} if cluster else None
        text = text_of(row, "text", place=place)
        return asked(row, text, names=names, label=label, place=place, group=kind, question=question, columns=columns)

    return each(make)


POLARITY = {0: "negative", 1: "positive"}


def _sentences(placed: Sequence[Placed]) -> list[Item]:
    """SST-2 sentences. Their cluster is named by their text, so that rewritings of a sentence find it."""
    items = []
    for where, row in placed:
        text, label = text_of(row, "text", place=where), known(row["label"], POLARITY, column="label", place=where)
        columns = {"cluster": f"sst2 {same_text(text)}"}
        items.append(asked(row, text, names=SENTIMENT, label=label, place=where, columns=columns))
    return items


def _styles(placed: Sequence[Placed]) -> list[Item]:
    """The same sentences in other styles: row i of a style rewrites row i of "base", whose text names the cluster.

    The base rows themselves are left out: they are the unshifted sentences. The two files tokenise differently, and 42
    of 872 base sentences are not in the SST-2 file.
    """
    number = {id(row): str(row["id"]).rpartition("-")[2] for _, row in placed}
    base = {number[id(row)]: row for _, row in placed if row["style"] == "base"}
    items = []
    for where, row in placed:
        if row["style"] == "base":
            continue
        source = base.get(number[id(row)])
        if source is None or source["label"] != row["label"]:
            raise UserError(f"{where}: no base sentence of that number and label; give the whole file")
        label = known(row["label"], POLARITY, column="label", place=where)
        columns = {"cluster": f"sst2 {same_text(source['text'])}"}
        items.append(
            asked(
                row,
                text_of(row, "text", place=where),
                names=SENTIMENT,
                label=label,
                place=where,
                group=str(row["style"]),
                columns=columns,
            )
        )
    return items


# The subject of a question gives its topic; 240 questions for each topic that has news sections of the same name.
TOPICS = {
    "international_law": "World",
    "security_studies": "World",
    "us_foreign_policy": "World",
    "high_school_government_and_politics": "World",
    "business_ethics": "Business",
    "management": "Business",
    "marketing": "Business",
    "professional_accounting": "Business",
    "machine_learning": "Technology",
    "computer_security": "Technology",
    "astronomy": "Technology",
    "electrical_engineering": "Technology",
}


def _exam_topics(row: Row, place: str) -> Item | None:
    if row["subject"] not in TOPICS:
        return None
    topic = known(row["subject"], TOPICS, column="subject", place=place)
    text = text_of(row, "question", place=place)
    return asked(row, text, names=NEWS, label=topic, place=place, group=str(row["subject"]))


_HATE = "Is this text hateful? Answer yes or no."
_OFFENCE = "Is this text offensive? Answer yes or no."
_TEXT = ("text", "label")

SST2 = Suite(
    "sst2",
    CLASSIFICATION,
    "sentiment of movie review sentences",
    _sentences,
    file="sst2/dev.jsonl.gz",
    columns=_TEXT,
    partners=("sst2_styles", "product_reviews", "movie_reviews"),
)
SST2_STYLES = Suite(
    "sst2_styles",
    CLASSIFICATION,
    "sentiment of the same sentences rewritten in eight styles: a paired shift",
    _styles,
    file="sst2_styles/styles.jsonl.gz",
    columns=("id", "style", *_TEXT),
)
MOVIE_REVIEWS = Suite(
    "movie_reviews",
    CLASSIFICATION,
    "sentiment of whole movie reviews: a shift of length",
    classes(SENTIMENT, POLARITY),
    file="movie_reviews/polarity_v2.jsonl.gz",
    columns=_TEXT,
)
PRODUCT_REVIEWS = Suite(
    "product_reviews",
    CLASSIFICATION,
    "sentiment of sentences about five products: a shift of domain",
    classes(SENTIMENT, POLARITY, group="product"),
    file="product_reviews/five_products.jsonl.gz",
    columns=_TEXT,
)
AG_NEWS = Suite(
    "ag_news",
    CLASSIFICATION,
    "topic of news items (official test file)",
    classes(NEWS, {0: "World", 1: "Sports", 2: "Business", 3: "Technology"}),
    file="ag_news/ag_news_test_7600.jsonl.gz",
    columns=_TEXT,
    partners=("exam_topics",),
)
EXAM_TOPICS = Suite(
    "exam_topics",
    CLASSIFICATION,
    "topic of exam questions, from their subject (derived labels, no sports question): the shift partner of news",
    each(_exam_topics),
    file="mmlu/test_60_per_subject.jsonl.gz",
    columns=("question", "subject"),
)
DAVIDSON_OFFENSIVE = Suite(
    "davidson_offensive",
    CLASSIFICATION,
    "offensive or hateful tweets against neither",
    classes(OFFENCE, {0: "yes", 1: "yes", 2: "no"}, question=_OFFENCE),
    file="davidson_hate/tweets_8k.jsonl.gz",
    columns=_TEXT,
    partners=("tweeteval_offensive",),
)
DAVIDSON_HATE = Suite(
    "davidson_hate",
    CLASSIFICATION,
    "hateful tweets against merely offensive ones and neither",
    classes(HATE, {0: "yes", 1: "no", 2: "no"}, question=_HATE),
    file="davidson_hate/tweets_8k.jsonl.gz",
    columns=_TEXT,
    partners=("tweeteval_hate", "hatecheck"),
)
TWEETEVAL_OFFENSIVE = Suite(
    "tweeteval_offensive",
    CLASSIFICATION,
    "offensive tweets",
    classes(OFFENCE, {0: "no", 1: "yes"}, question=_OFFENCE),
    file="tweeteval/offensive.jsonl.gz",
    columns=_TEXT,
    partners=("davidson_offensive",),
)
TWEETEVAL_HATE = Suite(
    "tweeteval_hate",
    CLASSIFICATION,
    "hateful tweets",
    classes(HATE, {0: "no", 1: "yes"}, question=_HATE),
    file="tweeteval/hate.jsonl.gz",
    columns=_TEXT,
    partners=("davidson_hate", "hatecheck"),
)
HATECHECK = Suite(
    "hatecheck",
    CLASSIFICATION,
    "functional tests of hate detection, clustered by template",
    classes(
        HATE, {"hateful": "yes", "non-hateful": "no"}, question=_HATE, group="functionality", cluster="template_id"
    ),
    file="hatecheck/test_suite.jsonl.gz",
    columns=(*_TEXT, "template_id"),
)
