"""Measurements that read more than completions: rewards, the reference policy's view, bits per byte, hidden states.

Same shape as evals/measure/measurements.py. Legend: T tokens, V vocabulary, H hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.backends.base import Backend
from evals.backends.rendering import Renderer
from evals.backends.transformers import TransformersBackend
from evals.items import Message, Missing, Prompt
from evals.measure.measurements import Request, Value


@dataclass(frozen=True)
class Rewards:
    """Objectives' scores of the decoded response to the original request, and to the prompt as it was shifted.

    `fingerprints` name -> what the objective's scores depend on (its weights). The two numbers of an objective differ
    where the reward model itself does not generalise (LeVine et al. 2023): `plain` is what the response is worth,
    `shifted` what a trainer that sees the shifted prompt would have paid.
    """

    objectives: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    renderer: Renderer
    name: str = "rewards"
    needs: tuple[str, ...] = ("completion",)

    def config(self) -> Mapping[str, Any]:
        return {"objectives": dict(self.fingerprints), "template": self.renderer.template}

    def measure(self, requests: Sequence[Request], *, backend: Backend) -> list[Value]:
        values: list[Value] = [Missing("not_measured")] * len(requests)
        open_ones = []
        for i, request in enumerate(requests):
            response = request.response()
            if isinstance(response, Missing):
                values[i] = response
                continue
            plain = Prompt((*request.item.before, Message("user", request.item.request)))
            texts = self.renderer.text(plain), self.renderer.text(request.prompt)
            lost = next((t for t in texts if isinstance(t, Missing)), None)
            if lost is not None:
                values[i] = lost
                continue
            raw = request.earlier["completion"]
            open_ones.append((i, texts, f" {response.strip()}", f" {raw['text'].strip()}"))  # type: ignore[index]
        for name in self.objectives:
            self._score(name, open_ones, values)
        return values

    def _score(self, name: str, open_ones: Sequence[Any], values: list[Value]) -> None:
        plain = self.objectives[name]([texts[0] for _, texts, _, _ in open_ones], [r for _, _, r, _ in open_ones])
        shifted = self.objectives[name]([texts[1] for _, texts, _, _ in open_ones], [r for _, _, _, r in open_ones])
        for (i, *_), a, b in zip(open_ones, plain, shifted, strict=True):
            known = {} if isinstance(values[i], Missing) else dict(values[i])  # type: ignore[arg-type]
            values[i] = known | {f"{name}.plain": a, f"{name}.shifted": b}


@dataclass(frozen=True)
class AgainstReference:
    """Per-token KL(policy || reference) along the policy's own completion, in nats, and the log-ratio of the whole.

    `log_ratio` times a method's beta is the implicit reward of its response (Rafailov et al. 2023). The completion's
    end token counts where it was drawn. The sum of `kl` is an unbiased estimate of the sequence KL for sampled
    completions (of lower variance than the log-ratio); for greedy ones it is a description only.
    """

    reference: TransformersBackend
    name: str = "against_reference"
    needs: tuple[str, ...] = ("completion",)

    def config(self) -> Mapping[str, Any]:
        return {"reference": self.reference.fingerprint}

    def measure(self, requests: Sequence[Request], *, backend: Backend) -> list[Value]:
        if not isinstance(backend, TransformersBackend):
            return [Missing("unsupported_logprobs", "only models in memory", lasting=True)] * len(requests)
        values: list[Value] = [Missing("not_measured")] * len(requests)
        rows: list[tuple[int, list[int], int]] = []
        for i, request in enumerate(requests):
            pair = _completion_ids(request, backend)
            if isinstance(pair, Missing):
                values[i] = pair
            else:
                rows.append((i, *pair))
        found = backend.batcher.run(
            [len(ids) for _, ids, _ in rows], work=lambda chosen: self._compare([rows[c] for c in chosen], backend)
        )
        for (i, *_), value in zip(rows, found, strict=True):
            values[i] = value
        return values

    def _compare(self, rows: Sequence[tuple[int, list[int], int]], backend: TransformersBackend) -> list[Value]:
        ids = [row for _, row, _ in rows]
        logp_BTV, ids_BT, _ = backend.logprobs(ids)
        ref_BTV, _, _ = self.reference.logprobs(ids)
        values: list[Value] = []
        for b, (_, row, start) in enumerate(rows):
            span = slice(start - 1, len(row) - 1)
            p_TV, q_TV = logp_BTV[b, span], ref_BTV[b, span]
            terms_TV = (p_TV.exp() * (p_TV - q_TV)).where(p_TV > -float("inf"), p_TV.new_zeros(()))
            drawn_T1 = ids_BT[b, start : len(row), None]
            log_ratio = float((p_TV.gather(-1, drawn_T1) - q_TV.gather(-1, drawn_T1)).sum())
            values.append({"log_ratio": log_ratio, "kl": terms_TV.sum(-1).tolist()})
        return values


def _completion_ids(request: Request, backend: TransformersBackend) -> tuple[list[int], int] | Missing:
    found = request.earlier["completion"]
    if isinstance(found, Missing):
        return found
    pair = backend.pair_ids(request.prompt, found["text"]) if found["text"] else backend.encode(request.prompt)
    if isinstance(pair, Missing):
        return pair
    ids, start = pair if isinstance(pair, tuple) else (pair, len(pair))
    return ([*ids, backend.tokenizer.eos_token_id] if found["finished"] else ids), start


@dataclass(frozen=True)
class BitsPerByte:
    """Code length of the prompt's own text under the policy: nats and bytes, whose ratio compares across tokenisers."""

    name: str = "bits"
    needs: tuple[str, ...] = ()

    def config(self) -> Mapping[str, Any]:
        return {"of": "the last user turn, each text by itself after a start token"}

    def measure(self, requests: Sequence[Request], *, backend: Backend) -> list[Value]:
        from align.training.bits import text_bits

        if not isinstance(backend, TransformersBackend):
            return [Missing("unsupported_logprobs", "only models in memory", lasting=True)] * len(requests)
        values: list[Value] = []
        for request in requests:
            text = [turn.content for turn in request.prompt.turns if turn.role == "user"][-1]
            if not text:
                values.append(Missing("empty_prompt", "no byte to pay for", lasting=True))
                continue
            with backend.active():
                bits = text_bits(backend.model, backend.tokenizer, [text])
            values.append({"bits": bits.bits, "bytes": bits.bytes, "per_byte": bits.per_byte})
        return values


@dataclass(frozen=True)
class HiddenProjection:
    """Where the prompt's last hidden state lies along a direction: harmfulness recognition, before a word is said.

    `direction_H` is a unit vector from plain prompts (see `difference_of_means`); `layer` counts from the embedding
    (0). The value is in the model's own units.
    """

    direction_H: tuple[float, ...]
    layer: int
    name: str = "hidden"
    needs: tuple[str, ...] = ()

    def config(self) -> Mapping[str, Any]:
        return {"layer": self.layer, "direction": [round(x, 6) for x in self.direction_H]}

    def measure(self, requests: Sequence[Request], *, backend: Backend) -> list[Value]:
        if not isinstance(backend, TransformersBackend):
            return [Missing("unsupported_hidden_states", "only models in memory", lasting=True)] * len(requests)
        import torch

        direction_H = torch.tensor(self.direction_H)
        states = last_hidden_states(backend, [r.prompt for r in requests], layer=self.layer)
        return [s if isinstance(s, Missing) else {"projection": float(s @ direction_H)} for s in states]


def last_hidden_states(backend: TransformersBackend, prompts: Sequence[Prompt], *, layer: int) -> list[Any]:
    """The hidden state (H) of every prompt's last token at a layer, on the CPU, or Missing."""
    encoded = [backend.encode(prompt) for prompt in prompts]
    results: list[Any] = list(encoded)
    places = [i for i, ids in enumerate(encoded) if not isinstance(ids, Missing)]

    def work(chosen: list[int]) -> list[Any]:
        ids_BT, mask_BT = backend._pad([results[places[c]] for c in chosen], left=True)
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
        with backend.active():
            out = backend.model(
                input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT, output_hidden_states=True
            )
        return list(out.hidden_states[layer][:, -1].float().cpu())

    for i in places:
        if backend.context is not None and len(results[i]) > backend.context:
            results[i] = Missing("context", f"{len(results[i])} tokens do not fit in {backend.context}", lasting=True)
    places = [i for i in places if not isinstance(results[i], Missing)]
    found = backend.batcher.run([len(results[i]) for i in places], work=work)
    for i, state in zip(places, found, strict=True):
        results[i] = state
    return results


def difference_of_means(harmful: Sequence[Any], harmless: Sequence[Any]) -> tuple[float, ...]:
    """Unit vector from the mean harmless to the mean harmful state (Arditi et al. 2024); ValueError if empty."""
    import torch

    if not harmful or not harmless:
        raise ValueError("a direction needs states of both kinds")
    difference_H = torch.stack(list(harmful)).mean(0) - torch.stack(list(harmless)).mean(0)
    return tuple((difference_H / difference_H.norm()).tolist())
