"""What every path of the evaluation lets a model read, beside what its tokenizer says of the same conversation.

`evaluation_paths(style, folder)` asks one conversation on each path of one tokenizer style, and catches the token ids
at the model itself. The wanted ids are `apply_chat_template(tokenize=True)`'s, without a template the tokenizer's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from transformers import AutoTokenizer

from align.models import load_model, load_tokenizer
from align.turns import Turn, transcript
from evals.attribution import reading as attribution
from evals.attribution.from_cells import training_states
from evals.attribution.reading import last_hidden_states, read_prompts
from evals.backends.base import Generation
from evals.backends.transformers import TransformersBackend
from evals.bridges.policy_lm import PolicyRequests
from evals.items import Item, Prompt
from evals.measure.cells import Cell, ask
from evals.measure.measurements import Choices, CompletionOf, RefusalMargin
from evals.measure.model_measurements import AgainstReference
from evals.shifts.base import Shift
from factories.chat_styles import BY_NAME, chat_checkpoint

TURNS = (Turn("user", "Is the tea hot?"), Turn("assistant", "It is."), Turn("user", "Then wait in the end"))
CHOICES = ("the sea", "a tree")
OPENINGS = RefusalMargin(("I'm sorry",), ("Sure",))


@dataclass(frozen=True)
class Read:
    """One path: the ids that reached the model, and the ids that the tokenizer gives for the same conversation."""

    path: str
    found: list[list[int]]
    wanted: list[list[int]]

    @property
    def right(self) -> bool:
        return sorted(self.found) == sorted(self.wanted)  # a batch is read the longest first


def evaluation_paths(style: str, folder: Path) -> list[Read]:
    """One entry for each path of the evaluation on a tiny checkpoint of that style, which is made in `folder`."""
    checkpoint = chat_checkpoint(style, folder / style)
    backend = TransformersBackend(load_model(checkpoint), load_tokenizer(checkpoint), name=style)
    prompt = Prompt(tuple(Turn(turn.role, turn.content) for turn in TURNS))
    truth = Truth(style, checkpoint)
    head = truth.asked(TURNS)
    item = Item("i", TURNS[-1].content, choices=CHOICES, target=0, before=prompt.turns[:-1])
    (cell,) = ask([item], suite="s", shifts=[Shift("none", "none", "none", lambda text, rng: Prompt.user(text))])
    openings, choices = ([truth.begun(TURNS, text) for text in texts] for texts in (("I'm sorry", "Sure"), CHOICES))

    def seen(work: Callable[[], object]) -> list[list[int]]:
        with reading(backend.model) as rows:
            work()
        return rows

    def first(work: Callable[[], object]) -> list[list[int]]:
        return seen(work)[:1]

    config = Generation(2)
    found = [
        Read("suites", first(lambda: CompletionOf(config).measure([cell], backend=backend)), [head]),
        Read("refusal margin", seen(lambda: OPENINGS.measure([cell], backend=backend)), openings),
        Read("choices", seen(lambda: Choices().measure([cell], backend=backend)), choices),
        Read("openings behind one cache", _behind_cache(backend, prompt), openings),
        Read("hidden states", seen(lambda: last_hidden_states(backend, [prompt], layer=1)), [head]),
        Read("training prompts", seen(lambda: training_states(backend, [transcript(TURNS)], layer=1)), [head]),
        Read("against the reference", *_against_reference(backend, cell, head)),
        Read("lm_eval, choices", seen(lambda: _asked_by_lm_eval(backend, TURNS, CHOICES)), choices),
        Read("lm_eval, text", first(lambda: _generated_by_lm_eval(backend, TURNS)), [head]),
    ]
    return [*found, Read("vLLM", _vllm(checkpoint, prompt, "Sure"), [head, openings[1]])]


# ------------------------------------------------------------------------------------------------------------ the truth


class Truth:
    """A style's own tokenizer, as transformers loads it."""

    def __init__(self, style: str, folder: Path) -> None:
        self.style, self.tokenizer = BY_NAME[style], AutoTokenizer.from_pretrained(folder)
        self.end = self.tokenizer.convert_tokens_to_ids(self.style.end)

    def asked(self, turns: Sequence[Turn]) -> list[int]:
        """The conversation, open for a reply."""
        if self.style.template is None:
            return list(self.tokenizer(transcript(turns))["input_ids"])
        return self._rendered(turns, add_generation_prompt=True)

    def begun(self, turns: Sequence[Turn], reply: str) -> list[int]:
        """The conversation with the beginning of a reply."""
        if self.style.template is None:
            return list(self.tokenizer(f"{transcript(turns)} {reply}")["input_ids"])
        ids = self._rendered([*turns, Turn("assistant", reply)])
        return ids[: len(ids) - 1 - ids[::-1].index(self.end)]

    def _rendered(self, turns: Sequence[Turn], **how: bool) -> list[int]:
        messages = [turn.message for turn in turns]
        found = self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **how)
        return list(found["input_ids"])


# -------------------------------------------------------------------------------------------------------------- reading


@contextmanager
def reading(model: torch.nn.Module) -> Iterator[list[list[int]]]:
    """The rows that the model is called with in the block, without padding."""
    rows: list[list[int]] = []

    def caught(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask", torch.ones_like(kwargs["input_ids"]))
        for ids, real in zip(kwargs["input_ids"].tolist(), mask.tolist(), strict=True):
            rows.append([token for token, one in zip(ids, real[-len(ids) :], strict=True) if one])

    hook = model.register_forward_pre_hook(caught, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()


def _behind_cache(backend: TransformersBackend, prompt: Prompt) -> list[list[int]]:
    """The openings as attribution reads them: the prompt, and behind its cache what follows it in each."""
    rows: list[list[int]] = []
    kept = attribution._behind

    def caught(one: TransformersBackend, head: list[int], tails: Sequence[Sequence[int]], *, layer: int) -> Any:
        rows.extend([*head, *tail] for tail in tails)
        return kept(one, head, tails, layer=layer)

    attribution._behind = caught
    try:
        read_prompts(backend, [prompt], layer=1, openings=OPENINGS)
    finally:
        attribution._behind = kept
    return rows


def _against_reference(backend: TransformersBackend, cell: Cell, head: list[int]) -> tuple[list[list[int]], ...]:
    """A completion of four drawn tokens, read by the policy and by its reference: the very ids that were drawn."""
    found = CompletionOf(Generation(4)).measure([cell], backend=backend)[0]
    with reading(backend.model) as drawn:
        backend.model.generate = _without_cache(backend.model.generate)
        backend.generate([cell.question], config=Generation(4), seeds=[0])
    with reading(backend.model) as read:
        AgainstReference(backend).measure([cell.measured("completion", found)], backend=backend)
    return [row[: len(drawn[-1])] for row in read], [drawn[-1]] * 2


def _without_cache(generate: Callable[..., Any]) -> Callable[..., Any]:
    """`generate` that shows the model the whole row at every step."""

    def whole(**options: Any) -> Any:
        options["generation_config"].use_cache = False
        return generate(**options)

    return whole


def _asked_by_lm_eval(backend: TransformersBackend, turns: Sequence[Turn], choices: Sequence[str]) -> None:
    """As `lm_eval` asks with its chat template on: turns, and choices without a delimiter."""
    requests = PolicyRequests(backend)
    context = requests.apply_chat_template([turn.message for turn in turns])
    requests.loglikelihood([_request(context, choice) for choice in choices])


def _generated_by_lm_eval(backend: TransformersBackend, turns: Sequence[Turn]) -> None:
    requests = PolicyRequests(backend)
    context = requests.apply_chat_template([turn.message for turn in turns])
    requests.generate_until([_request(context, {"max_gen_toks": 2})])


def _request(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments, task_name="t", doc_id=0, idx=0)


def _vllm(checkpoint: Path, prompt: Prompt, opening: str) -> list[list[int]]:
    """The ids that vLLM is given to continue, and to score; a stand-in takes its place."""
    from evals.backends.vllm import VLLMBackend

    asked: list[list[int]] = []

    class LLM:
        def __init__(self, **options: Any) -> None:
            pass

        def generate(self, prompts: Any, params: Any, **how: Any) -> list[Any]:
            asked.extend(prompt["prompt_token_ids"] for prompt in prompts)
            answer = SimpleNamespace(token_ids=[], text="", finish_reason="stop")
            return [SimpleNamespace(outputs=[answer], prompt_logprobs=None) for _ in prompts]

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, lambda **options: SimpleNamespace(**options)  # type: ignore[attr-defined]
    kept = sys.modules.get("vllm")
    sys.modules["vllm"] = module
    try:
        backend = VLLMBackend(checkpoint)
        backend.generate([prompt], config=Generation(2), seeds=[0])
        backend.continuation_logprobs([prompt], continuations=[backend.spaced(prompt, opening)])
    finally:
        if kept is None:
            del sys.modules["vllm"]
        else:
            sys.modules["vllm"] = kept
    return asked
