"""Scoring with a trained reward model, on exactly the token ids that it was trained on.

TRL's RewardTrainer tokenizes prompt + completion + end token as one text, while TRL's own on-policy trainers hand a
reward model the text without the end token, so that it reads its score at a token it never saw last. This objective
appends the end token once. Legend: B texts, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError
from align.models import context_of, load_tokenizer
from align.models.load import scorer_to_read
from align.models.reading import evaluated, padded
from align.objectives.base import check_texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def scored_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> list[int]:
    """The ids RewardTrainer makes of this pair: one text, one end token, the tokenizer's own special tokens kept."""
    end = tokenizer.eos_token
    text = prompt + completion + ("" if completion.endswith(end) else end)
    return list(tokenizer(text)["input_ids"])


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    batch_size: int = 64,
) -> list[float]:
    """The model's output per pair, in eval mode (the mode is restored), texts sorted by length, equal pairs read once.

    A text longer than the model's positions loses its beginning, so that the completion and its end are what is scored.
    """
    import torch

    limit = context_of(model)
    pairs = list(zip(prompts, completions, strict=True))
    distinct = list(dict.fromkeys(pairs))
    ids = [scored_ids(tokenizer, prompt, completion)[-(limit or 0) :] for prompt, completion in distinct]
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    scores: dict[tuple[str, str], float] = {}
    with evaluated(model), torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            rows = [(ids[i], ()) for i in chosen]
            batch = padded(rows, pad_id=model.config.pad_token_id, device=model.device)
            logits_B1 = model(**batch.inputs).logits
            for i, value in zip(chosen, logits_B1[:, 0].float().tolist(), strict=True):
                scores[distinct[i]] = value
    return [scores[pair] for pair in pairs]


class RewardModelObjective:
    """`scale * output + shift` of a reward model saved in a run, a model directory or a hub id.

    A Bradley-Terry model trained on an annotator of temperature tau learns the reward over tau, up to a constant:
    `scale=tau` returns to the annotator's units. The model is loaded at the first call and left out of pickles.
    Raises UserError when the directory holds no one-output classifier.
    """

    learned = True  # from data: rows that it trains are reported as such

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        scale: float = 1.0,
        shift: float = 0.0,
        batch_size: int = 64,
    ) -> None:
        self.path = str(path)
        self.scale = float(scale)
        self.shift = float(shift)
        self.batch_size = batch_size
        self.__name__ = name or Path(path).name
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_loaded": None}

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._loaded is None:
            tokenizer = load_tokenizer(self.path)
            model = scorer_to_read(self.path, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
            if not any("SequenceClassification" in name for name in model.config.architectures or ()):
                raise UserError(f"{self.path} is a language model, not a reward model; train one on it first")
            self._loaded = (model.requires_grad_(False), tokenizer)
        return self._loaded

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float | None]:
        check_texts(prompts, completions)
        model, tokenizer = self._load()
        outputs = score(model, tokenizer, prompts, completions, batch_size=self.batch_size)
        return [self.scale * output + self.shift for output in outputs]
