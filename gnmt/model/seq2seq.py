"""A translator: embeddings, an encoder, a decoder and an output layer."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from gnmt.batch import PAD_ID, Tokens
from gnmt.config.validate import Range
from gnmt.errors import InputError
from gnmt.model.interfaces import Decoder, DecoderState, Encoded, Encoder, Memory
from gnmt.model.layers import Dropout, WordDropout
from gnmt.model.validate import SIDES_SHARE, check_bridge, check_states_are_read, check_widths


class Seq2Seq(nn.Module):
    """Encoder and decoder behind the four calls that training and search use.

    `encode` once; then `decode` and `output` with the target known (training, scoring),
    or `start` and `step` token by token (search). `step` after `step` equals `decode`.

    tie_embeddings: "none"; "source_target" shares one table between both sides (they need one vocabulary);
    "target_output" uses the target's table as the output layer's weight (Press and Wolf 2017), which needs
    decoder.output_size == embedding_size and no common vocabulary; "all" is both.
    init_range: weights and biases start uniform in [-init_range, init_range]; the padding rows are zero.
    The attention keeps its own initialization of direction and scale, and encoders and decoders may draw weights in
    their own way (`initialize`).
    embedding_init_range: the same for the tables of embeddings; None takes init_range. Embeddings much larger than
    the weights tell words apart from the first update, and attention learns to align several times sooner.
    output_dropout: on the hidden states before the output layer.
    word_dropout: the probability that a token's embedding is zero, on both sides, so that the model learns to do
    without any one word (Gal and Ghahramani 2016); the others are divided by 1 - word_dropout.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        source_vocabulary_size: Annotated[int, Range(4)],
        target_vocabulary_size: Annotated[int, Range(4)],
        embedding_size: Annotated[int, Range(1)],
        tie_embeddings: Literal["none", "source_target", "target_output", "all"] = "none",
        init_range: Annotated[float, Range(0, open_low=True)] = 0.1,
        embedding_init_range: Annotated[float, Range(0, open_low=True)] | None = None,
        output_dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0,
        word_dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0,
    ) -> None:
        super().__init__()
        check_widths(encoder, decoder, embedding_size)
        check_bridge(encoder, decoder)
        check_states_are_read(encoder, decoder)
        sides_share, output_shares = tie_embeddings in SIDES_SHARE, tie_embeddings in ("target_output", "all")
        if sides_share and source_vocabulary_size != target_vocabulary_size:
            raise InputError(
                f"model.tie_embeddings={tie_embeddings} shares one table between the sides, but the source has "
                f"{source_vocabulary_size} pieces and the target {target_vocabulary_size}: use tokenizer.joint=true, "
                "or model.tie_embeddings=none or target_output"
            )
        if output_shares and decoder.output_size != embedding_size:
            raise InputError(
                f"model.tie_embeddings={tie_embeddings} needs model.embedding_size ({embedding_size}) equal to the "
                f"decoder's output size ({decoder.output_size}): make them equal or use model.tie_embeddings="
                f"{'source_target' if sides_share else 'none'}"
            )
        self.encoder = encoder
        self.decoder = decoder
        self.source_embedding = nn.Embedding(source_vocabulary_size, embedding_size, padding_idx=PAD_ID)
        if not sides_share:
            self.target_embedding = nn.Embedding(target_vocabulary_size, embedding_size, padding_idx=PAD_ID)
        else:
            self.target_embedding = self.source_embedding
        self.output_dropout = Dropout(output_dropout)
        self.word_dropout = WordDropout(word_dropout)
        self.output_layer = nn.Linear(decoder.output_size, target_vocabulary_size)
        if output_shares:
            self.output_layer.weight = self.target_embedding.weight
        self.initialize(init_range, init_range if embedding_init_range is None else embedding_init_range)

    def initialize(self, init_range: float, embedding_init_range: float) -> None:
        """Uniform weights, what encoder and decoder draw instead, zero padding rows; from torch's global generator."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.RNNBase):
                for parameter in module.parameters(recurse=False):
                    nn.init.uniform_(parameter, -init_range, init_range)
        self.encoder.initialize()
        self.decoder.initialize()
        # After the output layer, which may share its weight with them.
        with torch.no_grad():
            for embedding in {self.source_embedding: None, self.target_embedding: None}:
                nn.init.uniform_(embedding.weight, -embedding_init_range, embedding_init_range)
                embedding.weight[PAD_ID].zero_()

    @property
    def max_source_tokens(self) -> int | None:
        """Tokens of a source, with EOS, that `encode` can read; None for no limit."""
        return self.encoder.max_tokens

    def encode(self, source: Tokens) -> Memory:
        """Reads the source (pieces and EOS): everything about it that decoding needs."""
        embedded_BSE = self.word_dropout(self.source_embedding(source.ids_BT))
        encoded: Encoded = self.encoder(embedded_BSE, source.lengths_B)
        return Memory(encoded.states_BSH, source.mask_BT, self.decoder.prepare(encoded), encoded.by_sentence)

    def decode(self, target: Tokens, memory: Memory, attention: bool = False) -> tuple[Tensor, Tensor | None]:
        """Teacher forcing over BOS and the pieces: hidden [B, T, H] and, where asked for, attention [B, T, S]."""
        embedded_BTE = self.word_dropout(self.target_embedding(target.ids_BT))
        hidden_BTH, weights_BTS = self.decoder(embedded_BTE, memory)
        return hidden_BTH, weights_BTS if attention else None

    def output(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., H]."""
        logits: Tensor = self.output_layer(self.output_dropout(hidden))
        return logits

    def start(self, memory: Memory, beam: int) -> DecoderState:
        """The decoder's state before the first token, tensors [B, beam, ...]."""
        return self.decoder.start(memory, beam)

    def step(
        self, tokens_BK: Tensor, state: DecoderState, memory: Memory
    ) -> tuple[Tensor, Tensor | None, DecoderState]:
        """Feeds one token: fp32 log-probabilities of the next [B, K, V], attention [B, K, S], the new state."""
        hidden_BKH, weights_BKS, state = self.decoder.step(self.target_embedding(tokens_BK), state, memory)
        logits_BKV = self.output(hidden_BKH).float()
        # In search in the logits' own memory: with a second [B, K, V] malloc gave memory back to the system after each
        # step and took it again, page by page, which slowed a step at 32,000 pieces and 160 hypotheses by a tenth.
        own_memory = None if logits_BKV.requires_grad else logits_BKV
        log_probs_BKV = torch.log_softmax(logits_BKV, dim=-1, out=own_memory)
        return log_probs_BKV, weights_BKS, state
