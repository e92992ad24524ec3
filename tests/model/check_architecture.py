"""What holds for every architecture, as functions of a model in fp64 and evaluation mode; see tiny_gnmt for SOURCE."""

from __future__ import annotations

import torch
from tiny_gnmt import SOURCE, TARGET, padded

from gnmt.model.seq2seq import Seq2Seq
from gnmt.types import BOS_ID, EOS_ID, Memory, State, Tokens

GARBAGE = 8  # a real id, where PAD belongs


def decoded(model: Seq2Seq, source: Tokens, target: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and attention of the whole target at once."""
    hidden_BTH, attention_BTS = model.decode(target, model.encode(source), attention=True)
    assert attention_BTS is not None
    return hidden_BTH, attention_BTS


def check_padding_changes_nothing(model: Seq2Seq) -> None:
    """Neither its width nor the ids in it, on either side; and nothing looks at it."""
    hidden_BTH, attention_BTS = decoded(model, padded(SOURCE), padded(TARGET))
    wide_hidden_BTH, wide_attention_BTS = decoded(model, padded(SOURCE, 3, GARBAGE), padded(TARGET, 2, GARBAGE))
    for row, (source_ids, target_ids) in enumerate(zip(SOURCE, TARGET, strict=True)):
        real = row, slice(len(target_ids))
        torch.testing.assert_close(wide_hidden_BTH[real], hidden_BTH[real])
        weights_TS = wide_attention_BTS[real]
        torch.testing.assert_close(weights_TS[:, : len(source_ids)], attention_BTS[real][:, : len(source_ids)])
        assert (weights_TS[:, len(source_ids) :] == 0).all()
        torch.testing.assert_close(weights_TS.sum(1), torch.ones_like(weights_TS[:, 0]))


def check_a_batch_of_one_equals_its_row(model: Seq2Seq) -> None:
    hidden_BTH, attention_BTS = decoded(model, padded(SOURCE), padded(TARGET))
    for row, (source_ids, target_ids) in enumerate(zip(SOURCE, TARGET, strict=True)):
        own_hidden_BTH, own_attention_BTS = decoded(model, padded([source_ids]), padded([target_ids]))
        torch.testing.assert_close(own_hidden_BTH[0], hidden_BTH[row, : len(target_ids)])
        torch.testing.assert_close(own_attention_BTS[0], attention_BTS[row, : len(target_ids), : len(source_ids)])


def check_steps_equal_decode(model: Seq2Seq, beam: int) -> None:
    """Step after step equals decode, while hypotheses change places, newcomers join and sentences leave."""
    generator = torch.Generator().manual_seed(5)
    arrivals, leaves = {0: [0, 1], 2: [2], 3: [3]}, {1: 1, 4: 0}  # by step: rows that come, and one that goes
    in_flight: list[tuple[int, list[list[int]]]] = []  # (row, what each hypothesis was fed)
    memory: Memory | None = None
    state: State | None = None
    for step in range(7):
        for row in arrivals.get(step, []):
            newcomer = model.encode(padded([SOURCE[row]]))
            start = model.start(newcomer, beam)
            memory = newcomer if memory is None else Memory.join([memory, newcomer])
            state = start if state is None else State.join([state, start])
            in_flight.append((row, [[] for _ in range(beam)]))
        assert memory is not None
        assert state is not None
        tokens_BK = torch.randint(2, 11, (len(in_flight), beam), generator=generator)
        before = {name: tensor.clone() for name, tensor in {**state.tensors, **state.by_step}.items()}
        log_probs_BKV, attention_BKS, next_state = model.step(tokens_BK, state, memory)
        assert log_probs_BKV.dtype == torch.float32
        assert attention_BKS is not None
        # What was given is as it was: a state is passed on, never written to.
        assert all(torch.equal(tensor, before[name]) for name, tensor in {**state.tensors, **state.by_step}.items())
        for at, (row, fed) in enumerate(in_flight):
            for entry in range(beam):
                fed[entry].append(int(tokens_BK[at, entry]))
                alone = model.encode(padded([SOURCE[row]]))
                hidden_BTH, expected_BTS = model.decode(padded([fed[entry]]), alone, attention=True)
                expected_V = torch.log_softmax(model.output(hidden_BTH[0, -1]), dim=-1)
                torch.testing.assert_close(log_probs_BKV[at, entry].double(), expected_V, rtol=1e-5, atol=1e-5)
                width = len(SOURCE[row])
                assert expected_BTS is not None
                torch.testing.assert_close(attention_BKS[at, entry, :width], expected_BTS[0, -1])
                assert (attention_BKS[at, entry, width:] == 0).all()
        parents_BK = torch.randint(0, beam, (len(in_flight), beam), generator=generator)
        state = next_state.reorder(parents_BK)
        in_flight = [
            (row, [list(fed[parent]) for parent in parents_K])
            for (row, fed), parents_K in zip(in_flight, parents_BK.tolist(), strict=True)
        ]
        if step in leaves:
            stay = [at for at in range(len(in_flight)) if at != leaves[step]]
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
    torch.testing.assert_close(at_once, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(torch.cat((first_BKV, second_BKV), 1), expected, atol=tolerance, rtol=tolerance)


def share_of_copies_learned(model: Seq2Seq, num_updates: int, lr: float) -> float:
    """Trains a model with 12 pieces to say its source, and tells the share of right tokens of unseen sentences."""
    generator = torch.Generator().manual_seed(7)

    def batch(num_rows: int) -> tuple[Tokens, Tokens]:
        lengths = torch.randint(1, 7, (num_rows,), generator=generator).tolist()
        rows = [torch.randint(4, 12, (length,), generator=generator).tolist() for length in lengths]
        return padded([[*row, EOS_ID] for row in rows]), padded([[BOS_ID, *row, EOS_ID] for row in rows])

    def logits_and_labels(num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        source, target = batch(num_rows)
        inputs = Tokens(target.ids_BT[:, :-1], target.lengths_B - 1)
        hidden_BTH, _ = model.decode(inputs, model.encode(source))
        return model.output(hidden_BTH[inputs.mask_BT]), target.ids_BT[:, 1:][inputs.mask_BT]

    optimizer = torch.optim.Adam(model.parameters(), lr, betas=(0.9, 0.98))
    model.train()
    for update in range(num_updates):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (update + 1) / 30)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(*logits_and_labels(32)).backward()
        optimizer.step()
    model.eval()
    logits_NV, labels_N = logits_and_labels(100)
    return (logits_NV.argmax(1) == labels_N).double().mean().item()
