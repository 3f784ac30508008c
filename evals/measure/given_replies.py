"""Replies that are given and not drawn: a model's own that do not refuse, or a file's; and a policy's KL along them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from align.data.load import iterate_rows
from align.errors import UserError
from evals.backends.transformers import TransformersBackend
from evals.items import Fields, Item, Missing
from evals.judges.base import Stance
from evals.measure.cells import Cell, ask
from evals.measure.engine import Engine
from evals.measure.evaluation import Chosen, Session, evaluated
from evals.measure.measurements import Measurement
from evals.measure.model_measurements import AgainstReference
from evals.shifts import NONE

Cut = Callable[[str, int], str]  # (a text, k) -> its first k tokens as text


@dataclass(frozen=True)
class Given:
    """Suites with the items that have a reply, the replies by request, and how many items have none, by reason."""

    suites: Sequence[Chosen]
    replies: Mapping[str, str]
    left_out: Mapping[str, int]

    @property
    def benign(self) -> list[str]:
        """The requests whose reply is harmless."""
        return [item.request for one in self.suites for item in one.items if item.label == "benign"]


def own_replies(
    suites: Sequence[Chosen], *, engine: Engine, measurements: Mapping[str, Measurement], length: int
) -> Given:
    """Each item's reply by the engine's model, where it is judged no refusal and has `length` tokens."""
    session = Session(engine, [NONE], 1, measurements)
    found: dict[str, str | Missing] = {}
    for result in evaluated(suites, session=session).values():
        for cell in result.cells:
            found.setdefault(cell.item.request, _complied(cell))
    return _given(suites, found, engine=engine, length=length)


def _complied(cell: Cell) -> str | Missing:
    completion, verdict = cell.value("completion"), cell.value("verdict")
    if isinstance(completion, Missing):
        return completion
    if isinstance(verdict, Missing):
        return verdict
    return Missing("refused") if verdict["stance"] == Stance.REFUSED else str(completion["text"])


def file_replies(path: str, *, suites: Sequence[Chosen], engine: Engine, length: int) -> Given:
    """Each item's reply in a file of rows {prompt, response}; of several to one prompt the first.

    UserError for a row without text in one of them.
    """
    found: dict[str, str | Missing] = {}
    for place, row in iterate_rows(path, columns=("prompt", "response")):
        prompt, response = row["prompt"], row["response"]
        if not isinstance(prompt, str) or not isinstance(response, str) or not response.strip():
            raise UserError(
                f"{place}: prompt and response must be texts, and response not empty; fix or delete the row"
            )
        found.setdefault(prompt, response)
    return _given(suites, found, engine=engine, length=length)


def _given(suites: Sequence[Chosen], found: Mapping[str, str | Missing], *, engine: Engine, length: int) -> Given:
    cut, left_out, replies = first_tokens(engine.backend), Counter[str](), {}
    for item in (item for one in suites for item in one.items):
        reply = found.get(item.request, Missing("no_reply"))
        if isinstance(reply, Missing):
            left_out[reply.reason] += 1
        elif cut(reply, length - 1) == cut(reply, length):
            left_out["short_reply"] += 1
        else:
            replies[item.request] = reply
    kept = [replace(one, items=[item for item in one.items if item.request in replies]) for one in suites]
    return Given([one for one in kept if one.items], replies, dict(left_out))


def first_tokens(backend: object) -> Cut:
    """A cutter of texts by a model's own tokens. UserError for a backend whose tokens are not here to be counted."""
    if not isinstance(backend, TransformersBackend):
        raise UserError("replies are cut by tokens, which needs a model in memory and no decoding rule; name another")

    def cut(text: str, k: int) -> str:
        ids = backend.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return str(backend.form.decode(ids[:k]))

    return cut


def kl_along(
    given: Given, *, engine: Engine, reference: TransformersBackend, length: int
) -> list[tuple[Item, list[float]]]:
    """KL(policy || reference) in nats at each of the first `length` tokens of the items' replies."""
    cut, found = first_tokens(engine.backend), []
    for one in given.suites:
        cells = [
            cell.measured("completion", _as_drawn(cut(given.replies[cell.item.request], length), length))
            for cell in ask(one.items, suite=one.suite.name, shifts=[NONE])
        ]
        for cell in engine.run(cells, measurements=[AgainstReference(reference)]):
            value = cell.value("against_reference")
            if not isinstance(value, Missing) and len(value["kl"]) >= length:
                found.append((cell.item, value["kl"][:length]))
    return found


def _as_drawn(text: str, tokens: int) -> Fields:
    """A given reply as a cell keeps a completion that was cut at its last token."""
    return {"text": text, "tokens": tokens, "finished": False}
