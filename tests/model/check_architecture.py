"""Checks that every architecture passes, as functions of a model in evaluation mode.

SOURCE and TARGET come from tiny_gnmt.
"""

from __future__ import annotations

import torch
from tiny_gnmt import SOURCE, TARGET, padded

from gnmt.model.interfaces import DecoderState, Memory
from gnmt.model.seq2seq import Seq2Seq

GARBAGE = 8  # a real id that replaces PAD


def check_padding_and_neighbors_change_nothing(model: Seq2Seq) -> None:
    """Check that width and ids of the padding change nothing on either side, and that it gets no attention."""
    memory = model.encode(padded(SOURCE, 3, GARBAGE))
    hidden_BTH, attention_BTS = model.decode(padded(TARGET, 2, GARBAGE), memory, attention=True)
    assert (attention_BTS is not None) == model.decoder.has_attention
    for row, (source_ids, target_ids) in enumerate(zip(SOURCE, TARGET, strict=True)):
        alone_BTH, alone_BTS = model.decode(padded([target_ids]), model.encode(padded([source_ids])), attention=True)
        torch.testing.assert_close(hidden_BTH[row, : len(target_ids)], alone_BTH[0])
        if attention_BTS is not None:
            weights_TS = attention_BTS[row, : len(target_ids)]
            torch.testing.assert_close(weights_TS[:, : len(source_ids)], alone_BTS[0])
            assert (weights_TS[:, len(source_ids) :] == 0).all()
            torch.testing.assert_close(weights_TS.sum(1), torch.ones_like(weights_TS[:, 0]))


def check_steps_equal_decode(model: Seq2Seq, beam: int) -> None:
    """Check that steps equal decode while hypotheses are reordered and sentences enter and leave the batch."""
    generator = torch.Generator().manual_seed(5)
    arrivals, leaves = {0: [0, 1], 2: [2], 3: [3]}, {1: 1, 4: 0}  # by step: rows that enter, an index that leaves
    active: list[tuple[int, list[list[int]]]] = []  # (row, tokens of each hypothesis)
    memory: Memory | None = None
    state: DecoderState | None = None
    for step in range(7):
        for row in arrivals.get(step, []):
            arrived = model.encode(padded([SOURCE[row]]))
            start = model.start(arrived, beam)
            memory = arrived if memory is None else Memory.join([memory, arrived])
            state = start if state is None else DecoderState.join([state, start])
            active.append((row, [[] for _ in range(beam)]))
        assert memory is not None
        assert state is not None
        tokens_BK = torch.randint(2, 11, (len(active), beam), generator=generator)
        before = {name: tensor.clone() for name, tensor in {**state.tensors, **state.by_step}.items()}
        log_probs_BKV, attention_BKS, next_state = model.step(tokens_BK, state, memory)
        assert log_probs_BKV.dtype == torch.float32
        assert (attention_BKS is not None) == model.decoder.has_attention
        # A step must not change the state that it gets.
        assert all(torch.equal(tensor, before[name]) for name, tensor in {**state.tensors, **state.by_step}.items())
        for index, (row, tokens) in enumerate(active):
            for hypothesis in range(beam):
                tokens[hypothesis].append(int(tokens_BK[index, hypothesis]))
            alone = model.encode(padded([SOURCE[row]] * beam))
            hidden_KTH, expected_KTS = model.decode(padded(tokens), alone, attention=True)
            expected_KV = torch.log_softmax(model.output(hidden_KTH[:, -1]), dim=-1)
            torch.testing.assert_close(log_probs_BKV[index].double(), expected_KV, rtol=1e-5, atol=1e-6)
            if attention_BKS is not None:
                width = len(SOURCE[row])
                assert expected_KTS is not None
                torch.testing.assert_close(attention_BKS[index, :, :width], expected_KTS[:, -1])
                assert (attention_BKS[index, :, width:] == 0).all()
        parents_BK = torch.randint(0, beam, (len(active), beam), generator=generator)
        state = next_state.reorder(parents_BK)
        active = [
            (row, [list(tokens[parent]) for parent in parents_K])
            for (row, tokens), parents_K in zip(active, parents_BK.tolist(), strict=True)
        ]
        if step in leaves:
            # One sentence leaves, and the others change their order.
            stay = [index for index in reversed(range(len(active))) if index != leaves[step]]
            active = [active[index] for index in stay]
            oldest = max(len(tokens[0]) for _, tokens in active)
            memory, state = memory.select(torch.tensor(stay)), state.trim(oldest).select(torch.tensor(stay))
            assert all(tensor.shape[2] == oldest for tensor in state.by_step.values())


def check_bf16_is_near(model: Seq2Seq, tolerance: float) -> None:
    """Check that decode and steps under autocast are close to fp32."""
    model = model.float()
    memory = model.encode(padded(SOURCE))
    expected = torch.log_softmax(model.output(model.decode(padded(TARGET), memory)[0])[:, :2], -1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        memory = model.encode(padded(SOURCE))
        at_once = torch.log_softmax(model.output(model.decode(padded(TARGET), memory)[0])[:, :2].float(), -1)
        first_BKV, _, state = model.step(padded(TARGET).ids_BT[:, :1], model.start(memory, 1), memory)
        second_BKV, _, _ = model.step(padded(TARGET).ids_BT[:, 1:2], state, memory)
    assert (at_once - expected).abs().max() > 1e-6  # it ran in bf16
    by_step = torch.cat((first_BKV, second_BKV), 1)
    for row, target_ids in enumerate(TARGET):
        num = min(2, len(target_ids))
        torch.testing.assert_close(at_once[row, :num], expected[row, :num], atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(by_step[row, :num], expected[row, :num], atol=tolerance, rtol=tolerance)
