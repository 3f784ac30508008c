"""vLLM as a backend: a thin layer over `vllm.LLM.generate` on token ids, those of the checkpoint's prompt format.

Needs the extra `vllm` and a GPU. NOT RUN on a real vLLM by this repository: the tests use a stand-in module with the
few calls made here (LLM, generate, SamplingParams with prompt_logprobs, LoRARequest), written after vLLM's
documentation. The tokenizer is our own, so that vLLM neither renders nor decodes. Check a new vLLM against the
transformers backend on a few prompts first.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.models import load_tokenizer
from align.models.formats import Choice
from evals.backends.base import Completion, Generation, completion_of
from evals.backends.fingerprints import format_fingerprint, tokenizer_fingerprint
from evals.backends.rendering import renderer
from evals.items import Json, Missing, Prompt, digest

PLACING = ("tensor_parallel_size", "pipeline_parallel_size", "gpu_memory_utilization", "enforce_eager")  # of the work
NEVER = -100.0  # the lowest bias of a logit that vLLM takes
WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")


def folder_fingerprint(folder: str | Path) -> str:
    """First 16 hex digits over name and bytes of every weights file, and of every JSON file, of a model folder.

    UserError where there are no weights: over a hub id nothing would notice a changed model.
    """
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix in (*WEIGHTS, ".json") and path.is_file())
    if not any(path.suffix in WEIGHTS for path in files):
        raise UserError(f"{folder}: no weights in this folder; vLLM models are given as a local directory")
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            inner = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder)}={inner}\n".encode())
    return total.hexdigest()[:16]


class VLLMBackend:
    """A model directory (with a LoRA adapter directory where one is given) served by vLLM in this process.

    The prompt format is the adapter's, where its folder has a tokenizer. `lead` and `banned` are a tagged policy's, as
    in TransformersBackend; with `banned` there are no log-probabilities: vLLM's leave the banned tokens their share.
    `context` bounds prompt and answer together in
    tokens; a longer one is Missing("context"), since vLLM would end the whole batch for it. `engine` are further
    arguments of `vllm.LLM`. UserError where vLLM is not installed.
    """

    def __init__(
        self, model: str | Path, *, adapter: str | Path | None = None, name: str | None = None,
        template: str | Choice = "auto", context: int = 4096, lead: str = "", banned: Sequence[int] = (), **engine: Any,
    ) -> None:  # fmt: skip
        try:
            vllm = importlib.import_module("vllm")
        except ImportError:
            raise UserError("the vLLM backend needs vllm: pip install 'align-tradeoffs[vllm]'") from None
        self._weights = [folder_fingerprint(path) for path in (model, adapter) if path is not None]
        self._engine = {name: str(value) for name, value in engine.items() if name not in PLACING}
        self._vllm, self.context, self.name = vllm, context, name or Path(model).name
        self.lead, self.banned = lead, tuple(banned)
        self._lora = _lora(adapter)
        self._llm = vllm.LLM(model=str(model), max_model_len=context, enable_lora=adapter is not None, **engine)
        own = adapter is not None and (Path(adapter) / "tokenizer_config.json").is_file()
        self._tokenizer = load_tokenizer(adapter if own and adapter is not None else model)
        self.renderer = renderer(self._tokenizer, template=template, place=self.name)
        self._ends = list(self.renderer.form.format.ends)
        self.can = self.renderer.can | (set() if banned else {"logprobs"})

    @property
    def fingerprint(self) -> str:
        """Of the files of model and adapter, tokenizer, prompt format, context, the engine's arguments and tags."""
        known = tokenizer_fingerprint(self._tokenizer), format_fingerprint(self.renderer.form.format)
        tags = [self.lead, self.banned] if self.lead or self.banned else []
        return digest("vllm", self._weights, *known, self.context, self._engine, *tags)[:16]

    def encode(self, prompt: Prompt) -> list[int] | Missing:
        """Token ids of a prompt with its lead; Missing where the format has no place for one of its turns."""
        led = self._led(prompt)
        return led if isinstance(led, Missing) else self.renderer.ids(led)

    def _led(self, prompt: Prompt) -> Prompt | Missing:
        return prompt.led_by(self.lead) if self.lead else prompt

    def length(self, prompt: Prompt) -> int:
        """Tokens of a prompt (0 where the format cannot say it): what batches are sorted by."""
        ids = self.encode(prompt)
        return 0 if isinstance(ids, Missing) else len(ids)

    def spaced(self, prompt: Prompt, beginning: str) -> str:
        """The beginning of a reply with the space, if any, that the format puts before it."""
        return self.renderer.spaced(prompt, beginning)

    def _fits(self, ids: list[int], *, more: int) -> list[int] | Missing:
        if not ids:
            return Missing("empty_prompt", "the prompt has no token", lasting=True)
        if len(ids) + more > self.context:
            words = f"{len(ids)} tokens and {more} more do not fit in {self.context}"
            return Missing("context", words, lasting=True)
        return ids

    def _run(self, rows: Sequence[list[int]], params: Sequence[Any]) -> list[Any]:
        if not rows:
            return []
        prompts = [{"prompt_token_ids": ids} for ids in rows]
        return list(self._llm.generate(prompts, list(params), use_tqdm=False, lora_request=self._lora))

    def generate(
        self, prompts: Sequence[Prompt], *, config: Generation, seeds: Sequence[int]
    ) -> list[Completion | Missing]:
        """One completion per prompt; 31 bits of its seed where something is drawn."""
        results: list[Any] = []
        for prompt in prompts:
            ids = self.encode(prompt)
            results.append(ids if isinstance(ids, Missing) else self._fits(ids, more=config.max_new_tokens))
        places = [i for i, ids in enumerate(results) if not isinstance(ids, Missing)]
        params = [self._params(config, seed) for seed in _paired(prompts, seeds)]
        outputs = self._run([results[i] for i in places], [params[i] for i in places])
        for i, output in zip(places, outputs, strict=True):
            new = list(output.outputs[0].token_ids)
            results[i] = completion_of(new, form=self.renderer.form, ends=self._ends, stop=config.stop)
        return results

    def _params(self, config: Generation, seed: int) -> Any:
        drawn: Json = {"seed": seed & 0x7FFFFFFF} if config.temperature > 0 else {}
        if self.banned:
            drawn["logit_bias"] = dict.fromkeys(self.banned, NEVER)
        return self._vllm.SamplingParams(
            max_tokens=config.max_new_tokens, temperature=config.temperature, stop=list(config.stop) or None,
            stop_token_ids=self._ends, **drawn,
        )  # fmt: skip

    def continuation_logprobs(
        self, prompts: Sequence[Prompt], *, continuations: Sequence[str]
    ) -> list[tuple[float, int] | Missing]:
        """From prompt_logprobs, on the ids of prompt and continuation that every backend reads."""
        if self.banned:
            why = Missing("unsupported_logprobs", "vLLM's log-probabilities count tokens that are banned", lasting=True)
            return [why] * len(prompts)
        pairs = [self._pair(p, c) for p, c in zip(prompts, continuations, strict=True)]
        places = [i for i, pair in enumerate(pairs) if not isinstance(pair, Missing)]
        rows = [pair for pair in pairs if not isinstance(pair, Missing)]
        params = self._vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
        outputs = self._run([ids for ids, _ in rows], [params] * len(rows))
        results: list[Any] = list(pairs)
        for i, (ids, start), output in zip(places, rows, outputs, strict=True):
            results[i] = _summed(output.prompt_logprobs, ids, start)
        return results

    def _pair(self, prompt: Prompt, continuation: str) -> tuple[list[int], int] | Missing:
        led = self._led(prompt)
        pair = led if isinstance(led, Missing) else self.renderer.pair(led, continuation)
        if isinstance(pair, Missing):
            return pair
        head, tail = pair
        if not head or not tail:
            return Missing("empty_continuation", "nothing follows the prompt, or nothing precedes it", lasting=True)
        fits = self._fits([*head, *tail], more=1)
        return fits if isinstance(fits, Missing) else (fits, len(head))


def _summed(per_token: Any, ids: Sequence[int], start: int) -> tuple[float, int] | Missing:
    """Sum over the tokens from `start` on; entry t of vLLM's list maps token ids at place t to their Logprob."""
    drawn = [(per_token[t] or {}).get(ids[t]) for t in range(start, len(ids))] if per_token else []
    chosen = [entry for entry in drawn if entry is not None]
    if not drawn or len(chosen) < len(drawn):
        return Missing("malformed", "vLLM gave no log-probability for a token of the continuation")
    return float(sum(entry.logprob for entry in chosen)), len(chosen)


def _paired(prompts: Sequence[Prompt], seeds: Sequence[int]) -> Sequence[int]:
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts with {len(seeds)} seeds: one each")
    return seeds


def _lora(adapter: str | Path | None) -> Any:
    if adapter is None:
        return None
    return importlib.import_module("vllm.lora.request").LoRARequest("adapter", 1, str(adapter))
