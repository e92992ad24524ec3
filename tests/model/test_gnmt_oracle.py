"""The model agrees with the plain oracle in hidden states, attention, logits and gradients."""

from __future__ import annotations

import pytest
import torch
from oracle_gnmt import OracleGNMT, gradients
from tiny_gnmt import SOURCE, TARGET, padded, tiny_gnmt

CASES = [
    {"query": "current", "layers": (2, 2)},
    {"query": "previous", "layers": (2, 2)},
    {"query": "current", "layers": (3, 5), "normalize": False},
    {"query": "previous", "layers": (5, 3)},
    {"query": "current", "layers": (4, 4), "tie": "source_target"},
    {"query": "previous", "layers": (3, 4), "tie": "all"},
    {"query": "current", "layers": (2, 3), "shortcut": True},
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(value) for value in case.values()))
def test_the_model_agrees_with_the_oracle(case):
    model = tiny_gnmt(**case)
    oracle = OracleGNMT(model, case["query"])
    source, target = padded(SOURCE), padded(TARGET)
    memory = model.encode(source)
    hidden_BTH, attention_BTS = model.decode(target, memory, attention=True)
    logits_BTV = model.output(hidden_BTH)

    generator = torch.Generator().manual_seed(2)
    total, oracle_total = 0.0, 0.0
    for row, (source_ids, target_ids) in enumerate(zip(SOURCE, TARGET, strict=True)):
        states = oracle.encode(source_ids)
        hidden_TH, attention_TS = oracle.decode(target_ids, states)
        logits_TV = oracle.logits(hidden_TH)
        length, width = len(target_ids), len(source_ids)
        torch.testing.assert_close(memory.states_BSH[row, :width], torch.stack(states))
        torch.testing.assert_close(hidden_BTH[row, :length], hidden_TH)
        torch.testing.assert_close(attention_BTS[row, :length, :width], attention_TS)
        torch.testing.assert_close(logits_BTV[row, :length], logits_TV)
        direction_TV = torch.rand(logits_TV.shape, generator=generator, dtype=torch.float64)
        total = total + (direction_TV * logits_BTV[row, :length]).sum()
        oracle_total = oracle_total + (direction_TV * logits_TV).sum()

    expected = gradients(oracle_total, model)
    for name, gradient in gradients(total, model).items():
        assert expected[name].abs().max() > 1e-4, f"{name} has no part in this test"
        torch.testing.assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")


def test_the_first_query_of_the_paper_is_zero():
    """With `previous`, the first target token cannot steer the first look at the source."""
    for query, equal in (("previous", True), ("current", False)):
        model = tiny_gnmt(query=query)
        memory = model.encode(padded([SOURCE[0], SOURCE[0]]))
        _, attention_BTS = model.decode(padded([[4, 9], [7, 9]]), memory, attention=True)
        assert torch.equal(attention_BTS[0, 0], attention_BTS[1, 0]) is equal
        assert not torch.equal(attention_BTS[0, 1], attention_BTS[1, 1])
