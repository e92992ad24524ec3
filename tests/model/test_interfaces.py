"""Memory and DecoderState: rows are selected, joined, trimmed, reordered and compacted."""

from __future__ import annotations

import torch

from gnmt.decoding.beam import compact_order
from gnmt.model.interfaces import DecoderState, Memory


def memory(num_rows: int, width: int, start: int) -> Memory:
    """Return a memory of distinct numbers, whose last column is padding in all rows but the first."""
    states = start + torch.arange(num_rows * width * 2.0).view(num_rows, width, 2)
    mask = torch.ones(num_rows, width, dtype=torch.bool)
    mask[1:, -1] = False
    return Memory(
        states, mask, {"keys": -states, "ids": states[:, :, 0].long()}, {"final": start + torch.arange(num_rows)}
    )


def test_join_pads_memories_to_one_width_and_masks_the_padding():
    narrow, wide = memory(2, 3, 100), memory(1, 5, 200)
    joined = Memory.join([narrow, wide])
    assert joined.mask_BS.dtype == torch.bool
    assert joined.mask_BS.sum(1).tolist() == [3, 2, 5]
    for tensor, left, right in (
        (joined.states_BSH, narrow.states_BSH, wide.states_BSH),
        (joined.extras["keys"], narrow.extras["keys"], wide.extras["keys"]),
        (joined.extras["ids"], narrow.extras["ids"], wide.extras["ids"]),
    ):
        assert tensor.dtype == left.dtype
        assert torch.equal(tensor[:2, :3], left)
        assert torch.equal(tensor[2:], right)
        assert not tensor[:2, 3:].any()
    assert joined.by_sentence["final"].tolist() == [100, 101, 200]


def test_join_concatenates_memories_of_one_width():
    some, others = memory(2, 3, 100), memory(1, 3, 200)
    joined = Memory.join([some, others])
    assert torch.equal(joined.states_BSH, torch.cat([some.states_BSH, others.states_BSH]))
    assert joined.extras.keys() == some.extras.keys()


def test_trim_undoes_the_padding_of_join():
    narrow, wide = memory(2, 3, 100), memory(1, 5, 200)
    back = Memory.join([narrow, wide]).select(torch.tensor([1, 0])).trim(3)
    assert torch.equal(back.states_BSH, narrow.states_BSH[[1, 0]])
    assert torch.equal(back.mask_BS, narrow.mask_BS[[1, 0]])
    assert torch.equal(back.extras["keys"], narrow.extras["keys"][[1, 0]])
    assert back.by_sentence["final"].tolist() == [101, 100]


def test_join_pads_what_grows_by_step():
    some = DecoderState(
        {"hidden": torch.rand(2, 3, 4), "length": torch.full((2, 3), 5)}, {"cache": torch.rand(2, 3, 5, 2)}
    )
    others = DecoderState(
        {"hidden": torch.rand(1, 3, 4), "length": torch.full((1, 3), 2)}, {"cache": torch.rand(1, 3, 2, 2)}
    )
    joined = DecoderState.join([some, others])
    assert torch.equal(joined.tensors["hidden"], torch.cat([some.tensors["hidden"], others.tensors["hidden"]]))
    assert joined.tensors["length"].tolist() == [[5] * 3] * 2 + [[2] * 3]
    cache = joined.by_step["cache"]
    assert torch.equal(cache[:2], some.by_step["cache"])
    assert torch.equal(cache[2:, :, :2], others.by_step["cache"])
    assert not cache[2:, :, 2:].any()


def test_trim_shortens_what_grows_by_step_and_nothing_else():
    """A tensor whose third axis has a fixed size, such as a window of steps, stays as it is."""
    state = DecoderState({"window": torch.rand(2, 3, 4, 5)}, {"cache": torch.rand(2, 3, 6, 5)})
    back = state.select(torch.tensor([1])).trim(2)
    assert torch.equal(back.by_step["cache"], state.by_step["cache"][1:, :, :2])
    assert torch.equal(back.tensors["window"], state.tensors["window"][1:])


def test_reorder_selects_parents_within_each_sentence():
    state = DecoderState(
        {"flat": torch.arange(6).view(2, 3), "deep": torch.arange(24).view(2, 3, 2, 2)},
        {"cache": torch.arange(30).view(2, 3, 5), "empty": torch.zeros(2, 3, 0, 4)},
    )
    moved = state.reorder(torch.tensor([[2, 2, 0], [1, 0, 2]]))
    assert moved.tensors["flat"].tolist() == [[2, 2, 0], [4, 3, 5]]
    for row, parents in enumerate([[2, 2, 0], [1, 0, 2]]):
        assert torch.equal(moved.tensors["deep"][row], state.tensors["deep"][row, parents])
        assert torch.equal(moved.by_step["cache"][row], state.by_step["cache"][row, parents])
    assert moved.by_step["empty"].shape == (2, 3, 0, 4)
    assert DecoderState({}).reorder(torch.tensor([[0]])).tensors == {}


def test_compact_moves_the_last_rows_to_freed_rows():
    """No other row is copied. Expanded tensors, whose rows share memory, are not written to."""
    states_BSH = torch.arange(5.0)[:, None, None].repeat(1, 3, 2)
    shared = torch.arange(6.0).view(1, 3, 2)
    memory = Memory(states_BSH, torch.ones(5, 3, dtype=torch.bool), {"shared": shared.expand(5, 3, 2)})
    rows = compact_order([4, 0, 3])
    assert rows == [0, 4, 3] or rows == [0, 3, 4]
    free = [index for index, row in enumerate(rows) if index != row]
    kept = memory.compact(torch.tensor(free), torch.tensor([rows[index] for index in free]), len(rows))
    assert kept.states_BSH[:, 0, 0].tolist() == [float(row) for row in rows]
    assert kept.states_BSH.data_ptr() == states_BSH.data_ptr()
    torch.testing.assert_close(kept.extras["shared"], shared.expand(3, 3, 2))
    assert compact_order(range(4)) == [0, 1, 2, 3]
    assert compact_order([5]) == [5]
    assert compact_order([]) == []
