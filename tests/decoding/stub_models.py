"""Small models with known probabilities for tests of search."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import gnmt.decoding.translator as translator_module
from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, Tokens
from gnmt.data.tokenizer import TokenizerOptions, Tokenizers, train_tokenizers
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.scoring import force_decode
from gnmt.decoding.search import Hypothesis, search
from gnmt.decoding.translator import Translator
from gnmt.device import choose_precision
from gnmt.model.interfaces import DecoderState, Memory

CPU = torch.device("cpu")
NUM_HISTORIES = 211
FP32 = choose_precision("fp32", CPU)
OPTIONS = SearchOptions(beam_size=3, max_length_factor=0.0, max_length_offset=5)
LINES = [
    "the dog sees a house.",
    "a red house.",
    "it runs to the old man and then it reads.",
    "today.",
    "the man runs.",
]


def searched(model, sentences: Sequence[Sequence[int]], options: SearchOptions, **settings) -> list[list[Hypothesis]]:
    """Search the sentences, given without EOS, and return the hypotheses of each."""
    sources = [[*sentence, EOS_ID] for sentence in sentences]
    return [result.hypotheses for result in search(model, sources, options, device=CPU, **settings)]


def batch_of(sentences: Sequence[Sequence[int]], width: int = 0) -> Tokens:
    """Return rows of ids with EOS added, padded to the longest or to `width`."""
    rows = [[*sentence, EOS_ID] for sentence in sentences]
    width = max(width, *(len(row) for row in rows))
    ids = torch.tensor([row + [PAD_ID] * (width - len(row)) for row in rows])
    return Tokens(ids, torch.tensor([len(row) for row in rows]))


class HistoryModel(nn.Module):
    """A model whose next token depends on a hash of the source and of all tokens so far.

    log_probs_RV: one row of log-probabilities for each of R kinds of history. attention_RS: energies likewise,
    or None for a model without attention. `calls` records the shapes that `step` was called with.
    """

    max_source_tokens: int | None = None

    def __init__(self, log_probs_RV: Tensor, attention_RS: Tensor | None) -> None:
        super().__init__()
        self.log_probs_RV = log_probs_RV
        self.attention_RS = attention_RS
        self.calls: list[tuple[int, int]] = []

    @classmethod
    def random(
        cls, seed: int, vocabulary_size: int = 9, peakedness: float = 1.5, attention: bool = True
    ) -> HistoryModel:
        generator = torch.Generator().manual_seed(seed)
        logits_RV = peakedness * torch.randn(NUM_HISTORIES, vocabulary_size, generator=generator)
        energies_RS = 2.0 * torch.randn(NUM_HISTORIES, 64, generator=generator)
        return cls(logits_RV.log_softmax(1), energies_RS if attention else None)

    def encode(self, source: Tokens) -> Memory:
        places_S = torch.arange(1, source.ids_BT.shape[1] + 1)
        key_B = (source.ids_BT * places_S * source.mask_BT).sum(1)
        key_BS = key_B[:, None].expand(source.ids_BT.shape)  # extras are [B, S, ...]
        return Memory(source.ids_BT[:, :, None].float(), source.mask_BT, {"key": key_BS})

    def start(self, memory: Memory, beam: int) -> DecoderState:
        return DecoderState({"key": memory.extras["key"][:, :1].expand(-1, beam).clone()})

    def step(
        self, tokens_BK: Tensor, state: DecoderState, memory: Memory
    ) -> tuple[Tensor, Tensor | None, DecoderState]:
        assert tokens_BK.shape[0] == memory.mask_BS.shape[0] == state.tensors["key"].shape[0]
        self.calls.append((tokens_BK.shape[0], tokens_BK.shape[1]))
        key_BK = (state.tensors["key"] * 31 + tokens_BK * 7 + 1) % 1_000_003
        rows_BK = key_BK % len(self.log_probs_RV)
        attention_BKS = None
        if self.attention_RS is not None:
            energies_BKS = self.attention_RS[rows_BK][:, :, : memory.mask_BS.shape[1]]
            attention_BKS = energies_BKS.masked_fill(~memory.mask_BS[:, None], -torch.inf).softmax(-1)
        return self.log_probs_RV[rows_BK], attention_BKS, DecoderState({"key": key_BK})


def assert_forced(model, some, found, options):
    """Assert that every reported score is the force-decoding score of its ids, within the documented tolerance."""
    pairs = [
        (sentence, hypothesis) for sentence, hypotheses in zip(some, found, strict=True) for hypothesis in hypotheses
    ]
    rows = [[BOS_ID, *hypothesis.tokens] for _, hypothesis in pairs]
    width = max(map(len, rows))
    target = Tokens(
        torch.tensor([row + [PAD_ID] * (width - len(row)) for row in rows]), torch.tensor([len(row) for row in rows])
    )
    forced = force_decode(model, batch_of([sentence for sentence, _ in pairs]), target, options)
    for row, (sentence, hypothesis) in enumerate(pairs):
        tolerance = 1e-5 * len(hypothesis.tokens)
        of_coverage = 1e-5 * options.coverage_beta * (len(sentence) + 1)
        assert hypothesis.log_prob == pytest.approx(float(forced.log_prob_B[row]), abs=tolerance)
        assert hypothesis.score == pytest.approx(float(forced.score_B[row]), abs=tolerance + of_coverage)


class MarkovModel(nn.Module):
    """A model whose next token depends on the last one alone, by a table {last: {next: probability}}.

    Transitions that are not named have probability 0. Attention is uniform over the real source tokens.
    """

    max_source_tokens: int | None = None

    def __init__(self, probabilities: dict[int, dict[int, float]], vocabulary_size: int = 8) -> None:
        super().__init__()
        table = torch.zeros(vocabulary_size, vocabulary_size)
        for last, following in probabilities.items():
            for token, probability in following.items():
                table[last, token] = probability
        self.log_probs_VV = table.log()

    def encode(self, source: Tokens) -> Memory:
        return Memory(source.ids_BT[:, :, None].float(), source.mask_BT, {})

    def start(self, memory: Memory, beam: int) -> DecoderState:
        return DecoderState({})

    def step(
        self, tokens_BK: Tensor, state: DecoderState, memory: Memory
    ) -> tuple[Tensor, Tensor | None, DecoderState]:
        weights_BS = memory.mask_BS / memory.mask_BS.sum(1, keepdim=True)
        return self.log_probs_VV[tokens_BK], weights_BS[:, None].expand(-1, tokens_BK.shape[1], -1), state


class CopyModel(nn.Module):
    """A model that copies the source tokens and then EOS, not quite certain, with attention on the copied token."""

    max_source_tokens: int | None = None

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.dropout = nn.Dropout(0.5)  # search in training mode would show
        self.batch_shapes: list[tuple[int, int]] = []

    def encode(self, source: Tokens) -> Memory:
        assert not self.training
        assert not self.dropout.training
        self.batch_shapes.append((source.ids_BT.shape[0], source.ids_BT.shape[1]))
        return Memory(source.ids_BT[:, :, None].float(), source.mask_BT, {"ids": source.ids_BT})

    def start(self, memory: Memory, beam: int) -> DecoderState:
        return DecoderState({"position": torch.zeros(memory.mask_BS.shape[0], beam, dtype=torch.long)})

    def step(
        self, tokens_BK: Tensor, state: DecoderState, memory: Memory
    ) -> tuple[Tensor, Tensor | None, DecoderState]:
        position_BK = state.tensors["position"]
        width = memory.mask_BS.shape[1]
        place_BK = torch.minimum(position_BK, memory.mask_BS.sum(1, keepdim=True) - 1)
        wanted_BK = memory.extras["ids"].gather(1, place_BK)
        logits_BKV = 6.0 * nn.functional.one_hot(wanted_BK, self.vocabulary_size).float()
        attention_BKS = nn.functional.one_hot(place_BK, width).float()
        return logits_BKV.log_softmax(-1), attention_BKS, DecoderState({"position": position_BK + 1})


def line_tokenizers() -> Tokenizers:
    """Return tokenizers trained on LINES, without byte fallback."""
    return train_tokenizers(LINES, LINES, TokenizerOptions(vocab_size=50, byte_fallback=False))


def history_translator(tokenizers: Tokenizers, monkeypatch: pytest.MonkeyPatch) -> Translator:
    """Return a translator with a HistoryModel, which no inference copy replaces."""
    monkeypatch.setattr(translator_module, "inference_copy", lambda model, precision: model.eval())
    model = HistoryModel.random(2, tokenizers.target.vocabulary_size)
    model.log_probs_RV[:, EOS_ID] += 1.0  # so that some finish before the limit
    model.log_probs_RV = model.log_probs_RV.log_softmax(1)
    return Translator(model, tokenizers, OPTIONS, FP32)
