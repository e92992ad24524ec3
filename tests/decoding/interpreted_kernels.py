"""The Triton kernels of search equal plain PyTorch, in Triton's interpreter.

test_engine_kernels.py runs this file in a process with TRITON_INTERPRET=1, which must be set before the kernels are
imported.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_engine_inference_copy import small_model
from test_search_continuous_batching import ALL_OPTIONS, SUPPRESSED, assert_equal, random_sources
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import gnmt.decoding.beam as beam_module
import gnmt.decoding.engine.inference_copy as inference_copy_module
from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, padded
from gnmt.decoding.beam import (
    ActiveBatch,
    Candidates,
    Hypotheses,
    Sentences,
    advance,
    best_candidates,
    update_hypotheses,
)
from gnmt.decoding.engine import kernels
from gnmt.decoding.engine.inference_copy import InferenceLSTM, inference_copy
from gnmt.decoding.engine.search_batch import Shape, StaticBuffers
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.search import search
from gnmt.device import Precision
from gnmt.model.attention import AdditiveAttention, attend
from gnmt.model.interfaces import DecoderState, Memory, select_beams
from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.recurrent.gnmt_decoder import GNMTDecoder
from gnmt.model.seq2seq import Seq2Seq

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_summand", [False, True])
def test_the_cell(dtype, has_summand, monkeypatch) -> None:
    """Gates, summands and cells may be columns of wider tensors."""
    monkeypatch.setattr(kernels, "UNITS", 4)
    torch.manual_seed(1)
    gates_NG, wide_NG = torch.randn(3, 40).to(dtype)[:, 4:], torch.randn(3, 99).to(dtype)
    added_NG = wide_NG[:, 36:72] if has_summand else None
    cell_NH = torch.randn(3, 20)[:, 1:10]
    hidden_NH, new_cell_NH = kernels.lstm_cell(gates_NG, added_NG, cell_NH, dtype)
    assert (hidden_NH.dtype, new_cell_NH.dtype) == (dtype, torch.float32)
    both_NG = gates_NG.float() if added_NG is None else gates_NG.float() + added_NG.float()
    expected = InferenceLSTM(9).apply_gates(both_NG, (torch.zeros(3, 9), cell_NH))
    torch.testing.assert_close(hidden_NH.float(), expected[0], atol=1e-5 if dtype == torch.float32 else 1e-2, rtol=0)
    torch.testing.assert_close(new_cell_NH, expected[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_positions", [1, 5, 16])
def test_attention(dtype, num_positions, monkeypatch) -> None:
    """Several tiles with a rest, sources of different lengths, and keys and states in wider tensors."""
    monkeypatch.setattr(kernels, "TILE", 32)
    torch.manual_seed(2)
    query_BKA, keys_BSA = torch.randn(2, 3, 7).to(dtype), torch.randn(2, num_positions, 9).to(dtype)[..., 2:]
    states_BSH, vector_A = torch.randn(2, num_positions + 1, 11).to(dtype)[:, 1:], torch.randn(7)
    mask_BS = torch.arange(num_positions) < torch.tensor([[num_positions], [max(1, num_positions - 3)]])
    found = kernels.attend_additively(query_BKA, keys_BSA, vector_A, states_BSH, mask_BS)
    sums_BKSA = query_BKA.float()[:, :, None] + keys_BSA.float()[:, None]
    memory = Memory(states_BSH.float(), mask_BS, {})
    context_BKH, weights_BKS = attend([sums_BKSA.sigmoid() @ vector_A], memory)
    assert (found[0].dtype, found[1].dtype) == (dtype, torch.float32)
    torch.testing.assert_close(found[1], weights_BKS, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0].float(), context_BKH, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=0)
    assert not found[1][~mask_BS[:, None].expand_as(found[1])].any()


@pytest.mark.parametrize(("width", "count"), [(1, 1), (5, 5), (16, 3), (17, 3), (100, 4), (257, 8)])
def test_candidates(width, count, monkeypatch) -> None:
    """Up to four rounds, with ties, infinities and both zeros; a block may hold fewer elements than are wanted."""
    monkeypatch.setattr(kernels, "BLOCK", 16)
    torch.manual_seed(3)
    total_BN = torch.randint(-3, 3, (4, width + 1)).float()[:, :width]
    total_BN[1] = -0.0
    total_BN[2, 1:] = -math.inf
    total_BN[3, ::3] = math.inf
    found, expected = kernels.best_candidates(total_BN, count), best_candidates(total_BN, count)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_numbers_that_are_not_numbers_stay_so() -> None:
    """Search tells a model that diverged from one without a possible token by them."""
    total_BN = torch.tensor([[1.0, math.nan, 2.0], [math.nan, math.nan, -math.inf]])
    for one, other in zip(kernels.best_candidates(total_BN, 2), best_candidates(total_BN, 2), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


@pytest.mark.parametrize("beam", [1, 4])
def test_selected_hypotheses(beam, monkeypatch) -> None:
    """Tensors of all data types and widths, none at all among them, and one that is a view of a wider one."""
    monkeypatch.setattr(kernels, "ELEMENTS", 8)
    torch.manual_seed(4)
    tensors = [
        torch.randn(3, beam, 2, 9),
        torch.randn(3, beam, 20).bfloat16()[:, :, 3:],
        torch.randn(3, beam, 0),
        torch.randint(9, (3, beam)),
        torch.rand(3, beam, 5) < 0.5,
    ]
    beams_BN = torch.randint(beam, (3, 6))[:, ::2]
    found, expected = kernels.select_beams(tensors, beams_BN), select_beams(tensors, beams_BN)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


UPDATES = [
    SearchOptions(beam_size=4, coverage_beta=0.2, n_best=2),
    SearchOptions(beam_size=3, stop="first", coverage_beta=0.0, length_penalty_alpha=0.0),
    SearchOptions(beam_size=5, stop="exhausted", pruning=1.5, length_penalty_alpha=1.3),
    SearchOptions(beam_size=1, coverage_beta=0.3),
]


def random_batch(options: SearchOptions, with_beam_index: bool) -> ActiveBatch:
    """Return six sentences: new, without and with results, done, and at their length limit."""
    sentences, beam, num_tokens, num_positions = 6, options.beam_size, 9, 5
    lengths_B, limits_B = torch.tensor([0, 1, 3, 5, 6, 7]), torch.tensor([1, 8, 4, 8, 7, 8])
    num_results_B = torch.tensor([0, 0, 0, min(2, beam), beam, 1])
    ranks_K = torch.arange(beam)

    def hypotheses(log_prob_BK: torch.Tensor, lengths_BK: torch.Tensor, score_BK: torch.Tensor) -> Hypotheses:
        shape = (sentences, beam)
        return Hypotheses(
            tokens_BKT=torch.randint(4, 9, (*shape, num_tokens)),
            length_BK=lengths_BK,
            log_prob_BK=log_prob_BK,
            score_BK=score_BK,
            coverage_BKS=torch.rand(*shape, num_positions if options.coverage_beta else 0),
            beam_index_BKT=torch.randint(beam, (*shape, num_tokens if with_beam_index else 0)),
        )

    has_result_BK = ranks_K < num_results_B[:, None]
    scores_BK = -torch.rand(sentences, beam).sort(dim=1).values.mul(4).round().div(2)  # with ties
    result_BK = torch.where(has_result_BK, scores_BK, -math.inf)
    active_BK = -torch.rand(sentences, beam).mul(4).sort(dim=1).values
    active_BK[5] = -math.inf
    nothing_BK = torch.full_like(active_BK, -math.inf)
    mask_BS = torch.arange(num_positions) < torch.tensor([5, 4, 1, 2, 5, 3])[:, None]
    return ActiveBatch(
        sentences=Sentences.start(limits_B, lengths_B, padded([[]] * sentences, CPU), options)._replace(
            length_B=lengths_B, done_B=torch.tensor([False] * 5 + [True])
        ),
        memory=Memory(torch.zeros(sentences, num_positions, 1), mask_BS, {}),
        decoder=DecoderState({}),
        active=hypotheses(active_BK, lengths_B[:, None].expand(-1, beam).contiguous(), nothing_BK),
        results=hypotheses(result_BK * 2, torch.randint(1, 5, (sentences, beam)) * has_result_BK, result_BK),
        attention_BTKS=torch.zeros(0),
    )


def random_candidates(options: SearchOptions, share_of_ends: float) -> tuple[Candidates, torch.Tensor]:
    """Return candidates of the six sentences, with ties, -inf and NaN, and the attention of the step."""
    beam, number = options.beam_size, 2 * options.beam_size if options.beam_size > 1 else 1
    log_prob_BN = -torch.rand(6, number).mul(6).sort(dim=1).values.mul(4).round().div(4)
    log_prob_BN[1, 1:] = log_prob_BN[5] = -math.inf
    log_prob_BN[2, 0] = math.nan
    tokens_BN = torch.where(torch.rand(6, number) < share_of_ends, EOS_ID, torch.randint(4, 9, (6, number)))
    return Candidates(log_prob_BN, torch.randint(beam, (6, number)), tokens_BN), torch.rand(6, beam, 5)


@pytest.mark.parametrize("options", UPDATES, ids=["bound", "first", "pruning", "greedy"])
@pytest.mark.parametrize(("at_limit", "share_of_ends"), [(False, 0.4), (True, 0.4), (True, 1.0)])
def test_updated_hypotheses(options, at_limit, share_of_ends, monkeypatch) -> None:
    """Candidates with ties, impossible ones, and more of them that end than continue; several tiles with a rest."""
    monkeypatch.setattr(kernels, "ELEMENTS", 8)
    monkeypatch.setattr(kernels, "TILE", 8)
    torch.manual_seed(5)
    batch = random_batch(options, with_beam_index=at_limit)
    given = batch, *random_candidates(options, share_of_ends), options, at_limit
    expected, parents_BK = update_hypotheses(*given)
    with monkeypatch.context() as patched:
        patched.setattr(beam_module, "search_kernels_run", lambda device: True)
        found, found_parents_BK = update_hypotheses(*given)
    assert torch.equal(found_parents_BK, parents_BK)
    assert torch.equal(found.sentences.length_B, expected.sentences.length_B)
    assert torch.equal(found.sentences.done_B, expected.sentences.done_B)
    for one, other in ((found.active, expected.active), (found.results, expected.results)):
        for name, tensor, wanted in zip(Hypotheses._fields, one, other, strict=True):
            assert tensor.dtype == wanted.dtype, name
            torch.testing.assert_close(tensor, wanted, equal_nan=True, msg=name)


class Launched:
    """A kernel that adds its name to a list when it is launched."""

    def __init__(self, name: str, kernel: Any, launched: list[str]) -> None:
        self.name, self.kernel, self.launched = name, kernel, launched

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.launched.append(self.name)
            with _disable_current_modes():  # the interpreter's own operations
                self.kernel[grid](*args, **kwargs)

        return launch


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that are launched in the test."""
    names: list[str] = []
    for name, kernel in list(vars(kernels).items()):
        if name.endswith("_kernel"):
            monkeypatch.setattr(kernels, name, Launched(name, kernel, names))
    return names


def test_the_trial_calls_every_kernel(launched) -> None:
    """Once, search used its kernels wherever another one, that of attention in training, could be compiled."""
    kernels.call_all(CPU)
    assert set(launched) == {name for name in vars(kernels) if name.endswith("_kernel")}


class CountOperations(TorchDispatchMode):
    """Count torch's operations that launch a kernel on a GPU."""

    VIEWS = frozenset(
        (
            *(
                "alias",
                "as_strided",
                "detach",
                "empty",
                "empty_like",
                "empty_strided",
                "expand",
                "new_empty",
                "permute",
            ),
            *(
                "select",
                "slice",
                "split",
                "split_with_sizes",
                "squeeze",
                "t",
                "transpose",
                "unbind",
                "unsqueeze",
                "view",
            ),
            *("_reshape_alias", "_unsafe_view"),
        )
    )

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name.partition("::")[2]
        if name not in self.VIEWS:
            self.names.append(name)
        return operation(*args, **kwargs or {})


@torch.no_grad()
def test_a_step_of_beam_search_launches_34_kernels(monkeypatch, launched) -> None:
    """The figure of docs/results/decoding.md, for 4+4 layers and 32,000 subwords."""
    for module in (beam_module, inference_copy_module):
        monkeypatch.setattr(module, "search_kernels_run", lambda device: True)
    decoder = GNMTDecoder(4, 4, 4, AdditiveAttention(4, 4, 4))
    model = inference_copy(Seq2Seq(LSTMEncoder(4, 4, 4), decoder, 9, 32_000, 4), Precision("fp32", CPU))
    options, suppressed_N = SearchOptions(beam_size=5), torch.tensor([PAD_ID, BOS_ID])
    sentences = Sentences.start(torch.tensor([9]), torch.tensor([0]), padded([[]], CPU), options)
    entering = ActiveBatch.start(model, padded([[5, 6, EOS_ID]], CPU), sentences, 10, options, with_attention=False)

    def take_step(batch: ActiveBatch, *, some_forced: bool, some_at_limit: bool) -> ActiveBatch:
        return advance(model, batch, suppressed_N, options, some_forced=some_forced, some_at_limit=some_at_limit)

    buffers = StaticBuffers(Shape(1, 16, 16, 0), entering, take_step, lambda work: work)
    buffers.write([0], entering)
    launched.clear()
    with CountOperations() as counted:
        buffers._step(some_forced=False, some_at_limit=False)
    assert len(counted.names) + len(launched) == 34, (counted.names, launched)


def test_a_search_gives_the_same_results(monkeypatch) -> None:
    """All of them together, as on a GPU."""
    model, sources = small_model(), random_sources(3, longest=4)
    settings = {"device": CPU, "suppressed": SUPPRESSED, "with_attention": True, "batch_size": 2}
    expected = search(inference_copy(model, Precision("fp32", CPU)), sources, ALL_OPTIONS[0], **settings)
    calls = []
    for module in (beam_module, inference_copy_module):
        monkeypatch.setattr(module, "search_kernels_run", lambda device: calls.append(device) or True)
    found = search(inference_copy(model, Precision("fp32", CPU)), sources, ALL_OPTIONS[0], **settings)
    assert calls
    assert_equal(found, expected)
