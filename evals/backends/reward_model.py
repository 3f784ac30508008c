"""A reward model as what is evaluated: it scores responses to rendered prompts, and neither generates nor predicts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import UserError
from align.models.stored.adapters import is_adapter, is_scorer
from evals.backends.base import Completion, Generation
from evals.backends.fingerprints import tokenizer_fingerprint, weights_fingerprint
from evals.backends.rendering import renderer
from evals.items import Missing, Prompt, digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NOT_A_POLICY = Missing("unsupported_generation", "a reward model scores responses and writes none", lasting=True)


def is_reward_model(path: str) -> bool:
    """Whether a run or model directory on this disk holds a sequence classifier."""
    folder = Path(path).expanduser()
    if (folder / "model").is_dir():
        folder = folder / "model"
    if is_adapter(folder):
        return is_scorer(folder)
    file = folder / "config.json"
    if not file.is_file():  # a family of policies, a hub id: the loader of policies reports what is wrong
        return False
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}); the model directory is damaged") from error
    return any("SequenceClassification" in str(name) for name in config.get("architectures") or ())


class RewardBackend:
    """Scores responses with one model, on the token ids that it was trained on (`align.objectives.reward_model`)."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, template: str = "auto",
        batch_size: int = 64,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.name, self.batch_size = model.eval(), tokenizer, name, batch_size
        self.renderer = renderer(tokenizer, template=template)
        self.can = self.renderer.can - {"prefill"}  # a begun answer would stand before a response that is whole
        self._fingerprint: str | None = None

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> RewardBackend:
        """From a run or a model directory. UserError where it holds no one-output classifier."""
        from align.models import load_tokenizer
        from align.models.load import scorer_to_read

        tokenizer = load_tokenizer(path)
        model = scorer_to_read(path, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
        return cls(model, tokenizer, name=Path(path).name, **options)

    @property
    def fingerprint(self) -> str:
        """Of weights, tokenizer and template; computed once."""
        if self._fingerprint is None:
            parts = weights_fingerprint(self.model), tokenizer_fingerprint(self.tokenizer), self.renderer.template
            self._fingerprint = digest("reward model", *parts)[:16]
        return self._fingerprint

    def length(self, prompt: Prompt) -> int:
        """Tokens of a prompt (0 where it cannot be rendered): what batches are sorted by."""
        text = self._text(prompt)
        return 0 if isinstance(text, Missing) else len(self.tokenizer(text)["input_ids"])

    def _text(self, prompt: Prompt) -> str | Missing:
        if prompt.prefill:
            return Missing("unsupported_prefill", "responses are compared whole", lasting=True)
        return self.renderer.text(prompt)

    def scores(self, prompts: Sequence[Prompt], *, responses: Sequence[str]) -> list[tuple[float, bool] | Missing]:
        """(Score, whether the text lost its beginning to the model's context) of each response, or why not."""
        from align.checks import context_of
        from align.objectives.reward_model import score, scored_ids

        texts = [self._text(prompt) for prompt in prompts]
        results: list[tuple[float, bool] | Missing] = [t if isinstance(t, Missing) else Missing("lost") for t in texts]
        rows = [(i, text, f" {responses[i].strip()}") for i, text in enumerate(texts) if not isinstance(text, Missing)]
        scored = score(
            self.model, self.tokenizer, [text for _, text, _ in rows], [response for *_, response in rows],
            batch_size=self.batch_size,
        )  # fmt: skip
        limit = context_of(self.model)
        for (i, text, response), value in zip(rows, scored, strict=True):
            cut = limit is not None and len(scored_ids(self.tokenizer, text, response)) > limit
            results[i] = (value, cut)
        return results

    def generate(
        self, prompts: Sequence[Prompt], *, config: Generation, seeds: Sequence[int]
    ) -> list[Completion | Missing]:
        """Missing: it writes nothing."""
        return [NOT_A_POLICY] * len(prompts)

    def continuation_logprobs(
        self, prompts: Sequence[Prompt], *, continuations: Sequence[str]
    ) -> list[tuple[float, int] | Missing]:
        """Missing: it predicts nothing."""
        return [NOT_A_POLICY] * len(prompts)
