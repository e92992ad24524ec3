"""Search, ensembles and inference copies work with decoder states that grow with each step or hold recent steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from stub_models import assert_forced

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokens
from gnmt.decoding.engine.inference_copy import inference_copy
from gnmt.decoding.engine.linear import Int8Linear, PackedLinear
from gnmt.decoding.ensemble import Ensemble
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.search import search
from gnmt.device import Precision, int8_obstacle
from gnmt.model.attention import AdditiveAttention
from gnmt.model.convolutional import ConvolutionalDecoder, ConvolutionalEncoder
from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.recurrent.gnmt_decoder import GNMTDecoder
from gnmt.model.seq2seq import Seq2Seq
from gnmt.model.transformer import TransformerDecoder, TransformerEncoder

CPU = torch.device("cpu")
SUBWORDS, WIDTH = 20, 16
SUPPRESSED = (PAD_ID, UNK_ID, BOS_ID)
OPTIONS = SearchOptions(beam_size=3, n_best=3, max_length_factor=1.0, max_length_offset=4)
ENCODERS = {
    "transformer": lambda: TransformerEncoder(WIDTH, 2, 2, 24),
    "convolutional": lambda: ConvolutionalEncoder(WIDTH, WIDTH, 2),
    "lstm": lambda: LSTMEncoder(WIDTH, WIDTH, 2),
}
DECODERS = {
    "transformer": lambda: TransformerDecoder(WIDTH, WIDTH, 2, 2, 24),
    "convolutional": lambda: ConvolutionalDecoder(WIDTH, WIDTH, 2),
    "lstm": lambda: GNMTDecoder(WIDTH, WIDTH, 2, AdditiveAttention(WIDTH, WIDTH, WIDTH)),
}
PAIRS = [("transformer", "transformer"), ("convolutional", "convolutional"), ("transformer", "lstm")]
PAIRS += [("lstm", "transformer")]
every_pair = pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
needs_int8 = pytest.mark.skipif(int8_obstacle(CPU) is not None, reason="no fast int8 products here")


def model_of(encoder: str, decoder: str, seed: int = 1) -> Seq2Seq:
    """Return an untrained model whose distributions are far from uniform."""
    torch.manual_seed(seed)
    model = Seq2Seq(ENCODERS[encoder](), DECODERS[decoder](), SUBWORDS, SUBWORDS, WIDTH, init_range=0.6)
    return model.eval()


def random_sources(count: int, longest: int = 12) -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    lengths = torch.randint(0, longest, (count,), generator=generator).tolist()
    return [[*torch.randint(4, SUBWORDS, (length,), generator=generator).tolist(), EOS_ID] for length in lengths]


def found_by(model, sources, options=OPTIONS, **settings):
    return search(model, sources, options, device=CPU, suppressed=SUPPRESSED, with_attention=True, **settings)


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert [hypothesis.tokens for hypothesis in one.hypotheses] == [same.tokens for same in other.hypotheses]
        for hypothesis, same in zip(one.hypotheses, other.hypotheses, strict=True):
            assert hypothesis.score == pytest.approx(same.score, abs=1e-4)
            torch.testing.assert_close(hypothesis.attention_TS, same.attention_TS, atol=1e-4, rtol=0)


@every_pair
@pytest.mark.parametrize("sampling", [False, True], ids=["beam", "sampled"])
def test_a_sentence_does_not_depend_on_the_active_batch(encoder, decoder, sampling):
    """Sentences with different numbers of steps share one state; none may attend to another's steps."""
    model, sources = model_of(encoder, decoder), random_sources(14)
    options = replace(OPTIONS, sampling=sampling, top_k=5 if sampling else None, seed=3)
    expected = found_by(model, sources, options, batch_size=1)
    order = torch.randperm(14, generator=torch.Generator().manual_seed(2)).tolist()
    found = found_by(model, [sources[row] for row in order], options, keys=order, batch_size=4)
    assert_equal(found, [expected[row] for row in order])


@every_pair
def test_every_score_is_the_force_decoding_score_of_its_tokens(encoder, decoder):
    model, sources = model_of(encoder, decoder), random_sources(6)
    found = found_by(model, sources, batch_size=4)
    assert_forced(model, [source[:-1] for source in sources], [result.hypotheses for result in found], OPTIONS)


def test_the_state_is_as_long_as_the_oldest_active_sentence(monkeypatch):
    """Without trimming, it would grow with every step of a long file."""
    model, widths = model_of("transformer", "transformer"), []
    step = model.step

    def noting(tokens_BK, state, memory):
        widths.append(({tensor.shape[2] for tensor in state.by_step.values()}, int(state.tensors["length"].max())))
        return step(tokens_BK, state, memory)

    monkeypatch.setattr(model, "step", noting)
    found_by(model, random_sources(30, longest=5), replace(OPTIONS, stop="exhausted"), batch_size=4)
    assert len(widths) > 30
    assert all(shapes == {oldest} for shapes, oldest in widths)
    assert max(oldest for _, oldest in widths) < 9  # the longest limit is 5 + 4


@pytest.mark.parametrize("mean", ["log_probs", "probabilities"])
def test_different_architectures_translate_together(mean):
    """Each member has its own state; an ensemble of one gives the results of its member."""
    members = [model_of(encoder, decoder, seed) for seed, (encoder, decoder) in enumerate((*PAIRS, ("lstm", "lstm")))]
    sources = random_sources(6)
    together = found_by(Ensemble(members, mean), sources, batch_size=1)
    assert_equal(found_by(Ensemble(members, mean), sources, batch_size=4), together)
    for member in members:
        alone = found_by(member, sources, batch_size=4)
        assert_equal(found_by(Ensemble([member, member], mean), sources, batch_size=4), alone)


def some_steps(model, num_steps: int = 5) -> torch.Tensor:
    """Return log-probabilities [steps, B, K, V] of given tokens with reordered beams, in the model's precision."""
    generator = torch.Generator().manual_seed(3)
    rows = [row for row in random_sources(5) if len(row) > 1]
    width = max(map(len, rows))
    ids_BT = torch.tensor([row + [PAD_ID] * (width - len(row)) for row in rows])
    memory = model.encode(Tokens(ids_BT, torch.tensor([len(row) for row in rows])))
    state, found = model.start(memory, 2), []
    for _ in range(num_steps):
        tokens_BK = torch.randint(4, SUBWORDS, (len(rows), 2), generator=generator)
        log_probs_BKV, _, state = model.step(tokens_BK, state, memory)
        found.append(log_probs_BKV)
        state = state.reorder(torch.randint(0, 2, (len(rows), 2), generator=generator))
    return torch.stack(found)


@every_pair
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.3), pytest.param("int8", 0.3, marks=needs_int8)]
)
@torch.inference_mode()
def test_an_inference_copy_computes_what_the_model_computes(encoder, decoder, precision, tolerance):
    model = model_of(encoder, decoder)
    fast = inference_copy(model, Precision(precision, CPU))
    expected, found = some_steps(model), some_steps(fast)
    assert found.dtype == torch.float32
    difference = (found - expected).abs().max()
    assert difference < tolerance
    assert precision == "fp32" or difference > 1e-5
    search_options = replace(OPTIONS, beam_size=2, n_best=2)
    assert len(found_by(fast, random_sources(3), search_options)) == 3


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS[:2])
@torch.inference_mode()
def test_an_inference_copy_replaces_every_product(encoder, decoder):
    """A module left out would be no faster, and normalized weights would be normalized in every step."""
    precision = "fp32" if int8_obstacle(CPU) else "int8"
    fast = inference_copy(model_of(encoder, decoder), Precision(precision, CPU))
    kinds = {type(module).__name__ for module in fast.modules()}
    assert kinds & {Int8Linear.__name__, PackedLinear.__name__, "PlainLinear"}
    assert not kinds & {"Linear", "NormalizedLinear"}
