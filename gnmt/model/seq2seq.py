"""The complete model: embeddings, an encoder, a decoder and an output layer."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from gnmt.batch import PAD_ID, Tokens
from gnmt.config.validate import Probability, Range, Size
from gnmt.model.clipping import Clip, Clipping
from gnmt.model.interfaces import Decoder, DecoderState, Encoded, Encoder, Memory
from gnmt.model.layers import Dropout, WordDropout
from gnmt.model.recurrent.layers import RecurrentLayer
from gnmt.model.validate import TIES_SIDES, TIES_TARGET_OUTPUT, check_clipping, check_parts


class Seq2Seq(nn.Module):
    """An encoder-decoder translation model.

    Training and force-decoding call `encode`, `decode` and `output` with the whole target. Search calls `encode` and
    `start` once and `step` for each token. Both ways assign the same log-probabilities to a target.

    Linear layers, recurrent layers and embeddings are initialized uniformly (see `initialize`), except where an
    encoder, decoder or recurrent layer draws its own weights. Embeddings of PAD are zero.

    Args:
        encoder: Encoder whose `input_size` is `embedding_size`.
        decoder: Decoder whose `input_size` is `embedding_size` and whose `memory_size` is the encoder's `output_size`.
        source_vocabulary_size: Number of source ids, the four special ones included.
        target_vocabulary_size: Number of target ids, the four special ones included.
        embedding_size: Width of the embeddings.
        tie_embeddings: Tables that are shared. "source_target": the embeddings of both sides, which then need one joint
            vocabulary. "target_output": the target embeddings and the output layer's weight (Press and Wolf 2017),
            which needs `decoder.output_size == embedding_size`. "all": all three. "none": no tables.
        init_range: Weights and biases of Linear and recurrent layers are uniform in [-init_range, init_range] at first.
        embedding_init_range: The range of the embeddings; None for `init_range`. Embeddings much larger than the other
            weights distinguish words from the first update on, and attention learns to align several times sooner.
        output_dropout: Dropout probability of the hidden states before the output layer.
        word_dropout: Probability with which a token's whole embedding is zeroed in training, on both sides (Gal and
            Ghahramani 2016); the other embeddings are divided by 1 - word_dropout. The ids in the attribute
            `kept_source_ids` are never dropped.
        memory_dropout: Dropout probability of the encoder's states that the decoder's attention reads (Caglayan et al.
            2017 use 0.5).
        clipping: Bounds of embeddings, encoder states, hidden states and logits, for a model with quantizable LSTM
            layers (Wu et al. 2016, section 6); None for no bounds.

    Raises:
        InputError: If the parts do not fit together (see gnmt/model/validate.py).
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        source_vocabulary_size: Annotated[int, Range(4)],
        target_vocabulary_size: Annotated[int, Range(4)],
        embedding_size: Size,
        tie_embeddings: Literal["none", "source_target", "target_output", "all"] = "none",
        init_range: Annotated[float, Range(0, 1000, open_low=True)] = 0.1,
        embedding_init_range: Annotated[float, Range(0, 1000, open_low=True)] | None = None,
        output_dropout: Probability = 0.0,
        word_dropout: Probability = 0.0,
        memory_dropout: Probability = 0.0,
        clipping: Clipping | None = None,
    ) -> None:
        super().__init__()
        check_parts(encoder, decoder, embedding_size, tie_embeddings)
        check_clipping(encoder, decoder, clipping)
        self.encoder = encoder
        self.decoder = decoder
        self.source_embedding = nn.Embedding(source_vocabulary_size, embedding_size, padding_idx=PAD_ID)
        if tie_embeddings in TIES_SIDES:
            self.target_embedding = self.source_embedding
        else:
            self.target_embedding = nn.Embedding(target_vocabulary_size, embedding_size, padding_idx=PAD_ID)
        self.output_dropout = Dropout(output_dropout)
        self.word_dropout = WordDropout(word_dropout)
        self.kept_source_ids: tuple[int, ...] = ()
        self.memory_dropout = Dropout(memory_dropout)
        self.output_layer = nn.Linear(decoder.output_size, target_vocabulary_size)
        if tie_embeddings in TIES_TARGET_OUTPUT:
            self.output_layer.weight = self.target_embedding.weight
        self.clipping = clipping
        self.clip = None if clipping is None else Clip()
        self.begin_update(0)
        self.initialize(init_range, init_range if embedding_init_range is None else embedding_init_range)

    def initialize(self, init_range: float, embedding_init_range: float) -> None:
        """Draw the weights from torch's global generator.

        First all Linear and recurrent modules are drawn uniformly. Then `initialize` of the encoder, the decoder and
        their recurrent layers may draw other weights. The embeddings are drawn last. Other parameters, such as the
        attention's direction and scale, keep the values from their modules' constructors.

        Args:
            init_range: Bound of the weights and biases.
            embedding_init_range: Bound of the embeddings.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.RNNBase):
                for parameter in module.parameters(recurse=False):
                    nn.init.uniform_(parameter, -init_range, init_range)
        for part in self.modules():
            if isinstance(part, Encoder | Decoder | RecurrentLayer):
                part.initialize()
        # The output layer, drawn above, may share the embeddings' weight, so the embeddings are drawn after it.
        with torch.no_grad():
            for embedding in dict.fromkeys((self.source_embedding, self.target_embedding)):
                nn.init.uniform_(embedding.weight, -embedding_init_range, embedding_init_range)
                embedding.weight[PAD_ID].zero_()

    def begin_update(self, step: int) -> None:
        """Set the bound of clipped activations for update `step`, counted from 0."""
        if self.clipping is not None:
            for module in self.modules():
                if isinstance(module, Clip):
                    module.delta.fill_(self.clipping.delta(step))

    def bounded(self, values: Tensor) -> Tensor:
        """Return embeddings or states, clipped where the model has `clipping`."""
        return values if self.clip is None else self.clip(values)

    @property
    def max_source_tokens(self) -> int | None:
        """The longest source, in tokens with EOS, that `encode` accepts; None for no limit."""
        return self.encoder.max_tokens

    def encode(self, source: Tokens) -> Memory:
        """Encode B source sentences.

        Args:
            source: Subword ids with EOS.

        Returns:
            Everything that decoding needs of the source.
        """
        embedded_BSE = self.bounded(self.source_embedding(source.ids_BT))
        embedded_BSE = self.word_dropout(embedded_BSE, self._kept_in_word_dropout(source.ids_BT))
        encoded: Encoded = self.encoder(embedded_BSE, source.lengths_B)
        encoded = encoded._replace(states_BSH=self.memory_dropout(self.bounded(encoded.states_BSH)))
        return Memory(encoded.states_BSH, source.mask_BT, self.decoder.prepare(encoded), encoded.by_sentence)

    def _kept_in_word_dropout(self, ids_BS: Tensor) -> Tensor | None:
        """Return a mask of the source tokens that word dropout keeps, or None if there is no such id."""
        if not self.kept_source_ids or not self.training:
            return None
        return torch.stack([ids_BS == id for id in self.kept_source_ids]).any(0)

    def decode(self, target: Tokens, memory: Memory, attention: bool = False) -> tuple[Tensor, Tensor | None]:
        """Decode whole targets with teacher forcing.

        Args:
            target: BOS and subword ids, without EOS.
            memory: Memory of the B source sentences.
            attention: Whether to return the attention.

        Returns:
            Hidden states [B, T, H] for `output`, and the attention [B, T, S]. The latter is None if `attention` is
            False or the decoder has none.
        """
        embedded_BTE = self.word_dropout(self.bounded(self.target_embedding(target.ids_BT)))
        hidden_BTH, weights_BTS = self.decoder(embedded_BTE, memory)
        return self.bounded(hidden_BTH), weights_BTS if attention else None

    def output(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V] of hidden states [..., H]."""
        logits: Tensor = self.output_layer(self.output_dropout(hidden))
        return logits if self.logit_bound is None else logits.clamp(-self.logit_bound, self.logit_bound)

    @property
    def logit_bound(self) -> float | None:
        """Bound to which logits are clipped (Wu et al. 2016, eq. 13); None for no bound."""
        return None if self.clipping is None else self.clipping.logits

    def start(self, memory: Memory, beam: int) -> DecoderState:
        """Return the decoder's state before the first token, with tensors [B, beam, ...]."""
        return self.decoder.start(memory, beam)

    def step(
        self, tokens_BK: Tensor, state: DecoderState, memory: Memory
    ) -> tuple[Tensor, Tensor | None, DecoderState]:
        """Decode one more token of K hypotheses for each sentence.

        Args:
            tokens_BK: Last token of each hypothesis, BOS at the first step, int64.
            state: State that `start` or the step before returned.
            memory: Memory of the B source sentences.

        Returns:
            Log-probabilities of the next token, fp32 [B, K, V]; attention [B, K, S] or None; and the new state.
        """
        embedded_BKE = self.bounded(self.target_embedding(tokens_BK))
        hidden_BKH, weights_BKS, state = self.decoder.step(embedded_BKE, state, memory)
        logits_BKV = self.output(self.bounded(hidden_BKH)).float()
        # In search the result overwrites the logits. A second [B, K, V] made malloc return memory to the system after
        # each step and request it again, which slowed a step of 160 hypotheses over 32,000 subwords by a tenth.
        out = None if logits_BKV.requires_grad else logits_BKV
        log_probs_BKV = torch.log_softmax(logits_BKV, dim=-1, out=out)
        return log_probs_BKV, weights_BKS, state
