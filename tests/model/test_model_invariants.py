"""What must not matter: padding, neighbours in the batch, and whether the target comes at once or step by step."""

from __future__ import annotations

import pytest
import torch
from tiny_gnmt import SOURCE, TARGET, padded, tiny_gnmt

from gnmt.model.seq2seq import Seq2Seq
from gnmt.types import Memory, State, Tokens

GARBAGE = 8  # a real id, where PAD belongs


def both(model: Seq2Seq, source: Tokens, target: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    hidden_BTH, attention_BTS = model.decode(target, model.encode(source), attention=True)
    assert attention_BTS is not None
    return hidden_BTH, attention_BTS


@pytest.mark.parametrize("num_bidirectional_layers", [0, 1, 2])
@pytest.mark.parametrize("query", ["current", "previous"])
def test_padding_changes_nothing(query, num_bidirectional_layers):
    """Neither its width nor the ids in it."""
    model = tiny_gnmt(query=query, num_bidirectional_layers=num_bidirectional_layers)
    hidden_BTH, attention_BTS = both(model, padded(SOURCE), padded(TARGET))
    wide_hidden_BTH, wide_attention_BTS = both(model, padded(SOURCE, 3, GARBAGE), padded(TARGET, 2, GARBAGE))
    for row, (source_ids, target_ids) in enumerate(zip(SOURCE, TARGET, strict=True)):
        real = row, slice(len(target_ids))
        torch.testing.assert_close(wide_hidden_BTH[real], hidden_BTH[real])
        torch.testing.assert_close(
            wide_attention_BTS[real][:, : len(source_ids)], attention_BTS[real][:, : len(source_ids)]
        )
        assert (wide_attention_BTS[real][:, len(source_ids) :] == 0).all()


@pytest.mark.parametrize("row", range(len(SOURCE)))
def test_a_batch_of_one_equals_its_row(row):
    model = tiny_gnmt()
    hidden_BTH, attention_BTS = both(model, padded(SOURCE), padded(TARGET))
    own_hidden_BTH, own_attention_BTS = both(model, padded(SOURCE[row : row + 1]), padded(TARGET[row : row + 1]))
    length, width = len(TARGET[row]), len(SOURCE[row])
    torch.testing.assert_close(own_hidden_BTH[0], hidden_BTH[row, :length])
    torch.testing.assert_close(own_attention_BTS[0], attention_BTS[row, :length, :width])


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("query", ["current", "previous"])
def test_step_after_step_equals_decode_also_when_hypotheses_change_places(query, beam):
    """Every hypothesis takes all of its parent's state along, and a sentence that leaves disturbs no other."""
    model = tiny_gnmt(query=query, layers=(3, 4))
    generator = torch.Generator().manual_seed(5)
    rows = list(range(len(SOURCE)))
    memory = model.encode(padded(SOURCE))
    state = model.start(memory, beam)
    prefixes: list[list[list[int]]] = [[[] for _ in range(beam)] for _ in rows]
    for step in range(5):
        tokens_BK = torch.randint(2, 11, (len(rows), beam), generator=generator)
        for prefix_K, token_K in zip(prefixes, tokens_BK.tolist(), strict=True):
            for prefix, token in zip(prefix_K, token_K, strict=True):
                prefix.append(token)
        log_probs_BKV, attention_BKS, state = model.step(tokens_BK, state, memory)
        assert log_probs_BKV.dtype == torch.float32
        for at, row in enumerate(rows):
            for entry in range(beam):
                alone = model.encode(padded([SOURCE[row]]))
                hidden_BTH, expected_BTS = model.decode(padded([prefixes[at][entry]]), alone, attention=True)
                expected_V = torch.log_softmax(model.output(hidden_BTH[0, -1]), dim=-1)
                torch.testing.assert_close(log_probs_BKV[at, entry].double(), expected_V, rtol=1e-5, atol=1e-6)
                width = len(SOURCE[row])
                torch.testing.assert_close(attention_BKS[at, entry, :width], expected_BTS[0, -1])
                assert (attention_BKS[at, entry, width:] == 0).all()
        parents_BK = torch.randint(0, beam, (len(rows), beam), generator=generator)
        state = state.reorder(parents_BK)
        prefixes = [
            [list(prefix_K[parent]) for parent in parent_K]
            for prefix_K, parent_K in zip(prefixes, parents_BK.tolist(), strict=True)
        ]
        if step == 2:  # the second sentence leaves, the others change their places
            keep = torch.tensor([3, 0, 2])
            memory, state = memory.select(keep), state.select(keep)
            rows, prefixes = [rows[at] for at in keep], [prefixes[at] for at in keep]


def test_the_beam_is_an_axis_of_the_state_and_no_copy_of_the_memory():
    model = tiny_gnmt(layers=(2, 3))
    memory = model.encode(padded(SOURCE))
    state = model.start(memory, 5)
    _, _, state = model.step(torch.full((4, 5), 2), state, memory)
    assert isinstance(memory, Memory)
    assert {tensor.shape[0] for tensor in (memory.states_BSH, memory.mask_BS, *memory.extras.values())} == {4}
    assert isinstance(state, State)
    assert {tuple(tensor.shape) for tensor in state.tensors.values()} == {(4, 5, 6)}


def test_state_is_passed_and_never_kept():
    """Two searches may take turns on one model."""
    model = tiny_gnmt()
    memory = model.encode(padded(SOURCE))
    start = model.start(memory, 1)
    tokens_BK = torch.full((4, 1), 2)
    first, _, _ = model.step(tokens_BK, start, memory)
    model.step(tokens_BK + 5, model.start(memory, 1), memory)
    again, _, _ = model.step(tokens_BK, start, memory)
    assert torch.equal(first, again)


def test_bf16_stays_close_to_fp32_in_both_ways():
    model = tiny_gnmt().float()
    memory = model.encode(padded(SOURCE))
    expected = torch.log_softmax(model.output(model.decode(padded(TARGET), memory)[0])[:, 0], -1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        memory = model.encode(padded(SOURCE))
        at_once = torch.log_softmax(model.output(model.decode(padded(TARGET), memory)[0])[:, 0].float(), -1)
        by_step = model.step(torch.full((4, 1), 2), model.start(memory, 1), memory)[0][:, 0]
    assert memory.states_BSH.dtype == torch.bfloat16
    torch.testing.assert_close(at_once, expected, atol=0.03, rtol=0.02)
    torch.testing.assert_close(by_step, expected, atol=0.03, rtol=0.02)
