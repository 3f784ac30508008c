"""A reward model as what is evaluated: it scores responses to rendered prompts, and neither generates nor predicts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import UserError
from align.models.formats import Choice
from align.models.stored.adapters import is_adapter, is_scorer
from align.objectives.reward_model import load_reward_model
from align.objectives.scoring import head_of, score, scored_ids
from align.runs import split_head
from evals.backends.base import Completion, Generation
from evals.backends.fingerprints import format_fingerprint, model_fingerprint, tokenizer_fingerprint
from evals.backends.rendering import renderer
from evals.items import Missing, Prompt, digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NOT_A_POLICY = Missing("unsupported_generation", "a reward model scores responses and writes none", lasting=True)


def is_reward_model(path: str) -> bool:
    """Whether a run or model directory on this disk holds a sequence classifier."""
    folder = Path(split_head(path)[0]).expanduser()
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
    """Scores responses with one model, on the token ids that it was trained on (`align.objectives.scoring`)."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str,
        template: str | Choice = "auto", batch_size: int = 64, head: int = 0,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.name, self.batch_size = model.eval(), tokenizer, name, batch_size
        self.renderer, self.head = renderer(tokenizer, template=template, place=name), head
        self.can = self.renderer.can - {"prefill"}  # a begun answer would stand before a response that is whole
        self._fingerprint: str | None = None

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> RewardBackend:
        """From a run or a model directory (DIR@LABEL: one of several outputs). UserError where it is no classifier."""
        place, label = split_head(str(path))
        model, tokenizer = load_reward_model(place)
        head = head_of(model.config, label, place=place)
        return cls(model, tokenizer, name=Path(path).name, head=head, **options)

    @property
    def fingerprint(self) -> str:
        """Of weights, tokenizer, format and the output that is read; computed once."""
        if self._fingerprint is None:
            parts = model_fingerprint(self.model), tokenizer_fingerprint(self.tokenizer)
            read = format_fingerprint(self.renderer.form.format), self.model.config.pad_token_id, self.head
            self._fingerprint = digest("reward model", *parts, *read)[:16]
        return self._fingerprint

    def length(self, prompt: Prompt) -> int:
        """Tokens of a prompt (0 where it cannot be said): what batches are sorted by."""
        ids = self.encode(prompt)
        return 0 if isinstance(ids, Missing) else len(ids)

    def encode(self, prompt: Prompt) -> list[int] | Missing:
        """Token ids of a prompt; Missing where the format has no place for one of its turns."""
        if prompt.prefill:
            return Missing("unsupported_prefill", "responses are compared whole", lasting=True)
        return self.renderer.ids(prompt)

    def _reply(self, response: str) -> str:
        """A response as rows hold it; behind a chat template every character of it counts."""
        return f" {response}" if self.renderer.template == "chat" else f" {response.strip()}"

    def scores(self, prompts: Sequence[Prompt], *, responses: Sequence[str]) -> list[tuple[float, bool] | Missing]:
        """(Score, whether the text lost its beginning to the model's context) of each response, or why not."""
        from align.checks import context_of

        results: list[tuple[float, bool] | Missing] = [Missing("lost")] * len(prompts)
        rows: list[tuple[int, str, str]] = []
        for i, ids in enumerate(map(self.encode, prompts)):
            if isinstance(ids, Missing):
                results[i] = ids
            else:
                rows.append((i, self.renderer.said(prompts[i]), self._reply(responses[i])))
        scored = score(
            self.model, self.tokenizer, [said for _, said, _ in rows], [reply for *_, reply in rows],
            batch_size=self.batch_size, head=self.head,
        )  # fmt: skip
        limit = context_of(self.model)
        for (i, said, reply), value in zip(rows, scored, strict=True):
            results[i] = (value, limit is not None and len(scored_ids(self.tokenizer, said, reply)) > limit)
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
