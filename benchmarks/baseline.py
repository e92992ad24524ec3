"""The plain translator that decoding speed is measured against.

It is written in the straightforward way of many toolkits, with PyTorch's modules in fp32: `nn.LSTM` is called with one
time step, attention keys are computed from the encoder states at every step, these states are copied for each
hypothesis, log-softmax and top-k run over beam * vocabulary, and the batch is static: finished sentences are computed
until the last one is finished. The encoder processes whole sequences with fused kernels.

It uses the weights of the model under test and the search of gnmt/decoding/search.py without pruning, so translations
can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, Tokens
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.scoring import length_penalty, score
from gnmt.model.attention import AdditiveAttention
from gnmt.model.recurrent.gnmt_decoder import GNMTDecoder
from gnmt.model.recurrent.layers import is_residual
from gnmt.model.seq2seq import Seq2Seq


@dataclass
class _Sentence:
    """Search state of one sentence.

    Args:
        limit: Largest |Y|.
        longest: Length penalty at the limit.
        finished: (score, tokens) of finished hypotheses.
        best: Result, when the search is done.
    """

    limit: int
    longest: float
    finished: list[tuple[float, list[int]]] = field(default_factory=list)
    best: list[int] | None = None


class Baseline:
    """Translate ids with a GNMT decoder and additive attention, in batches in the given order."""

    def __init__(self, model: Seq2Seq, device: torch.device) -> None:
        assert isinstance(model.decoder, GNMTDecoder)
        assert isinstance(model.decoder.attention, AdditiveAttention)
        self.model, self.decoder, self.attention = model, model.decoder, model.decoder.attention
        self.device = device

    @torch.inference_mode()
    def search(
        self, sources: Sequence[Sequence[int]], options: SearchOptions, suppressed: Sequence[int], batch_size: int
    ) -> list[list[int]]:
        """Return the target ids (with EOS if finished) of each source (with EOS)."""
        found: list[list[int]] = []
        for start in range(0, len(sources), batch_size):
            found += self._batch(sources[start : start + batch_size], options, suppressed)
        return found

    def _batch(
        self, sources: Sequence[Sequence[int]], options: SearchOptions, suppressed: Sequence[int]
    ) -> list[list[int]]:
        beam = options.beam_size
        ids_BS = pad_sequence([torch.tensor(ids) for ids in sources], batch_first=True, padding_value=PAD_ID)
        source = Tokens(ids_BS, torch.tensor([len(ids) for ids in sources])).to(self.device)
        states_BSH = self.model.encoder(self.model.source_embedding(source.ids_BT), source.lengths_B).states_BSH
        states_NSH = states_BSH.repeat_interleave(beam, dim=0)
        mask_NS = source.mask_BT.repeat_interleave(beam, dim=0)
        sentences = [_new_sentence(len(ids), options) for ids in sources]

        num_rows = len(states_NSH)
        zeros_1NH = states_NSH.new_zeros(1, num_rows, self.decoder.bottom.hidden_size)
        states = [(zeros_1NH, zeros_1NH)] * self.decoder.num_layers
        tokens_NT = torch.full((num_rows, 1), BOS_ID, device=self.device)
        coverage_NS = torch.zeros_like(mask_NS, dtype=torch.float32)
        log_prob_BK = torch.full((len(sources), beam), -math.inf, device=self.device)
        log_prob_BK[:, 0] = 0.0
        first_row_B1 = torch.arange(0, num_rows, beam, device=self.device)[:, None]

        for length in range(1, max(sentence.limit for sentence in sentences) + 1):
            logits_NV, weights_NS, states = self._step(tokens_NT[:, -1], states, states_NSH, mask_NS)
            log_probs_NV = torch.log_softmax(logits_NV, dim=-1)
            log_probs_NV[:, list(suppressed) + ([EOS_ID] if length < options.min_length else [])] = -math.inf
            vocabulary_size = log_probs_NV.shape[1]
            total_BN = log_prob_BK.flatten()[:, None].add(log_probs_NV).view(len(sources), -1)
            log_prob_BN, entries_BN = total_BN.topk(2 * beam, dim=1)
            rows_BN = first_row_B1 + entries_BN // vocabulary_size
            tokens_BN = entries_BN % vocabulary_size
            coverage_BNS = (coverage_NS + weights_NS)[rows_BN]
            lengths_BN = torch.full_like(log_prob_BN, length)
            score_BN = score(log_prob_BN, lengths_BN, coverage_BNS, source.mask_BT[:, None], options)
            self._finish(sentences, score_BN, tokens_BN, tokens_NT[rows_BN], beam)

            ends_BN = tokens_BN == EOS_ID
            staying_BK = ends_BN.byte().argsort(dim=1, stable=True)[:, :beam]
            rows_N = rows_BN.gather(1, staying_BK).flatten()
            log_prob_BK = log_prob_BN.gather(1, staying_BK)
            tokens_NT = torch.cat((tokens_NT[rows_N], tokens_BN.gather(1, staying_BK).view(-1, 1)), dim=1)
            coverage_NS = (coverage_NS + weights_NS)[rows_N]
            states = [(hidden[:, rows_N], cell[:, rows_N]) for hidden, cell in states]
            active_score_BK = score_BN.gather(1, staying_BK)
            if self._close(sentences, length, log_prob_BK, active_score_BK, tokens_NT):
                break
        return [sentence.best or [] for sentence in sentences]

    def _step(
        self, tokens_N: Tensor, states: list[tuple[Tensor, Tensor]], states_NSH: Tensor, mask_NS: Tensor
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """Return logits [N, V], attention [N, S] and the new states of one decoder step."""
        attention = self.attention
        embedded_1NE = self.model.target_embedding(tokens_N)[None]
        # torch's own forward is called, which returns the state too.
        inputs_1NH, bottom_state = nn.LSTM.forward(self.decoder.bottom, embedded_1NE, states[0])
        new_states = [bottom_state]
        query_NH = inputs_1NH[0] if self.decoder.query == "current" else states[0][0][0]
        keys_NSA = attention.key_projection(states_NSH)
        hidden_NSA = torch.tanh(attention.query_projection(query_NH)[:, None] + keys_NSA)
        scores_NS = (hidden_NSA @ attention.score_vector()).masked_fill(~mask_NS, -math.inf)
        weights_NS = torch.softmax(scores_NS, dim=-1)
        context_1NH = (weights_NS[:, None] @ states_NSH).transpose(0, 1)
        for number, layer in enumerate(self.decoder.upper, start=2):
            inputs_1NI = torch.cat((inputs_1NH, context_1NH), dim=-1)
            outputs_1NH, state = nn.LSTM.forward(layer, inputs_1NI, states[number - 1])
            new_states.append(state)
            inputs_1NH = outputs_1NH + inputs_1NH if is_residual(number, self.decoder.residual_from) else outputs_1NH
        output_NH = self.decoder.hidden(inputs_1NH[0], context_1NH[0], embedded_1NE[0])
        return self.model.output_layer(output_NH), weights_NS, new_states

    @staticmethod
    def _finish(
        sentences: list[_Sentence], score_BN: Tensor, tokens_BN: Tensor, history_BNT: Tensor, beam: int
    ) -> None:
        """Keep the candidates with EOS among the best K of each sentence."""
        for row, candidate in ((tokens_BN[:, :beam] == EOS_ID) & (score_BN[:, :beam] > -math.inf)).nonzero().tolist():
            if sentences[row].best is None:
                tokens = [*history_BNT[row, candidate, 1:].tolist(), EOS_ID]
                sentences[row].finished.append((float(score_BN[row, candidate]), tokens))

    @staticmethod
    def _close(
        sentences: list[_Sentence],
        length: int,
        log_prob_BK: Tensor,
        score_BK: Tensor,
        tokens_NT: Tensor,
    ) -> bool:
        """Store the results of sentences that are done; return whether all are."""
        tokens_BKT = tokens_NT.view(*log_prob_BK.shape, -1)
        best_active = log_prob_BK.amax(1).tolist()
        for row, sentence in enumerate(sentences):
            if sentence.best is not None:
                continue
            best_finished = max((found[0] for found in sentence.finished), default=-math.inf)
            done = length == sentence.limit or best_finished >= best_active[row] / sentence.longest
            if done or (log_prob_BK.shape[1] == 1 and sentence.finished):
                if sentence.finished:
                    sentence.best = max(sentence.finished, key=lambda found: found[0])[1]
                else:
                    sentence.best = tokens_BKT[row, int(score_BK[row].argmax()), 1:].tolist()
        return all(sentence.best is not None for sentence in sentences)


def _new_sentence(num_source_tokens: int, options: SearchOptions) -> _Sentence:
    limit = max(1, int(options.max_length_factor * num_source_tokens + options.max_length_offset))
    longest = length_penalty(torch.tensor(limit), options.length_penalty_alpha, options.length_penalty_constant)
    return _Sentence(limit, float(longest))
