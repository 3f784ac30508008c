"""Scoring with a trained reward model, on exactly the token ids that it was trained on (align/objectives/scoring.py).

TRL's own on-policy trainers hand a reward model a reply without its end, or with the start token twice, so that it
reads its score at a token it never saw last.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError
from align.models import load_tokenizer
from align.models.formats import formatter
from align.models.load import scorer_to_read
from align.objectives.base import as_texts
from align.objectives.scoring import as_drawn, head_of, readable_padding, sayable, score
from align.runs import split_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_reward_model(path: str, *, end: bool = True) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A reward model to read, and its tokenizer; UserError for a model that is no classifier.

    Says so where `end` is to be read and the model was trained with it as padding: transformers then read the token
    before it. Models that are trained here never are.
    """
    tokenizer = load_tokenizer(path)
    padding = tokenizer.convert_tokens_to_ids(readable_padding(tokenizer))
    model = scorer_to_read(path, pad_token_id=padding, eos_token_id=tokenizer.eos_token_id, any_heads=True)
    if not any("SequenceClassification" in name for name in model.config.architectures or ()):
        raise UserError(f"{path} is a language model, not a reward model; train one on it first")
    if end and formatter(tokenizer).closing[-1] == model.config.get_text_config().pad_token_id:
        print(
            f"note: {path} has its end token as padding, so it may never have read one in training; "
            "if so, give its objective end: false",
            file=sys.stderr,
        )
    return model.requires_grad_(False), tokenizer


class RewardModelObjective:
    """`scale * output + shift` of a reward model saved in a run, a model directory or a hub id.

    The model reads prompts in its own format (chat template, transcript, two segments), whatever the policy's is. Of a
    model with several outputs `label`, or `path@LABEL`, names one, by name or number. With `completion_ids` samples of
    the same tokenizer are read as they were drawn; a prompt that the model's template cannot say has no score (None).

    A Bradley-Terry model trained on an annotator of temperature tau learns the reward over tau, up to a constant:
    `scale=tau` returns to the annotator's units. The model is loaded at the first call and left out of pickles.
    `end=False` reads a reply without its end: for a model that was trained with its end token as padding, and so never
    to read it, as `load_reward_model` says of one.
    Raises UserError when the directory holds no classifier.
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
        label: str | int | None = None,
        end: bool = True,
    ) -> None:
        self.path, named = split_head(str(path))
        self.label = named if label is None else str(label)
        self.scale = float(scale)
        self.shift = float(shift)
        self.end = bool(end)
        self.batch_size = batch_size
        self.__name__ = name or self.label or Path(path).name
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_loaded": None}

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._loaded is None:
            self._loaded = load_reward_model(self.path, end=self.end)
        return self._loaded

    @property
    def model(self) -> PreTrainedModel:
        """The reward model itself, loaded once."""
        return self._load()[0]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The reward model's own tokenizer."""
        return self._load()[1]

    def head(self, model: PreTrainedModel) -> int:
        """The number of the output that is read; UserError where there is none of that name."""
        return head_of(model.config, self.label, place=self.path)

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        *,
        completion_ids: Sequence[Sequence[int]] | None = None,
        completion_ended: Sequence[bool] | None = None,
        **columns: object,
    ) -> list[float | None]:
        prompts, completions = as_texts(prompts, completions)
        model, tokenizer = self._load()
        replies = as_drawn(tokenizer, completions, completion_ids, ended=completion_ended)
        said = sayable(tokenizer, prompts)
        kept = [i for i, can in enumerate(said) if can]
        outputs = score(
            model, tokenizer, [prompts[i] for i in kept], [replies[i] for i in kept], batch_size=self.batch_size,
            head=self.head(model), end=self.end,
        )  # fmt: skip
        found = dict(zip(kept, outputs, strict=True))
        return [self.scale * found[i] + self.shift if i in found else None for i in range(len(prompts))]
