"""An ensemble of several models searches as one model."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from stub_models import HistoryModel, batch_of, searched

from gnmt.batch import BOS_ID, EOS_ID
from gnmt.checkpoint.load import LoadedModel
from gnmt.data.tokenizer import TokenizerOptions, Tokenizers, train_tokenizers
from gnmt.decoding import ensemble as ensemble_module
from gnmt.decoding.ensemble import Ensemble, load_members
from gnmt.decoding.options import SearchOptions
from gnmt.errors import InputError
from gnmt.model.attention import AdditiveAttention
from gnmt.model.interfaces import DecoderState, Memory
from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.recurrent.gnmt_decoder import GNMTDecoder
from gnmt.model.seq2seq import Seq2Seq

SENTENCES = [[4, 5, 6], [7], [5, 5, 8, 4, 7, 6], [6, 4]]
OPTIONS = SearchOptions(beam_size=3, max_length_factor=1.0, max_length_offset=4)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def seq2seq(seed, hidden_size, num_layers=2):
    """Return a random GNMT with 9 source and 11 target subwords."""
    torch.manual_seed(seed)
    encoder = LSTMEncoder(5, hidden_size, 2)
    attention = AdditiveAttention(hidden_size, encoder.output_size, 4)
    return Seq2Seq(encoder, GNMTDecoder(5, hidden_size, num_layers, attention), 9, 11, 5, init_range=0.8).eval()


def first_step(model):
    """Return log-probabilities and attention of the step after BOS."""
    memory = model.encode(batch_of(SENTENCES))
    tokens_BK = torch.full((len(SENTENCES), 1), BOS_ID)
    return model.step(tokens_BK, model.start(memory, 1), memory)[:2]


@pytest.mark.parametrize("mean", ["log_probs", "probabilities"])
def test_equal_members_translate_as_one_of_them(mean):
    one = seq2seq(1, 6)
    expected = searched(one, SENTENCES, OPTIONS, with_attention=True)
    found = searched(Ensemble([one, one, one], mean), SENTENCES, OPTIONS, with_attention=True)
    for [hypothesis], [other] in zip(found, expected, strict=True):
        assert hypothesis.tokens == other.tokens
        assert hypothesis.score == pytest.approx(other.score, abs=1e-5)
        torch.testing.assert_close(hypothesis.attention_TS, other.attention_TS)


def test_means_by_hand():
    members = [HistoryModel.random(seed) for seed in (1, 2, 3)]
    probabilities_MBKV = torch.stack([first_step(member)[0].exp() for member in members])
    found, attention_BKS = first_step(Ensemble(members, "probabilities"))
    torch.testing.assert_close(found.exp(), probabilities_MBKV.mean(0))
    product_BKV = probabilities_MBKV.prod(0) ** (1 / 3)
    found, _ = first_step(Ensemble(members, "log_probs"))
    torch.testing.assert_close(found.exp(), product_BKV / product_BKV.sum(-1, keepdim=True))
    torch.testing.assert_close(attention_BKS, torch.stack([first_step(member)[1] for member in members]).mean(0))


@pytest.mark.parametrize("mean", ["log_probs", "probabilities"])
def test_members_of_other_sizes_stay_apart_through_every_reordering(mean):
    """A hypothesis has the mean of the probabilities that its members, run separately, give its tokens."""
    members = [seq2seq(1, 6), seq2seq(2, 7, num_layers=3), HistoryModel.random(3, vocabulary_size=11)]
    together = Ensemble(members, mean)
    for sentence, hypotheses in zip(SENTENCES, searched(together, SENTENCES, OPTIONS, batch_size=3), strict=True):
        log_prob = 0.0
        memories = [member.encode(batch_of([sentence])) for member in members]
        states = [member.start(memory, 1) for member, memory in zip(members, memories, strict=True)]
        last = BOS_ID
        for token in hypotheses[0].tokens:
            outputs = []
            for number, member in enumerate(members):
                log_probs, _, states[number] = member.step(torch.tensor([[last]]), states[number], memories[number])
                outputs.append(log_probs[0, 0])
            stacked = torch.stack(outputs)
            mean_V = stacked.exp().mean(0).log() if mean == "probabilities" else stacked.mean(0).log_softmax(0)
            log_prob += float(mean_V[token])
            last = token
        assert hypotheses[0].log_prob == pytest.approx(log_prob, abs=1e-5 * len(hypotheses[0].tokens))


def test_memories_and_states_join_and_select_as_those_of_one_model():
    together = Ensemble([seq2seq(1, 6), seq2seq(2, 7)])
    one, other = together.encode(batch_of(SENTENCES[:2])), together.encode(batch_of(SENTENCES[2:]))
    memory = Memory.join([one, other])
    state = DecoderState.join([together.start(one, 2), together.start(other, 2)])
    rows = torch.tensor([3, 0])
    tokens_BK = torch.full((2, 2), BOS_ID)
    found, _, _ = together.step(tokens_BK, state.select(rows), memory.select(rows))
    chosen = together.encode(batch_of([SENTENCES[3], SENTENCES[0]]))
    expected, _, _ = together.step(tokens_BK, together.start(chosen, 2), chosen)
    torch.testing.assert_close(found, expected)


def test_members_without_attention_are_left_out_of_its_mean():
    looking, blind = HistoryModel.random(1), HistoryModel.random(2, attention=False)
    _, attention_BKS = first_step(Ensemble([looking, blind]))
    torch.testing.assert_close(attention_BKS, first_step(looking)[1])
    assert first_step(Ensemble([blind, blind]))[1] is None


def test_an_unknown_mean_is_refused():
    with pytest.raises(InputError, match="ensemble is 'median'; it must be one of log_probs, probabilities"):
        Ensemble([HistoryModel.random(1)], "median")


@pytest.fixture
def shelf(monkeypatch):
    """Make checkpoints loadable by name: a and b with equal tokenizers, c with others."""
    lines = ["the dog sees a house", "a red house and the old man"]
    first, second = (
        train_tokenizers(lines, lines, TokenizerOptions(vocab_size=size, byte_fallback=False)) for size in (24, 26)
    )
    loaded = LoadedModel(seq2seq(1, 6), first, {}, {}, torch.device("cpu"))
    again = Tokenizers.from_checkpoint(first.to_checkpoint())
    contents = {
        "a.pt": loaded,
        "b.pt": dataclasses.replace(loaded, tokenizers=again),
        "c.pt": dataclasses.replace(loaded, tokenizers=second),
    }
    monkeypatch.setattr(ensemble_module, "load_model", lambda path, device, trusted, weights: contents[str(path)])


def test_only_checkpoints_with_equal_tokenizers_form_an_ensemble(shelf):
    assert len(load_members(["a.pt", "b.pt"], torch.device("cpu"))) == 2
    assert len(load_members("a.pt", torch.device("cpu"))) == 1
    with pytest.raises(InputError, match=r"checkpoint c\.pt has other tokenizers than a\.pt.*tokenizer=existing"):
        load_members(["a.pt", "c.pt"], torch.device("cpu"))
    with pytest.raises(InputError, match="names no file"):
        load_members([], torch.device("cpu"))


def test_eos_that_is_impossible_for_one_member_is_impossible_in_a_product():
    """In a product of experts a token impossible for one member is impossible; a mixture still ends."""
    free, endless = HistoryModel.random(1), HistoryModel.random(2)
    free.log_probs_RV[:, EOS_ID] += 4.0
    endless.log_probs_RV[:, EOS_ID] = -torch.inf
    [[product]] = searched(Ensemble([free, endless], "log_probs"), [[4, 5]], OPTIONS)
    [[mixture]] = searched(Ensemble([free, endless], "probabilities"), [[4, 5]], OPTIONS)
    assert (product.finished, mixture.finished) == (False, True)
