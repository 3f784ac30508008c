"""Consistency training: which rows it makes, what its losses are, what moves, and that the prompts' gap closes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from align.errors import UserError
from align.models import load_model, load_tokenizer
from align.models.sampling import Drawn
from align.policies.base import ModelPolicy
from align.runs import Ledger
from align.training.consistency.activations import collated, matching_rows
from align.training.consistency.outputs import imitation_rows, own_replies
from align.training.consistency.settings import ConsistencyConfig, Models, PromptPair, embedding_weights, with_plain
from align.training.consistency.stage import consistency
from align.training.rows import Encoder
from factories.training_runs import read

PAIRS = [PromptPair("bread and tea :", "cheese, no tea :"), PromptPair("ink and wool :", "boats, no wool :")]
FAST: dict[str, Any] = {"save_steps": None, "max_new_tokens": 3, "warmup": 0.0, "scheduler": "constant"}


def ids_of(model: Path, text: str) -> list[int]:
    return list(load_tokenizer(model)(text)["input_ids"])


def states(model: Any, ids: list[int]) -> torch.Tensor:
    """(L, T, H) after every layer, one prompt alone without padding."""
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return torch.stack([state[0] for state in out.hidden_states[1:]])


def distance(trained: Path, frozen: Path, pairs: list[PromptPair], *, last: int) -> float:
    """ACT's loss from its definition, over the last positions of every pair."""
    own, fixed = load_model(trained), load_model(frozen)
    found = []
    for pair in pairs:
        sides = states(own, ids_of(frozen, pair.shifted)), states(fixed, ids_of(frozen, pair.plain))
        found.append((sides[0][:, -last:] - sides[1][:, -last:]).square().sum(-1).mean().item())
    return sum(found) / len(found)


def test_drawn_replies_are_trained_as_drawn_and_written_ones_are_closed(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    end, pair = tokenizer.eos_token_id, PAIRS[0]
    shifted, tea = ids_of(tiny_model, pair.shifted), ids_of(tiny_model, " tea")
    replies = [[Drawn((*tea, end), True, " tea"), Drawn(tuple(tea), False, " tea")]]
    encoder = Encoder(tokenizer)
    ended, cut = imitation_rows([pair], replies, encoder=encoder)
    assert ended == {"input_ids": [*shifted, *tea, end], "labels": [-100] * len(shifted) + [*tea, end]}
    assert cut == {"input_ids": [*shifted, *tea], "labels": [-100] * len(shifted) + tea}
    # Written in another spelling: closed by the format; what was cut has no known end, and is left out and counted.
    upper = imitation_rows([pair], replies, encoder=encoder, written=lambda _, text: text.upper())
    assert [row["labels"] for row in upper] == [[-100] * len(shifted) + ids_of(tiny_model, " TEA") + [end]]
    assert encoder.lost["replies_not_written"] == 1


def test_plain_prompts_are_paired_with_themselves_once() -> None:
    pairs = [PromptPair("a", "b"), PromptPair("a", "c")]
    assert with_plain(pairs) == [*pairs, PromptPair("a", "a")]


def test_positions_are_those_that_both_prompts_end_with(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    encoder, pairs = Encoder(tokenizer), [*PAIRS, PromptPair("bread", "tea")]
    rows = matching_rows(pairs, encoder=encoder, positions=None)
    common = len(ids_of(tiny_model, " tea :")), len(ids_of(tiny_model, " wool :"))
    assert [row["count"] for row in rows] == [[common[0]], [common[1]]]
    assert encoder.lost["dropped_by_no_common_end"] == 1
    assert [row["count"] for row in matching_rows(PAIRS, encoder=encoder, positions=1)] == [[1], [1]]
    batch = collated(rows, pad_id=tokenizer.pad_token_id)
    for side, name in (("plain", "plain_mask"), ("shifted", "attention_mask")):
        assert batch[name].sum(1).tolist() == [len(row[side]) for row in rows]
        assert batch[name][:, -1].tolist() == [1, 1]  # padded on the left
    assert batch["input_ids"][0, -1] == batch["plain_ids"][1, -1] == ids_of(tiny_model, ":")[-1]


def test_activations_close_the_gap_that_their_definition_measures(tiny_model: Path, tmp_path: Path) -> None:
    config = ConsistencyConfig(
        kind="activations", max_steps=25, batch_size=2, learning_rate=5e-3, logging_steps=1, keep_plain=False,
        positions=1, **FAST,
    )  # fmt: skip
    ledger = Ledger()
    metrics = consistency(config, models=Models(ModelPolicy(tiny_model)), pairs=PAIRS, out=tmp_path, ledger=ledger)
    before = distance(tiny_model, tiny_model, PAIRS, last=1)
    # The first logged loss is the definition's, of the model that came in.
    assert read(tmp_path / "log.jsonl")[0]["loss"] == pytest.approx(before, rel=1e-4)
    assert distance(tmp_path / "model", tiny_model, PAIRS, last=1) < 0.2 * before
    assert metrics["trained_on"] == 2 and ledger.flops > 0


def test_outputs_imitate_own_replies_behind_the_shifted_prompt(tiny_model: Path, tmp_path: Path) -> None:
    config = ConsistencyConfig(
        max_steps=15, batch_size=4, learning_rate=1e-2, logging_steps=1, replies=2, keep_plain=False, **FAST
    )
    ledger = Ledger()
    policy, plain = ModelPolicy(tiny_model), [pair.plain for pair in PAIRS]
    drawn = own_replies(policy, plain, config=config, parameters=1, ledger=Ledger())

    def nats(model: Path) -> float:
        loaded, total, count = load_model(model), 0.0, 0
        for pair, replies in zip(PAIRS, drawn, strict=True):
            head = ids_of(tiny_model, pair.shifted)
            for one in replies:
                with torch.no_grad():
                    logp = loaded(input_ids=torch.tensor([[*head, *one.ids]])).logits[0].log_softmax(-1)
                total -= sum(logp[len(head) + i - 1, token].item() for i, token in enumerate(one.ids))
                count += len(one.ids)
        return total / count

    metrics = consistency(config, models=Models(ModelPolicy(tiny_model)), pairs=PAIRS, out=tmp_path, ledger=ledger)
    assert metrics["trained_on"] == 4 and ledger.samples_drawn == 4
    before = nats(tiny_model)
    assert read(tmp_path / "log.jsonl")[0]["loss"] == pytest.approx(before, rel=1e-4)
    assert nats(tmp_path / "model") < 0.5 * before


@pytest.mark.parametrize("embeddings", ["frozen", "restored"])
def test_embeddings_stay_those_of_the_policy_or_of_the_reference(
    embeddings: str, tiny_model: Path, tmp_path: Path
) -> None:
    from align.models import save_model

    policy = load_model(tiny_model)
    with torch.no_grad():
        embedding_weights(policy)[0].add_(0.5)
    save_model(policy, load_tokenizer(tiny_model), tmp_path / "policy")
    models = Models(ModelPolicy(tmp_path / "policy"), str(tiny_model))
    config = ConsistencyConfig(max_steps=1, batch_size=2, embeddings=embeddings, learning_rate=1e-2, **FAST)
    consistency(config, models=models, pairs=PAIRS, out=tmp_path / "out", ledger=Ledger())
    trained, kept = (
        load_model(tmp_path / "out" / "model"),
        load_model(tiny_model if embeddings == "restored" else tmp_path / "policy"),
    )
    assert torch.equal(embedding_weights(trained)[0], embedding_weights(kept)[0])
    layer = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(trained.state_dict()[layer], kept.state_dict()[layer])


def test_a_carried_target_of_the_reference_itself_asks_for_no_change(tiny_model: Path, tmp_path: Path) -> None:
    """The policy is its own reference: its target at the shifted prompt is its own state there."""
    config = ConsistencyConfig(kind="activations", target="carried", max_steps=1, batch_size=4, **FAST)
    models = Models(ModelPolicy(tiny_model), str(tiny_model))
    metrics = consistency(config, models=models, pairs=PAIRS, out=tmp_path, ledger=Ledger())
    assert metrics["loss"] == pytest.approx(0, abs=1e-9)


def test_what_cannot_be_trained_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="for kind activations"):
        ConsistencyConfig(target="carried")
    with pytest.raises(UserError, match="outputs, activations"):
        ConsistencyConfig(kind="inputs")
    config = ConsistencyConfig(embeddings="restored")
    with pytest.raises(UserError, match="--reference"):
        consistency(config, models=Models(ModelPolicy(tiny_model)), pairs=PAIRS, out=tmp_path, ledger=Ledger())
    with pytest.raises(UserError, match="pairs"):
        consistency(
            ConsistencyConfig(), models=Models(ModelPolicy(tiny_model)), pairs=[], out=tmp_path, ledger=Ledger()
        )
