"""What holds for every architecture, as functions of a model in evaluation mode; see tiny_gnmt for SOURCE."""

from __future__ import annotations

import torch
from tiny_gnmt import SOURCE, TARGET, padded

from gnmt.model.interfaces import DecoderState, Memory
from gnmt.model.seq2seq import Seq2Seq

GARBAGE = 8  # a real id, where PAD belongs


def check_padding_and_neighbors_change_nothing(model: Seq2Seq) -> None:
    """Neither the width of the padding nor the ids in it, on either side; and nothing looks at it."""
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
    """Step after step equals decode, while hypotheses change places, newcomers join and sentences leave."""
    generator = torch.Generator().manual_seed(5)
    arrivals, leaves = {0: [0, 1], 2: [2], 3: [3]}, {1: 1, 4: 0}  # by step: rows that come, and one that goes
    in_flight: list[tuple[int, list[list[int]]]] = []  # (row, what each hypothesis was fed)
    memory: Memory | None = None
    state: DecoderState | None = None
    for step in range(7):
        for row in arrivals.get(step, []):
            newcomer = model.encode(padded([SOURCE[row]]))
            start = model.start(newcomer, beam)
            memory = newcomer if memory is None else Memory.join([memory, newcomer])
            state = start if state is None else DecoderState.join([state, start])
            in_flight.append((row, [[] for _ in range(beam)]))
        assert memory is not None
        assert state is not None
        tokens_BK = torch.randint(2, 11, (len(in_flight), beam), generator=generator)
        before = {name: tensor.clone() for name, tensor in {**state.tensors, **state.by_step}.items()}
        log_probs_BKV, attention_BKS, next_state = model.step(tokens_BK, state, memory)
        assert log_probs_BKV.dtype == torch.float32
        assert (attention_BKS is not None) == model.decoder.has_attention
        # What was given is as it was: a state is passed on, never written to.
        assert all(torch.equal(tensor, before[name]) for name, tensor in {**state.tensors, **state.by_step}.items())
        for at, (row, fed) in enumerate(in_flight):
            for entry in range(beam):
                fed[entry].append(int(tokens_BK[at, entry]))
            alone = model.encode(padded([SOURCE[row]] * beam))
            hidden_KTH, expected_KTS = model.decode(padded(fed), alone, attention=True)
            expected_KV = torch.log_softmax(model.output(hidden_KTH[:, -1]), dim=-1)
            torch.testing.assert_close(log_probs_BKV[at].double(), expected_KV, rtol=1e-5, atol=1e-6)
            if attention_BKS is not None:
                width = len(SOURCE[row])
                assert expected_KTS is not None
                torch.testing.assert_close(attention_BKS[at, :, :width], expected_KTS[:, -1])
                assert (attention_BKS[at, :, width:] == 0).all()
        parents_BK = torch.randint(0, beam, (len(in_flight), beam), generator=generator)
        state = next_state.reorder(parents_BK)
        in_flight = [
            (row, [list(fed[parent]) for parent in parents_K])
            for (row, fed), parents_K in zip(in_flight, parents_BK.tolist(), strict=True)
        ]
        if step in leaves:
            # One sentence leaves, and those that stay change places.
            stay = [at for at in reversed(range(len(in_flight))) if at != leaves[step]]
            in_flight = [in_flight[at] for at in stay]
            oldest = max(len(fed[0]) for _, fed in in_flight)
            memory, state = memory.select(torch.tensor(stay)), state.trim(oldest).select(torch.tensor(stay))
            assert all(tensor.shape[2] == oldest for tensor in state.by_step.values())


def check_bf16_is_near(model: Seq2Seq, tolerance: float) -> None:
    """Under autocast, at once and by step."""
    model = model.float()
    memory = model.encode(padded(SOURCE))
    expected = torch.log_softmax(model.output(model.decode(padded(TARGET), memory)[0])[:, :2], -1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        memory = model.encode(padded(SOURCE))
        at_once = torch.log_softmax(model.output(model.decode(padded(TARGET), memory)[0])[:, :2].float(), -1)
        first_BKV, _, state = model.step(padded(TARGET).ids_BT[:, :1], model.start(memory, 1), memory)
        second_BKV, _, _ = model.step(padded(TARGET).ids_BT[:, 1:2], state, memory)
    assert (at_once - expected).abs().max() > 1e-6  # it was bf16
    by_step = torch.cat((first_BKV, second_BKV), 1)
    for row, target_ids in enumerate(TARGET):
        num = min(2, len(target_ids))
        torch.testing.assert_close(at_once[row, :num], expected[row, :num], atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(by_step[row, :num], expected[row, :num], atol=tolerance, rtol=tolerance)
