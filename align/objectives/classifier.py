"""A sequence classifier's probability of one label as an objective: `tox=classifier:DIR@LABEL`, in [0, 1].

Where LABEL is what nobody wants, `-classifier:DIR@LABEL` turns the sign. A reward model's raw output is `DIR@LABEL`
without the kind (align/objectives/reward_model.py), which reads the conversation in the model's own format.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from align.functional.thinking import answer_of
from align.models import context_of
from align.models.reading import evaluated, padded
from align.objectives.base import Objective
from align.objectives.by_content import Scores, objectives_of
from align.objectives.reward_model import load_reward_model
from align.objectives.scoring import head_of, segments
from align.runs import split_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ClassifierScorer:
    """P(label) of the reply, or with `pair` of prompt and reply as the two texts that the classifier was trained on.

    The softmax over the outputs; the sigmoid of one, where there is one alone or the config says that several may hold
    (`multi_label_classification`). A longer text loses its end. Reasoning that opens a reply is passed over. The model
    is loaded at the first call and left out of pickles. UserError where the directory holds no classifier.
    """

    learned = True
    parts: tuple[str, ...] = ("probability",)
    columns: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def __init__(self, path: str, *, pair: bool = False, batch_size: int = 64) -> None:
        self.path, self.label = split_head(path)
        self.pair, self.batch = bool(pair), batch_size
        self.identity = "classifier"
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_loaded": None}

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[Scores]:
        import torch

        if self._loaded is None:
            self._loaded = load_reward_model(self.path, end=False)
        model, tokenizer = self._loaded
        head, replies = head_of(model.config, self.label, place=self.path), [answer_of(text) for text in completions]
        texts = [list(prompts), replies] if self.pair else [replies]
        read = tokenizer(*texts, truncation=True, max_length=context_of(model) or 10**6)["input_ids"]
        with evaluated(model), torch.inference_mode():
            pad_id = model.config.get_text_config().pad_token_id
            batch = padded([(list(ids), ()) for ids in read], pad_id=pad_id, device=model.device)
            types = segments(batch.ids_BT, tokenizer=tokenizer, config=model.config) if self.pair else {}
            logits_BK = model(**batch.inputs, **types).logits.float()
        alone = logits_BK.shape[1] == 1 or model.config.problem_type == "multi_label_classification"
        found_BK = logits_BK.sigmoid() if alone else logits_BK.softmax(-1)
        return [(value,) for value in found_BK[:, head].tolist()]

    def check(self, table: object) -> None:
        """A classifier reads no column."""


def classifier(argument: str, *, name: str, pair: bool = False, batch_size: int = 64) -> list[Objective]:
    """The objective of `DIR@LABEL` (a run, a directory or a hub id); LABEL may be left out of a single output."""
    return objectives_of(ClassifierScorer(argument, pair=pair, batch_size=batch_size), name=name)
