"""Measurements that read more than completions: rewards, the reference policy's view, bits per byte.

Same shape as evals/measure/measurements.py. Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from align.objectives import Objective
from align.objectives.by_content import columns_read
from align.turns import Turn, is_transcript, transcript
from evals.backends.base import Backend, Completion
from evals.backends.rendering import Renderer
from evals.backends.transformers import TransformersBackend
from evals.items import Fields, Missing, Prompt
from evals.measure.cells import Cell, Value


@dataclass(frozen=True)
class Rewards:
    """Objectives' scores of the decoded response to the original request, and to the prompt as it was shifted.

    `fingerprints` name -> what the objective's scores depend on (its weights). The two numbers of an objective differ
    where the reward model itself does not generalise (LeVine et al. 2023): `plain` is what the response is worth,
    `shifted` what a trainer that sees the shifted prompt would have paid.
    """

    objectives: Mapping[str, Objective]
    fingerprints: Mapping[str, str]
    renderer: Renderer
    name: str = "rewards"
    needs: tuple[str, ...] = ("completion", "response", "item")

    def config(self) -> Fields:
        return {"objectives": dict(self.fingerprints), "template": self.renderer.template, "cut": "read as cut"}

    def measure(self, cells: Sequence[Cell], *, backend: Backend) -> list[Value]:
        values: list[Value] = [Missing("not_measured")] * len(cells)
        scored: dict[int, _Scored] = {}
        for i, cell in enumerate(cells):
            pair = self._texts(cell)
            if isinstance(pair, Missing):
                values[i] = pair
            else:
                scored[i] = pair
        by_objective = [self._scores(name, list(scored.values())) for name in self.objectives]
        for k, i in enumerate(scored):
            values[i] = {field: score for scores in by_objective for field, score in scores[k].items()}
        return values

    def _texts(self, cell: Cell) -> _Scored | Missing:
        response, completion = cell.response(), cell.value("completion")
        if isinstance(response, Missing):
            return response
        if isinstance(completion, Missing):
            return completion
        plain = self._said(Prompt((*cell.item.before, Turn("user", cell.item.request))))
        said, raw = self._said(cell.question), self._reply(completion["text"])
        ended = completion.get("finished", True) is not False
        return _Scored(plain, self._reply(response), said, raw, ended, cell.item.columns)

    def _said(self, prompt: Prompt) -> str:
        """The prompt as rows hold it, which a reward model reads in a format of its own; of HH data a transcript."""
        said = self.renderer.said(prompt)
        return said if self.renderer.template != "hh" or is_transcript(said) else transcript([Turn("user", said)])

    def _reply(self, text: str) -> str:
        """A response as rows hold it; behind a chat template every character of it counts."""
        return f" {text}" if self.renderer.template == "chat" else f" {text.strip()}"

    def _scores(self, name: str, texts: Sequence[_Scored]) -> list[dict[str, float | None]]:
        objective = self.objectives[name]
        read = [c for c in columns_read(objective) if any(t.columns.get(c) is not None for t in texts)]
        columns: dict[str, object] = {c: [t.columns.get(c) for t in texts] for c in read}
        columns["completion_ended"] = [t.ended for t in texts]
        plain = objective([t.plain for t in texts], [t.decoded for t in texts], **columns)
        shifted = objective([t.shifted for t in texts], [t.raw for t in texts], **columns)
        return [{f"{name}.plain": a, f"{name}.shifted": b} for a, b in zip(plain, shifted, strict=True)]


@dataclass(frozen=True)
class _Scored:
    """The two texts that an objective scores: the plain prompt with the decoded response, and both as they were.

    `ended`: whether the model ended the response itself. `columns` are the others of the item's row, of which an
    objective reads those it names.
    """

    plain: str
    decoded: str
    shifted: str
    raw: str
    ended: bool
    columns: Fields


@dataclass(frozen=True)
class AgainstReference:
    """Per-token KL(policy || reference) along the policy's own completion, in nats, and the log-ratio of the whole.

    `log_ratio` times a method's beta is the implicit reward of its response (Rafailov et al. 2023). Tokens are those
    that were drawn, the end where it came; the reference reads a tagged policy's prompt without tags. The sum of `kl`
    is an unbiased estimate of the sequence KL for sampled completions (of lower variance than the log-ratio); for
    greedy ones it is a description only.
    """

    reference: TransformersBackend
    name: str = "against_reference"
    needs: tuple[str, ...] = ("completion",)

    def config(self) -> Fields:
        return {"reference": self.reference.fingerprint}

    def measure(self, cells: Sequence[Cell], *, backend: Backend) -> list[Value]:
        if not isinstance(backend, TransformersBackend):
            return [Missing("unsupported_logprobs", "only models in memory", lasting=True)] * len(cells)
        values: list[Value] = [Missing("not_measured")] * len(cells)
        rows: dict[int, _Compared] = {}
        for i, cell in enumerate(cells):
            row = self._row(cell, backend)
            if isinstance(row, Missing):
                values[i] = row
            else:
                rows[i] = row
        kept = list(rows.values())
        compared = backend.batcher.run(
            [len(row.head) + len(row.tail) for row in kept],
            work=lambda chosen: self._compare([kept[c] for c in chosen], backend),
        )
        for i, value in zip(rows, compared, strict=True):
            values[i] = value
        return values

    def _row(self, cell: Cell, backend: TransformersBackend) -> _Compared | Missing:
        found = cell.value("completion")
        if isinstance(found, Missing):
            return found
        completion = Completion(found["text"], found["tokens"], found["finished"], ids=tuple(found.get("ids", ())))
        head, tail = backend.encode(cell.question), backend.drawn_ids(cell.question, completion)
        if isinstance(head, Missing):
            return head
        if isinstance(tail, Missing):
            return tail
        theirs = self.reference.encode(cell.question) if backend.lead else head
        return theirs if isinstance(theirs, Missing) else _Compared(head, theirs, tail)

    def _compare(self, rows: Sequence[_Compared], backend: TransformersBackend) -> list[Value]:
        logp_BTV, ids_BT, _ = backend.logprobs([[*row.head, *row.tail] for row in rows])
        ref_BTV, _, _ = self.reference.logprobs([[*row.reference_head, *row.tail] for row in rows])
        words = min(logp_BTV.shape[-1], ref_BTV.shape[-1])  # tag tokens, which are never drawn, are beyond
        values: list[Value] = []
        for b, row in enumerate(rows):
            start, theirs, size = len(row.head), len(row.reference_head), len(row.tail)
            p_TV = logp_BTV[b, start - 1 : start - 1 + size, :words]
            q_TV = ref_BTV[b, theirs - 1 : theirs - 1 + size, :words]
            terms_TV = (p_TV.exp() * (p_TV - q_TV)).where(p_TV > -float("inf"), p_TV.new_zeros(()))
            drawn_T1 = ids_BT[b, start : start + size, None]
            log_ratio = float((p_TV.gather(-1, drawn_T1) - q_TV.gather(-1, drawn_T1)).sum())
            values.append({"log_ratio": log_ratio, "kl": terms_TV.sum(-1).tolist()})
        return values


@dataclass(frozen=True)
class _Compared:
    """Ids of a prompt as the policy reads it and as the reference does, and those that were drawn behind it."""

    head: list[int]
    reference_head: list[int]
    tail: list[int]


@dataclass(frozen=True)
class BitsPerByte:
    """Code length of the prompt's own text under the policy: nats and bytes, whose ratio compares across tokenisers."""

    name: str = "bits"
    needs: tuple[str, ...] = ()

    def config(self) -> Fields:
        return {"of": "the last user turn, each text by itself after a start token"}

    def measure(self, cells: Sequence[Cell], *, backend: Backend) -> list[Value]:
        from align.training.bits import text_bits

        if not isinstance(backend, TransformersBackend):
            return [Missing("unsupported_logprobs", "only models in memory", lasting=True)] * len(cells)
        values: list[Value] = []
        for cell in cells:
            text = [turn.content for turn in cell.question.turns if turn.role == "user"][-1]
            if not text:
                values.append(Missing("empty_prompt", "no byte to pay for", lasting=True))
                continue
            with backend.active():
                bits = text_bits(backend.model, backend.tokenizer, [text])
            values.append({"bits": bits.bits, "bytes": bits.bytes, "per_byte": bits.per_byte})
        return values
