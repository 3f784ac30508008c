"""A causal LM in memory (with or without a PEFT adapter) as a backend: batched, length-sorted, batch-invariant.

Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from align import checks
from align.errors import UserError
from align.models.formats import Choice, Formatter
from align.models.reading import Reader, completion_logprobs, padded, positions
from align.models.sampling import ending_ids
from evals.backends.base import Completion, Generation, completion_of
from evals.backends.batching import Batcher
from evals.backends.fingerprints import format_fingerprint, model_fingerprint, tokenizer_fingerprint
from evals.backends.rendering import renderer
from evals.backends.sampling import SeededGumbel
from evals.items import Missing, Prompt, digest

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Encoded = list[int] | Missing
T = TypeVar("T")


class TransformersBackend:
    """Generates and scores with one model. With `adapters=False` a PEFT model answers as its base: the reference.

    `template` is a name, or a choice with arguments of the chat template; "auto" as the checkpoint carries it.
    `batch_size` is where automatic halving starts. `lead` is text that begins the user's last turn, whatever
    shift the prompt went through (a tagged policy's tags); `banned` are ids that are never drawn.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, template: str | Choice = "auto",
        batch_size: int = 64, adapters: bool = True, lead: str = "", banned: Sequence[int] = (),
    ) -> None:  # fmt: skip
        checks_batch(batch_size)
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.renderer = renderer(tokenizer, template=template, place=name)
        self.batcher, self.adapters = Batcher(batch_size), adapters
        self.lead, self.banned = lead, tuple(banned)
        self.can = self.renderer.can | {"logprobs"}
        self._fingerprint: str | None = None

    @classmethod
    def load(cls, path: str | Path, *, name: str | None = None, **options: Any) -> TransformersBackend:
        """From a run, a model directory or a hub id; an adapter directory stays an adapter on its base."""
        from align.models import load_tokenizer
        from align.models.load import load_to_read, load_with_adapter, to_read
        from align.models.stored.adapters import is_adapter
        from align.models.stored.precision import frozen_dtype
        from align.runs import model_dir

        source = model_dir(path)
        if is_adapter(source):
            model = to_read(load_with_adapter(source, dtype=frozen_dtype(source)))
        else:
            model = load_to_read(source)
        return cls(model, load_tokenizer(source), name=name or Path(path).name, **options)

    def reference(self, *, name: str = "reference") -> TransformersBackend:
        """The same backbone with its adapters off; UserError for a model without adapters."""
        if not hasattr(self.model, "disable_adapter"):
            raise UserError(f"{self.name} has no adapter to switch off; name the reference model itself")
        return TransformersBackend(
            self.model, self.tokenizer, name=name, template=self.renderer.choice, batch_size=self.batcher.size,
            adapters=False,
        )  # fmt: skip

    @property
    def fingerprint(self) -> str:
        """Of weights and config, whether adapters are on, tokenizer, prompt format, tags, banned tokens; made once."""
        if self._fingerprint is None:
            self._fingerprint = digest(
                model_fingerprint(self.model), self.adapters, tokenizer_fingerprint(self.tokenizer),
                format_fingerprint(self.form.format), sorted(self.ends), self.lead, self.banned,
            )[:16]  # fmt: skip
        return self._fingerprint

    @property
    def context(self) -> int | None:
        """The model's context in tokens, where its config states one."""
        return checks.context_of(self.model)

    @property
    def form(self) -> Formatter:
        """The checkpoint's prompt format."""
        return self.renderer.form

    def encode(self, prompt: Prompt) -> Encoded:
        """Token ids of a prompt; Missing where the format has no place for one of its turns."""
        return self._asked(prompt, self.renderer.ids)

    def spaced(self, prompt: Prompt, beginning: str) -> str:
        """The beginning of a reply with the space, if any, that the format puts before it."""
        found = self._asked(prompt, lambda led: self.renderer.spaced(led, beginning))
        return beginning if isinstance(found, Missing) else found

    def _asked(self, prompt: Prompt, work: Callable[[Prompt], T | Missing]) -> T | Missing:
        """What `work` makes of the prompt with its lead."""
        led = prompt.led_by(self.lead) if self.lead else prompt
        if isinstance(led, Missing):
            return led
        try:
            return work(led)
        except Exception as error:  # the type that tokenizers raises
            if "Missing [UNK] token" not in str(error):
                raise
            raise UserError(
                f"{self.name}: its tokenizer has no token for a word of a prompt, and none for unknown words; try "
                "--template plain, or give prompts in its own words"
            ) from error

    def length(self, prompt: Prompt) -> int:
        """Tokens of a prompt (0 where it cannot be rendered): what batches are sorted by."""
        ids = self.encode(prompt)
        return 0 if isinstance(ids, Missing) else len(ids)

    def _fits(self, ids: Encoded, *, more: int) -> Encoded:
        if isinstance(ids, Missing):
            return ids
        if not ids:
            return Missing("empty_prompt", "the prompt has no token", lasting=True)
        if self.context is not None and len(ids) + more > self.context:
            words = f"{len(ids)} tokens and {more} more do not fit in {self.context}"
            return Missing("context", words, lasting=True)
        return ids

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inference without gradients, adapters on or off as this backend has them."""
        import torch

        off = nullcontext() if self.adapters else self.model.disable_adapter()
        with torch.inference_mode(), off:
            yield

    def generate(
        self, prompts: Sequence[Prompt], *, config: Generation, seeds: Sequence[int]
    ) -> list[Completion | Missing]:
        """One completion per prompt, the same whatever else is in the batch; Missing where a prompt does not fit."""
        return self.completed([self.encode(prompt) for prompt in prompts], config=config, seeds=seeds)

    def completed(
        self, rows: Sequence[Encoded], *, config: Generation, seeds: Sequence[int]
    ) -> list[Completion | Missing]:
        """`generate` for ids."""
        encoded = [self._fits(ids, more=config.max_new_tokens) for ids in rows]
        places = [i for i, ids in enumerate(encoded) if not isinstance(ids, Missing)]
        fitting: list[list[int]] = [ids for ids in encoded if not isinstance(ids, Missing)]
        values = self.batcher.run(
            [len(ids) for ids in fitting],
            work=lambda chosen: self._generate(
                [fitting[i] for i in chosen], config, [seeds[places[i]] for i in chosen]
            ),
        )
        results: list[Completion | Missing] = [ids if isinstance(ids, Missing) else Missing("lost") for ids in encoded]
        for place, new in zip(places, values, strict=True):
            results[place] = completion_of(new, form=self.form, ends=self.ends, stop=config.stop)
        return results

    def _generate(self, rows: Sequence[list[int]], config: Generation, seeds: Sequence[int]) -> list[list[int]]:
        from transformers import GenerationConfig, LogitsProcessorList

        ids_BT, mask_BT = self.padded(rows, left=True)
        noise = [SeededGumbel(seeds, temperature=config.temperature)] if config.temperature > 0 else []
        settings = GenerationConfig(
            max_new_tokens=config.max_new_tokens, do_sample=False, num_beams=1, repetition_penalty=1.0,
            pad_token_id=self.tokenizer.pad_token_id, eos_token_id=self.ends, bos_token_id=self.tokenizer.bos_token_id,
            suppress_tokens=list(self.banned) or None, stop_strings=list(config.stop) or None,
        )  # fmt: skip
        with self.active(), _plain_generation(self.model):
            out_BT = self.model.generate(
                input_ids=ids_BT, attention_mask=mask_BT, generation_config=settings,
                logits_processor=LogitsProcessorList(noise), tokenizer=self.tokenizer if config.stop else None,
            )  # fmt: skip
        new_BT: list[list[int]] = out_BT[:, ids_BT.shape[1] :].tolist()
        return new_BT

    def continued(self, rows: Sequence[list[int]], *, n: int) -> list[list[int]]:
        """The `n` most likely tokens behind each row of ids, one after the other; padded behind an end."""
        greedy = Generation(n)
        return self.batcher.run(
            [len(ids) for ids in rows],
            work=lambda chosen: self._generate([rows[i] for i in chosen], greedy, [0] * len(chosen)),
        )

    @property
    def ends(self) -> list[int]:
        """Every token that ends an answer: the prompt format's, and those the checkpoint's generation config lists."""
        return ending_ids(self.model, self.tokenizer)

    def drawn_ids(self, prompt: Prompt, completion: Completion) -> Encoded:
        """The ids of a completion as they were drawn, its end too; of a text alone those that it is encoded to."""
        if completion.ids:
            return list(completion.ids)
        ids = self._asked(prompt, lambda led: self.renderer.reply(led, completion.text))
        return [*ids, self.form.format.end] if completion.finished and not isinstance(ids, Missing) else ids

    def padded(self, rows: Sequence[list[int]], *, left: bool) -> tuple[Tensor, Tensor]:
        """(B, T) token ids of rows of unequal length and the mask of what is theirs, on the model's device."""
        side, pad_id = "left" if left else "right", self.tokenizer.pad_token_id
        batch = padded([(row, ()) for row in rows], pad_id=pad_id, side=side, device=self.model.device)
        return batch.ids_BT, batch.attend_BT

    def pair_ids(
        self, prompt: Prompt, continuation: str, *, literal: bool = False
    ) -> tuple[list[int], int] | Missing:
        """(Token ids of prompt and continuation, how many of them are the prompt's); see `Renderer.pair`."""
        pair = self._asked(prompt, lambda led: self.renderer.pair(led, continuation, literal=literal))
        if isinstance(pair, Missing):
            return pair
        head, tail = pair
        if not head or not tail:
            return Missing("empty_continuation", "nothing follows the prompt, or nothing precedes it", lasting=True)
        fitting = self._fits([*head, *tail], more=0)
        return fitting if isinstance(fitting, Missing) else (fitting, len(head))

    def continuation_logprobs(
        self, prompts: Sequence[Prompt], *, continuations: Sequence[str], end: bool = False
    ) -> list[tuple[float, int] | Missing]:
        """(Sum of log-probabilities in nats, number of tokens) of each continuation; with `end` its end token too."""
        values = self.token_logprobs(prompts, continuations=continuations, end=end)
        return [v if isinstance(v, Missing) else (float(sum(v)), len(v)) for v in values]

    def token_logprobs(
        self, prompts: Sequence[Prompt], *, continuations: Sequence[str], end: bool = False, left: bool = False
    ) -> list[list[float] | Missing]:
        """Log-probability of every token of each continuation, in nats. `left` pads on the left (same numbers)."""
        pairs = [self.pair_ids(p, c) for p, c in zip(prompts, continuations, strict=True)]
        if end:
            pairs = [p if isinstance(p, Missing) else ([*p[0], self.form.format.end], p[1]) for p in pairs]
        return self.pairs_logprobs(pairs, left=left)

    def pairs_logprobs(
        self, pairs: Sequence[tuple[list[int], int] | Missing], *, left: bool = False
    ) -> list[list[float] | Missing]:
        """The same of (ids, how many of them are the prompt's); what is Missing stays Missing."""
        places = [i for i, pair in enumerate(pairs) if not isinstance(pair, Missing)]
        rows = [pair for pair in pairs if not isinstance(pair, Missing)]
        found = self.batcher.run(
            [len(ids) for ids, _ in rows], work=lambda chosen: self._token_logprobs([rows[i] for i in chosen], left)
        )
        results: list[list[float] | Missing] = [p if isinstance(p, Missing) else Missing("lost") for p in pairs]
        for place, values in zip(places, found, strict=True):
            results[place] = values
        return results

    def _token_logprobs(self, rows: Sequence[tuple[list[int], int]], left: bool) -> list[list[float]]:
        reader = Reader(
            pad_id=self.tokenizer.pad_token_id, batch_size=len(rows), side="left" if left else "right",
            banned=self.banned,
        )  # fmt: skip
        with self.active():
            return completion_logprobs(self.model, [(ids[:start], ids[start:]) for ids, start in rows], reader=reader)

    def logprobs(
        self, rows: Sequence[list[int]], *, left: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, T, V) float32 log-probabilities of the next token at every position, the padded ids, and the mask."""
        import torch

        ids_BT, mask_BT = self.padded(rows, left=left)
        with self.active():
            logits_BTV = self.model(
                input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions(mask_BT)
            ).logits.float()
            if self.banned:
                logits_BTV[..., list(self.banned)] = -float("inf")
            return torch.log_softmax(logits_BTV, -1), ids_BT, mask_BT


def checks_batch(batch_size: int) -> None:
    """UserError unless the batch size is a whole number of at least 1."""
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")


@contextmanager
def _plain_generation(model: PreTrainedModel) -> Iterator[None]:
    """Without the checkpoint's own sampling habits, which `generate` would merge into the settings given."""
    from transformers import GenerationConfig

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept = inner.generation_config
    inner.generation_config = GenerationConfig(eos_token_id=kept.eos_token_id, pad_token_id=kept.pad_token_id)
    try:
        yield
    finally:
        inner.generation_config = kept
