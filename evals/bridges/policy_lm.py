"""A policy as a language model of `lm_eval`: its three kinds of request answered by one of our backends, in memory.

A context is the user's turn in the backend's own prompt format (chat, HH transcript or plain text; without a chat
template nothing is invented); with `apply_chat_template` it is the turns. What a model in memory then scores are the
tokens that `lm_eval`'s HF model scores: context and continuation are encoded as one text, and white space at the
context's end, a chat template's last line end too, counts with the continuation. The start token comes once, where the
format has one. An empty context is the start (or else the end) token.

What a backend cannot answer is recorded as Missing for its document. `lm_eval` has no such value: it is handed nan or
an empty text in its place, and whoever reads its samples drops these documents (see `lm_eval_bridge`). `lm_eval` would
cut a long context on the left instead and score what is left.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from align.errors import UserError
from align.turns import Turn
from evals.backends.base import Backend, Completion, Generation, spaced
from evals.bridges.rolling import bare_pair, rolling_logprob
from evals.items import Fields, Missing, Prompt, seed_of

LONGEST = 256  # tokens of an answer where a task names no limit, as in lm_eval's own models
_TURNS = "\x02turns:"  # opens a context that holds chat turns as JSON
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first one given holds
_NEUTRAL = {"top_p": (1, 1.0), "top_k": (0, 50), "num_beams": (1,), "repetition_penalty": (1, 1.0)}
Score = tuple[float, int] | Missing
Ask = Callable[[list[int], int], list[bool]]


def as_prompt(context: str) -> Prompt:
    """A context of `lm_eval` as a prompt: the turns that `apply_chat_template` wrote down, else one user turn."""
    if not context.startswith(_TURNS):
        return Prompt.user(context)
    turns = json.loads(context[len(_TURNS) :])
    return Prompt(tuple(Turn(turn["role"], turn["content"]) for turn in turns))


def generation_of(options: Fields, *, longest: int) -> Generation:
    """`lm_eval`'s generation options as ours; UserError for sampling rules that a backend does not have.

    As there, a temperature alone asks for samples, and nothing at all for greedy decoding.
    """
    until, do_sample = options.get("until") or [], options.get("do_sample")
    temperature = 0.0 if do_sample is False else float(options.get("temperature", 1.0 if do_sample else 0.0))
    for name, neutral in _NEUTRAL.items():
        asked = options.get(name, neutral[0])
        if asked not in neutral and (temperature > 0 or name in ("num_beams", "repetition_penalty")):
            raise UserError(f"a task asks for {name}={asked}, which no backend has; set it to {neutral[0]}")
    return Generation(
        max_new_tokens=int(next((options[name] for name in LIMITS if options.get(name) is not None), longest)),
        temperature=temperature,
        stop=tuple([until] if isinstance(until, str) else until),
    )


class _Greedy:
    """Whether greedy decoding would write a continuation: found out for all continuations at once, when first asked.

    Accuracies do not read it, and it costs a generation each.
    """

    def __init__(self, answers: _GreedyAnswers, place: int) -> None:
        self.answers, self.place = answers, place

    def __bool__(self) -> bool:
        return self.answers.all()[self.place]

    def __int__(self) -> int:
        return int(bool(self))

    def __reduce__(self) -> tuple[type[bool], tuple[bool]]:
        return bool, (bool(self),)


class _GreedyAnswers:
    """`ask(places, n)` says of the continuations at `places`, each of `n` tokens, whether greedy decoding writes it."""

    def __init__(self, tokens: Sequence[int], ask: Callable[[list[int], int], list[bool]]) -> None:
        self.tokens, self.ask = tokens, ask
        self.found: list[bool] | None = None

    def all(self) -> list[bool]:
        if self.found is None:
            self.found = [False] * len(self.tokens)
            for n in sorted(set(self.tokens) - {0}):
                places = [i for i, tokens in enumerate(self.tokens) if tokens == n]
                for i, greedy in zip(places, self.ask(places, n), strict=True):
                    self.found[i] = greedy
        return self.found


class Request(Protocol):
    """What we read of an `lm_eval.api.instance.Instance`: its arguments, task, document and repeat."""

    args: tuple[Any, ...]
    task_name: str
    doc_id: int
    idx: int


class PolicyRequests:
    """The requests of `lm_eval` on a backend. `missing` holds (task, document number) -> why there is no answer."""

    def __init__(self, backend: Backend, *, longest: int = LONGEST) -> None:
        super().__init__()
        if "logprobs" not in backend.can:
            raise UserError(f"{backend.name} gives no log-probabilities, which lm_eval's tasks need; use another one")
        self.backend, self.longest = backend, longest
        self.missing: dict[tuple[str, int], Missing] = {}

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool | _Greedy]]:
        """(Log-probability in nats, whether it is the greedy answer) of each continuation after its context."""
        arguments = [(request.args[0], request.args[1]) for request in requests]
        scores, ask = (self._by_ids if hasattr(self.backend, "pair_ids") else self._by_text)(arguments)
        greedy = _GreedyAnswers([0 if isinstance(value, Missing) else value[1] for value in scores], ask)
        results: list[tuple[float, bool | _Greedy]] = []
        for i, (request, value) in enumerate(zip(requests, scores, strict=True)):
            if isinstance(value, Missing):
                self._miss(request, value)
                results.append((float("nan"), False))
            else:
                results.append((value[0], _Greedy(greedy, i)))
        return results

    def _by_ids(self, arguments: Sequence[tuple[str, str]]) -> tuple[list[Score], Ask]:
        """From a model in memory: the tokens that `lm_eval` scores."""
        backend: Any = self.backend
        pairs = [self._pair(*both) for both in arguments]
        found = backend.pairs_logprobs(pairs)

        def ask(places: list[int], n: int) -> list[bool]:
            rows = [pair for pair in (pairs[i] for i in places) if not isinstance(pair, Missing)]
            made = backend.continued([ids[:start] for ids, start in rows], n=n)
            return [new[:n] == ids[start:] for new, (ids, start) in zip(made, rows, strict=True)]

        return [v if isinstance(v, Missing) else (float(sum(v)), len(v)) for v in found], ask

    def _pair(self, context: str, continuation: str) -> tuple[list[int], int] | Missing:
        """(Ids, how many of them are the context's); behind turns all is read as `lm_eval` reads it."""
        if not context:
            return bare_pair(continuation, backend=self.backend)
        backend: Any = self.backend
        pair: tuple[list[int], int] | Missing = backend.pair_ids(
            as_prompt(context), self._continuation(context, continuation), literal=context.startswith(_TURNS)
        )
        return pair

    def _by_text(self, arguments: Sequence[tuple[str, str]]) -> tuple[list[Score], Ask]:
        """From a server: the continuation's own tokens; nothing is behind an empty context."""
        prompts = [as_prompt(context) for context, _ in arguments]
        continuations = [self._continuation(*both) for both in arguments]
        why = Missing("empty_context", "only a model in memory scores a text behind nothing", lasting=True)
        scores: list[Score] = [why] * len(prompts)
        asked = [i for i, (context, _) in enumerate(arguments) if context]
        found = self.backend.continuation_logprobs(
            [prompts[i] for i in asked], continuations=[continuations[i] for i in asked]
        )
        for i, value in zip(asked, found, strict=True):
            scores[i] = value

        def ask(places: list[int], n: int) -> list[bool]:
            made = self.backend.generate(
                [prompts[i] for i in places], config=Generation(max_new_tokens=n), seeds=[0] * len(places)
            )
            texts = ["" if isinstance(completion, Missing) else completion.text.lstrip() for completion in made]
            return [text.startswith(continuations[i].lstrip()) for i, text in zip(places, texts, strict=True)]

        return scores, ask

    def _continuation(self, context: str, continuation: str) -> str:
        """A continuation behind chat turns begins as the format begins a reply: `lm_eval` puts no space there."""
        return spaced(self.backend, as_prompt(context), continuation) if context.startswith(_TURNS) else continuation

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """One completion per request; a request that is repeated gets another seed each time."""
        groups: dict[Generation, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            groups[generation_of(request.args[1], longest=self.longest)].append(i)
        repeats: Counter[tuple[object, ...]] = Counter()
        seeds = []
        for request in requests:
            key = (request.task_name, request.doc_id, request.idx)
            seeds.append(seed_of("lm_eval", *key, repeats[key]))
            repeats[key] += 1
        results = [""] * len(requests)
        for config, places in groups.items():
            prompts = [as_prompt(requests[i].args[0]) for i in places]
            made = self.backend.generate(prompts, config=config, seeds=[seeds[i] for i in places])
            for i, completion in zip(places, made, strict=True):
                if isinstance(completion, Completion):
                    results[i] = completion.text
                else:
                    self._miss(requests[i], completion)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        """Log-likelihood of whole texts as they are, in windows of the model's context (each token predicted once)."""
        found = [rolling_logprob(request.args[0], backend=self.backend) for request in requests]
        for request, value in zip(requests, found, strict=True):
            if isinstance(value, Missing):
                self._miss(request, value)
        return [float("nan") if isinstance(value, Missing) else value for value in found]

    def _miss(self, request: Request, why: Missing) -> None:
        self.missing.setdefault((request.task_name, request.doc_id), why)

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The turns, written down for `as_prompt`: the backend's renderer sees turns, never a text made of them.

        Without `add_generation_prompt` the last turn is the assistant's, a prefill that the answer goes on from.
        """
        return _TURNS + json.dumps([dict(turn) for turn in chat_history])

    def chat_template(self, chat_template: object = False) -> str:
        """What `lm_eval` logs as the template."""
        return f"the template of {self.backend.name}"

    @property
    def tokenizer_name(self) -> str:
        """Part of `lm_eval`'s keys of cached requests: the fingerprint, so that no other model's are used."""
        return self.backend.fingerprint


def policy_lm(backend: Backend, *, longest: int = LONGEST) -> Any:
    """An `lm_eval.api.model.LM` on a backend. `longest` is the limit in tokens where a task names none.

    UserError where lm_eval is not installed.
    """
    try:
        from lm_eval.api.model import LM  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ModuleNotFoundError as error:
        raise UserError("lm_eval is not installed; pip install 'align-tradeoffs[lm-eval]'") from error

    class PolicyLM(PolicyRequests, LM):  # type: ignore[misc]
        """The requests above under the type that `simple_evaluate` asks for."""

    return PolicyLM(backend, longest=longest)


def policy_lm_of(model: Any, tokenizer: Any, *, name: str = "model", template: str = "auto", **options: Any) -> Any:
    """An `lm_eval.api.model.LM` on a Hugging Face model in memory, with or without adapters."""
    from evals.backends.transformers import TransformersBackend

    return policy_lm(TransformersBackend(model, tokenizer, name=name, template=template, **options))
