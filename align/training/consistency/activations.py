"""Consistency of activations (ACT): states at the shifted prompt's last tokens pulled to those at the plain prompt's.

Legend: L layers, B pairs of prompts, T tokens, P positions, H hidden units. The last layer's state is read behind the
model's final norm, as transformers gives it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from align.functional.consistency import activation_distance, carried_states, common_suffix
from align.models.load import load_to_read
from align.models.reading import padded, positions
from align.training.consistency.settings import ConsistencyConfig, Models, PromptPair
from align.training.rows import Encoder, require_any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

IdRow = Mapping[str, list[int]]  # plain and shifted: ids of the prompts; count: positions that are compared, in a list


def matching_rows(
    pairs: Sequence[PromptPair], *, encoder: Encoder, positions: int | None
) -> list[dict[str, list[int]]]:
    """Ids of both prompts and how many of their last positions are compared; pairs without a common end are counted."""
    rows = []
    for pair in pairs:
        sides = [encoder(text, ("", ())) for text in (pair.plain, pair.shifted)]
        plain, shifted = (None if side is None else side.prompt for side in sides)
        if plain is None or shifted is None:
            continue
        count = common_suffix(plain, shifted)
        if count == 0:
            encoder.lost["dropped_by_no_common_end"] += 1
            continue
        kept = count if positions is None else min(count, positions)
        rows.append({"plain": plain, "shifted": shifted, "count": [kept]})
    return rows


def collated(rows: Sequence[IdRow], *, pad_id: int) -> dict[str, Tensor]:
    """Both prompts padded on the left, so that their last tokens stand in the same columns."""
    import torch

    batch = {"counts_B": torch.tensor([row["count"][0] for row in rows])}
    for side, ids, mask in (("shifted", "input_ids", "attention_mask"), ("plain", "plain_ids", "plain_mask")):
        made = padded([(row[side], ()) for row in rows], pad_id=pad_id, side="left")
        batch |= {ids: made.ids_BT, mask: made.attend_BT}
    return batch


def residual_states(model: PreTrainedModel, ids_BT: Tensor, attend_BT: Tensor, *, width: int) -> Tensor:
    """(L, B, P, H) float32 residual stream after every layer at the last `width` positions of left-padded prompts."""
    import torch

    out = model(
        input_ids=ids_BT, attention_mask=attend_BT, position_ids=positions(attend_BT), use_cache=False,
        output_hidden_states=True, logits_to_keep=1,
    )  # fmt: skip
    return torch.stack([state[:, state.shape[1] - width :].float() for state in out.hidden_states[1:]])


def targets_of(
    inputs: Mapping[str, Tensor], *, policy: PreTrainedModel, reference: PreTrainedModel | None, width: int
) -> Tensor:
    """(L, B, P, H) the frozen policy's states at the plain prompt; with a reference, what it learned carried over."""
    import torch

    plain = inputs["plain_ids"], inputs["plain_mask"]
    with torch.no_grad():
        own = residual_states(policy, *plain, width=width)
        if reference is None:
            return own
        shifted = residual_states(reference, inputs["input_ids"], inputs["attention_mask"], width=width)
        return carried_states(
            own, reference_plain_LBPH=residual_states(reference, *plain, width=width), reference_shifted_LBPH=shifted
        )


def activation_trainer(
    config: ConsistencyConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, models: Models,
    pairs: Sequence[PromptPair], out: Path,
) -> tuple[Trainer, Counter[str]]:  # fmt: skip
    """The trainer on these pairs, and the counts of what was left out. UserError where no pair is left.

    The frozen policy (and the reference, for target carried) is held beside the one in training.
    """
    from datasets import Dataset
    from transformers import TrainingArguments

    encoder = Encoder(tokenizer, max_length=config.max_length)
    rows = matching_rows(pairs, encoder=encoder, positions=config.positions)
    require_any(rows, encoder, what="pair of prompts")
    frozen = load_to_read(models.policy.path).requires_grad_(False)
    carried = config.target == "carried"
    reference = load_to_read(str(models.reference)).requires_grad_(False) if carried else None
    arguments = TrainingArguments(
        **config.arguments(out), remove_unused_columns=False, include_num_input_tokens_seen="non_padding"
    )
    trainer = _matching_trainer(frozen, reference)(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        data_collator=partial(collated, pad_id=tokenizer.pad_token_id),
    )  # fmt: skip
    trainer.model_accepts_loss_kwargs = False  # a mean over pairs, which accumulated micro-batches share evenly
    return trainer, Counter(encoder.lost)


def _matching_trainer(frozen: PreTrainedModel, reference: PreTrainedModel | None) -> type[Trainer]:
    from transformers import Trainer

    class MatchingTrainer(Trainer):
        def compute_loss(self, model: PreTrainedModel, inputs: dict[str, Tensor], *_: object, **__: object) -> Tensor:
            width = int(inputs["counts_B"].max())
            target = targets_of(inputs, policy=frozen, reference=reference, width=width)
            states = residual_states(model, inputs["input_ids"], inputs["attention_mask"], width=width)
            return activation_distance(states, target, counts_B=inputs["counts_B"]).mean()

    return MatchingTrainer
