"""The best candidates of wide rows are those of a stable sort."""

from __future__ import annotations

import math

import pytest
import torch

from gnmt.decoding.beam import best_candidates


def by_sorting(total_BN: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    values, columns = total_BN.float().sort(dim=1, descending=True, stable=True)
    return values[:, :count], columns[:, :count]


@pytest.mark.parametrize("width", [10, 128, 300, 2560, 2561, 5000, 6399])
@pytest.mark.parametrize("count", [1, 2, 10])
def test_best_candidates_are_those_of_a_stable_sort(width: int, count: int) -> None:
    total = torch.randn(7, width, generator=torch.manual_seed(width)) * 5
    values, columns = best_candidates(total, count)
    expected_values, expected_columns = by_sorting(total, count)
    assert torch.equal(values, expected_values)
    assert torch.equal(columns, expected_columns)


@pytest.mark.parametrize("width", [40, 5000])
@pytest.mark.parametrize("num_values", [1, 2, 5, 40])
def test_equal_values_are_ordered_by_column(width: int, num_values: int) -> None:
    """The order of equal values is undefined in `topk`, and bf16 produces many of them."""
    total = -torch.randint(0, num_values, (9, width), generator=torch.manual_seed(1)).float()
    values, columns = best_candidates(total, 12)
    expected_values, expected_columns = by_sorting(total, 12)
    assert torch.equal(values, expected_values)
    assert torch.equal(columns, expected_columns)


def test_bf16_rows_give_the_same_as_their_fp32_values() -> None:
    total = torch.randn(3, 4000, generator=torch.manual_seed(2)).bfloat16()
    values, columns = best_candidates(total, 10)
    expected_values, expected_columns = by_sorting(total, 10)
    assert values.dtype == torch.float32
    assert torch.equal(values, expected_values)
    assert torch.equal(columns, expected_columns)


def test_both_zeros_are_equal() -> None:
    total = torch.full((1, 3000), -1.0)
    total[0, 100], total[0, 2000] = -0.0, 0.0
    assert best_candidates(total, 2)[1].tolist() == [[100, 2000]]


@pytest.mark.parametrize("width", [50, 2700])
def test_padding_is_never_chosen_when_few_values_are_finite(width: int) -> None:
    """The columns that pad the last block must never be chosen."""
    total = torch.full((2, width), -math.inf)
    total[0, width - 1], total[1, 0], total[1, 30] = -3.0, -math.inf, 2.0
    values, columns = best_candidates(total, 10)
    assert columns[0, 0] == width - 1
    assert columns[1, 0] == 30
    assert values[:, 0].tolist() == [-3.0, 2.0]
    assert bool((columns < width).all())
    assert bool((values[:, 1:] == -math.inf).all())


def test_rows_of_nan_give_valid_columns() -> None:
    """Search reports diverged weights, which needs valid columns first."""
    for nan in (math.nan, -math.nan):
        values, columns = best_candidates(torch.full((2, 2700), nan), 10)
        assert bool(values.isnan().all())
        assert bool((columns < 2700).all())


def test_a_row_does_not_depend_on_its_neighbors() -> None:
    total = torch.randn(6, 4000, generator=torch.manual_seed(3)).bfloat16().float()
    together = best_candidates(total, 10)[1]
    alone = torch.cat([best_candidates(row[None], 10)[1] for row in total])
    assert torch.equal(together, alone)
