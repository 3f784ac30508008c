"""Consistency of prompts: common ends, distances of states and carried states, all by hand."""

from __future__ import annotations

import pytest
import torch

from align.functional.consistency import activation_distance, carried_states, common_suffix


@pytest.mark.parametrize(
    ("first", "second", "count"),
    [
        ([1, 2, 3], [9, 2, 3], 2),
        ([7, 8, 2, 3], [2, 3], 2),  # the whole of the shorter one
        ([1, 2, 3], [1, 2, 4], 0),  # a common beginning is none
        ([1, 2, 1], [3, 2, 1], 2),
        ([], [1], 0),
        ([4, 5], [4, 5], 2),
    ],
)
def test_common_suffix_counts_from_the_end(first: list[int], second: list[int], count: int) -> None:
    assert common_suffix(first, second) == count


def test_distance_is_a_mean_over_layers_and_counted_positions_of_squared_norms() -> None:
    targets_LBPH = torch.tensor(
        [
            [[[3.0, 4.0], [1.0, 0.0]], [[100.0, 100.0], [2.0, 1.0]]],  # layer 1: two pairs, two positions
            [[[0.0, 0.0], [0.0, 3.0]], [[100.0, 100.0], [0.0, 0.0]]],
        ]
    )
    states_LBPH = torch.zeros_like(targets_LBPH)
    # Pair 1, both positions: ((25 + 0) / 2 + (1 + 9) / 2) / 2. Pair 2, the last alone: (5 + 0) / 2.
    found_B = activation_distance(states_LBPH, targets_LBPH, counts_B=torch.tensor([2, 1]))
    assert found_B.tolist() == pytest.approx([8.75, 2.5])


@pytest.mark.parametrize("count", [0, 3])
def test_distance_refuses_positions_that_are_not_there(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 2"):
        activation_distance(torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 2, 1), counts_B=torch.tensor([count]))


def test_carried_states_add_what_was_learned_to_the_shifted_reference() -> None:
    plain, at_plain, at_shifted = (torch.full((1, 1, 1, 1), value) for value in (5.0, 2.0, 10.0))
    found = carried_states(plain, reference_plain_LBPH=at_plain, reference_shifted_LBPH=at_shifted)
    assert found.item() == 13.0
    # A policy that learned nothing carries nothing: the reference's own state.
    assert carried_states(at_plain, reference_plain_LBPH=at_plain, reference_shifted_LBPH=at_shifted).item() == 10.0
