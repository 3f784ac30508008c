"""align.models.reading: by hand on a table model; padding, batches and pieces change nothing; no block is too large."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from align.errors import UserError
from align.models import ModelConfig, build_model
from align.models.reading import (
    BLOCK_BYTES,
    Reader,
    completion_logprobs,
    completion_rows,
    next_token_logprobs,
    padded,
    sequence_logprobs,
    token_logprobs,
)
from align.models.sampling import Drawn
from align.policies.base import ModelPolicy
from factories.tiny_bandit import make_tokenizer

V = 5
TABLE_VV = [
    [0.3, -1.2, 0.7, 0.0, 2.0],
    [1.0, 0.2, -0.4, 0.9, 0.0],
    [0.0, 0.0, 1.5, -2.0, 0.1],
    [0.6, 0.5, 0.4, 0.3, 0.2],
    [-1.0, 2.0, 0.0, 1.0, -0.5],
]
SLOPE_V = [0.0, 0.31, -0.17, 0.05, 0.23]  # per token read so far and per position: what a wrong mask or shift changes


class Table:
    """Logits after a token: its row of the table, and slopes for the ids read so far and for the token's position."""

    device, training = torch.device("cpu"), False
    config = SimpleNamespace(vocab_size=V)

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(
        self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor | None = None,
        past_key_values: Any = None, use_cache: bool = False, logits_to_keep: int = 0,
    ) -> Any:  # fmt: skip
        before_B1, first = past_key_values or (torch.zeros(len(input_ids), 1), 0)
        if position_ids is None:
            position_ids = torch.arange(first, first + input_ids.shape[1]).expand_as(input_ids)
        own_BT = input_ids * attention_mask[:, first:]
        read_BT = before_B1 + own_BT.cumsum(-1)
        logits_BTV = torch.tensor(TABLE_VV)[input_ids] + torch.tensor(SLOPE_V) * (read_BT + 3 * position_ids)[..., None]
        logits_BTV = logits_BTV[:, -logits_to_keep:]
        self.shapes.append(tuple(logits_BTV.shape))
        cache = (read_BT[:, -1:], first + input_ids.shape[1]) if use_cache else None
        return SimpleNamespace(logits=logits_BTV, past_key_values=cache)


def by_hand(head: Sequence[int], tail: Sequence[int], *, banned: Sequence[int] = ()) -> list[float]:
    """Log-probabilities of the tail's tokens under `Table`, in plain arithmetic."""
    ids, values = [*head, *tail], []
    for place in range(len(head), len(ids)):
        before = ids[:place]
        logits = [
            TABLE_VV[before[-1]][v] + SLOPE_V[v] * (sum(before) + 3 * (place - 1)) for v in range(V) if v not in banned
        ]
        own = TABLE_VV[before[-1]][ids[place]] + SLOPE_V[ids[place]] * (sum(before) + 3 * (place - 1))
        values.append(own - math.log(sum(math.exp(x) for x in logits)))
    return values


ROWS = [([1, 2], [3, 1, 0]), ([4], [2]), ([3, 3, 1, 2], [0, 4, 4, 1, 2]), ([2, 1, 4], [])]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("block_bytes", [1, 4 * V * 4, BLOCK_BYTES])  # pieces of one token; some rows; whole batches
@pytest.mark.parametrize("longest_first", [False, True])
def test_a_table_model_is_read_as_by_hand(side: str, batch_size: int, block_bytes: int, longest_first: bool) -> None:
    reader = Reader(
        pad_id=4, batch_size=batch_size, side=side, block_bytes=block_bytes, longest_first=longest_first
    )  # fmt: skip
    for values, (head, tail) in zip(completion_logprobs(Table(), ROWS, reader=reader), ROWS, strict=True):
        assert values == pytest.approx(by_hand(head, tail), abs=1e-5)
    sums = sequence_logprobs(Table(), ROWS, reader=reader)
    assert sums == pytest.approx([sum(by_hand(head, tail)) for head, tail in ROWS], abs=1e-5)


@pytest.mark.parametrize("block_bytes", [1, BLOCK_BYTES])
def test_banned_tokens_have_probability_0_and_the_others_share_it(block_bytes: int) -> None:
    reader = Reader(pad_id=0, banned=(0, 2), block_bytes=block_bytes)
    rows = [([1, 2], [3, 1]), ([4], [2])]
    allowed, forbidden = completion_logprobs(Table(), rows, reader=reader)
    assert allowed == pytest.approx(by_hand(*rows[0], banned=(0, 2)), abs=1e-5)
    assert forbidden == [-math.inf]


def test_next_tokens_are_read_behind_left_padding() -> None:
    batch = padded([([1, 2], ()), ([3, 4, 1], ())], pad_id=4, side="left")
    assert batch.attend_BT.tolist() == [[0, 1, 1], [1, 1, 1]] and batch.positions_BT.tolist() == [[0, 0, 1], [0, 1, 2]]
    logp_BV = next_token_logprobs(Table(), batch.ids_BT, batch.attend_BT, banned=(2,))
    for logp_V, head in zip(logp_BV.tolist(), ([1, 2], [3, 4, 1]), strict=True):
        expected = [by_hand(head, [v], banned=(2,))[0] if v != 2 else -math.inf for v in range(V)]
        assert logp_V == pytest.approx(expected, abs=1e-5)


def test_padded_rows_say_what_is_real_and_what_is_scored() -> None:
    batch = padded([([1, 2], [3]), ([4], [])], pad_id=0)
    assert batch.ids_BT.tolist() == [[1, 2, 3], [4, 0, 0]] and batch.attend_BT.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.scored_BT.tolist() == [[False, False, True], [False, False, False]]
    assert set(batch.inputs) == {"input_ids", "attention_mask"}  # no model need take positions for this side
    for rows, side in (([], "right"), (ROWS, "middle")):
        with pytest.raises(ValueError, match="padded"):
            padded(rows, pad_id=0, side=side)


def test_left_padding_computes_the_logits_of_completions_only() -> None:
    model = Table()
    sequence_logprobs(model, ROWS, reader=Reader(pad_id=0, side="left"))
    assert model.shapes == [(4, 6, V)]  # five tokens of the longest completion, and the one behind the last


def test_what_a_model_depends_on_is_set_before_each_pass() -> None:
    slices: list[slice] = []
    reader = Reader(pad_id=0, batch_size=3, before=slices.append, block_bytes=2 * 9 * 4 * V)
    sequence_logprobs(Table(), ROWS, reader=reader)
    assert slices == [slice(0, 2), slice(2, 3), slice(3, 4)]  # two rows of nine tokens to a block
    with pytest.raises(ValueError, match="order"):
        Reader(pad_id=0, longest_first=True, before=slices.append)


# ------------------------------------------------------------------------------------------------------ a real model


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> Any:
    shape = ModelConfig(architecture=request.param, hidden=32, layers=2, heads=2, context=64, init_std=0.3)
    return build_model(shape, make_tokenizer(), seed=0).eval()


def made_rows(count: int, *, vocabulary: int = 9, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 14, (count, 2), generator=generator).tolist()
    return [
        tuple(torch.randint(2, vocabulary, (n,), generator=generator).tolist() for n in pair)  # type: ignore[misc]
        for pair in sizes
    ]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_padding_and_batches_change_nothing(model: Any, side: str, batch_size: int) -> None:
    rows = made_rows(40)
    values = completion_logprobs(model, rows, reader=Reader(pad_id=0, side=side, batch_size=batch_size))
    for own, (head, tail) in zip(values, rows, strict=True):
        with torch.no_grad():
            logp_TV = model(input_ids=torch.tensor([[*head, *tail]])).logits[0].double().log_softmax(-1)
        expected = [logp_TV[len(head) - 1 + t, token].item() for t, token in enumerate(tail)]
        assert own == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_pieces_of_a_row_are_read_behind_their_cache(model: Any, side: str) -> None:
    rows = made_rows(6)
    whole = completion_logprobs(model, rows, reader=Reader(pad_id=0, side=side, batch_size=1))
    for tokens in (1, 4):  # a block of so many
        pieces = completion_logprobs(model, rows, reader=Reader(pad_id=0, side=side, block_bytes=tokens * 4 * 9))
        for own, expected in zip(pieces, whole, strict=True):
            assert own == pytest.approx(expected, abs=1e-5)


def test_a_small_block_is_one_log_softmax_to_the_last_bit(model: Any) -> None:
    rows = made_rows(8)
    batch = padded(rows, pad_id=0)
    with torch.no_grad():
        logits_BTV = model(**batch.inputs).logits[:, :-1]
    expected_BT = logits_BTV.log_softmax(-1).gather(-1, batch.ids_BT[:, 1:, None])[..., 0]
    ids_BT = batch.ids_BT[:, 1:]
    assert torch.equal(token_logprobs(logits_BTV, ids_BT), expected_BT)
    assert torch.allclose(token_logprobs(logits_BTV, ids_BT, block_bytes=64), expected_BT, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- memory


class LargestBlock(TorchDispatchMode):
    """The bytes of the largest tensor that any operation gave back."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("side", ["right", "left"])
def test_no_block_is_larger_than_the_stated_size(side: str) -> None:
    """32 rows, some of 200 tokens, 2,000 words: 51 MB of logits at once, and never more than the 1 MB asked for."""
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary, limit = 2000, 2**20
    shape = LlamaConfig(
        vocab_size=vocabulary, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(shape).eval()
    rows = made_rows(30, vocabulary=vocabulary) + [([5] * 20, [7] * 180), ([6] * 190, [8] * 10)]
    with LargestBlock() as whole:
        expected = sequence_logprobs(model, rows, reader=Reader(pad_id=0, side=side))
    with LargestBlock() as sliced:
        values = sequence_logprobs(model, rows, reader=Reader(pad_id=0, side=side, block_bytes=limit))
    assert whole.bytes > 40e6 and sliced.bytes <= limit
    assert values == pytest.approx(expected, rel=1e-5)


def test_a_large_model_is_read_in_blocks_of_half_a_gigabyte() -> None:
    """32 rows of 1,024 tokens and 152,000 words are 20 GB of logits; with their logarithms and a copy less than 2 GB.

    A row alone is 0.6 GB, so that it is read in pieces; rows of 100 tokens go 8 to a pass.
    """
    long, short = [([1] * 24, [2] * 1000)] * 32, [([1] * 90, [2] * 10)] * 32
    reader = Reader(pad_id=0)
    assert [s.stop - s.start for s in reader.passes(long, vocabulary=152_000)] == [1] * 32
    assert [s.stop - s.start for s in reader.passes(short, vocabulary=152_000)] == [8] * 4
    assert BLOCK_BYTES >= 8 * 100 * 152_000 * 4 and 3 * BLOCK_BYTES < 2e9


# -------------------------------------------------------------------------------------------------- texts and drawn ids


def test_a_text_is_encoded_again_and_a_drawn_response_is_read_as_it_was_drawn() -> None:
    tokenizer = make_tokenizer()  # <pad> 0, <end> 1, x 2, y 3, : 4, A 5, B 6
    prompts = ["x :", "y :"]
    assert completion_rows(tokenizer, prompts, [" A B", " A"], max_new_tokens=2) == [
        ([2, 4], [5, 6]),  # as long as the limit: cut
        ([3, 4], [5, 1]),
    ]
    drawn = [Drawn((5, 6, 1), True, " A B"), Drawn((5,), False, " A")]
    assert completion_rows(tokenizer, prompts, drawn, max_new_tokens=2) == [([2, 4], (5, 6, 1)), ([3, 4], (5,))]
    # Drawn tokens that a text does not keep: the padding token, and an ending token that is not the tokenizer's.
    assert Drawn.of([5, 0, 3, 0, 0], ends=(3, 1), text="") == Drawn((5, 0, 3), True)
    assert Drawn.of([5, 0], ends=(3, 1)) == Drawn((5, 0), False)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_completion_without_a_prompt_is_refused_before_anything_is_read(side: str, batch_size: int) -> None:
    model, reader = Table(), Reader(pad_id=0, side=side, batch_size=batch_size)
    for read in (sequence_logprobs, completion_logprobs):
        with pytest.raises(UserError, match="prompt of at least one token"):
            read(model, [*ROWS, ([], [2, 3])], reader=reader)
    assert model.shapes == []


def test_a_policy_refuses_an_empty_prompt(many_tokens: str) -> None:
    with pytest.raises(UserError, match="prompt of at least one token"):
        ModelPolicy(many_tokens).sequence_logprobs(["x :", ""], [" A", " A B"])


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_row_without_a_completion_has_log_probability_0(side: str) -> None:
    assert sequence_logprobs(Table(), [([1], []), ([4, 1], [])], reader=Reader(pad_id=0, side=side)) == [0.0, 0.0]
