"""Interfaces of encoders, decoders and attention, and the tensors that pass between them.

The classes are in the order of the data flow. An `Encoder` returns `Encoded`. `Decoder.prepare` adds the tensors that
all decoding steps share, and the result is the `Memory`. A `Decoder` reads the memory and passes a `DecoderState` from
step to step; many decoders contain an `Attention`. `SearchModel` declares the methods of a model that search calls.

gnmt/batch.py explains the shape suffixes. In addition, E is the width of embeddings, A the width of attention keys, and
N any number of rows. Every tensor of a Memory or a DecoderState has the batch as its first axis, so the same `select`
and `join` work for every architecture.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from gnmt.batch import Tokens

SelectBeams = Callable[[Sequence[Tensor], Tensor], list[Tensor]]
"""Returns the hypotheses with given beam indices from several tensors, as `select_beams` does."""


class Encoder(nn.Module):
    """Base class of encoders, which turn embedded source tokens into states.

    Attributes:
        input_size: Width of the embeddings that `forward` takes.
        input_size_key: Constructor keyword that sets `input_size`, for error messages.
        output_size: Width of the states that `forward` returns.
        by_sentence_sizes: Width of each tensor in `Encoded.by_sentence`, by name. Empty for most encoders.
        state_options: Constructor keywords that are set and affect only the states. A model whose decoder does not read
            the states is then refused.
        max_tokens: Longest source, in tokens with EOS, that `forward` accepts; None for no limit.
    """

    input_size: int
    input_size_key: str = "input_size"
    output_size: int
    by_sentence_sizes: Mapping[str, int] = MappingProxyType({})
    state_options: Sequence[str] = ()
    max_tokens: int | None = None

    def initialize(self) -> None:
        """Draw the weights that should differ from the uniform ones of `Seq2Seq.initialize`; the default draws none."""

    @abstractmethod
    def forward(self, embedded_BSE: Tensor, lengths_B: Tensor) -> Encoded:
        """Encode B source sentences. Padding must not influence the states of real tokens.

        Args:
            embedded_BSE: Embeddings, float [B, S, input_size].
            lengths_B: Number of real tokens in each row, int64, 1 or more.

        Returns:
            States [B, S, output_size], and the further tensors that the encoder documents.
        """


class Encoded(NamedTuple):
    """Output of an encoder.

    A decoder documents the names that it reads from `by_token` and `by_sentence`.

    Attributes:
        states_BSH: One state for each source token.
        by_token: Further tensors [B, S, ...] by name.
        by_sentence: Further tensors [B, ...] without a source axis, such as final states for the decoder to start from.
    """

    states_BSH: Tensor
    by_token: Mapping[str, Tensor] = MappingProxyType({})
    by_sentence: Mapping[str, Tensor] = MappingProxyType({})


class Memory(NamedTuple):
    """Everything that decoding needs of the source, computed once for each sentence.

    A memory has one row for each sentence; all hypotheses of the beam share it.

    Attributes:
        states_BSH: Encoder states.
        mask_BS: bool, True for a real source token (EOS included).
        extras: Tensors [B, S, ...] that the decoder computes once for all steps, such as projected keys.
        by_sentence: Tensors [B, ...] without a source axis.
    """

    states_BSH: Tensor
    mask_BS: Tensor
    extras: Mapping[str, Tensor]
    by_sentence: Mapping[str, Tensor] = MappingProxyType({})

    def select(self, rows_N: Tensor) -> Memory:
        """Return a copy of the given rows, in the given order; a row may be repeated."""
        return self._map(lambda tensor: tensor.index_select(0, rows_N))

    def compact(self, free_N: Tensor, moved_N: Tensor, num_rows: int) -> Memory:
        """Copy rows over freed rows in place, and return the first `num_rows` rows as views.

        `select` would copy every row that stays, and the memory is the largest object in a search.

        Args:
            free_N: Rows to overwrite, int64.
            moved_N: Rows that replace them, in the same order, int64.
            num_rows: Number of rows that remain.
        """

        def compact_tensor(tensor: Tensor) -> Tensor:
            if len(free_N):
                # Rows of an expanded tensor share memory, so writing to one would change all.
                tensor = tensor.contiguous() if 0 in tensor.stride() else tensor
                tensor[free_N] = tensor[moved_N]
            return tensor[:num_rows]

        return self._map(compact_tensor)

    def trim(self, width: int) -> Memory:
        """Return the first `width` source positions as views; no row may have real tokens after them."""
        return Memory(
            self.states_BSH[:, :width],
            self.mask_BS[:, :width],
            {name: tensor[:, :width] for name, tensor in self.extras.items()},
            self.by_sentence,
        )

    @staticmethod
    def join(memories: Sequence[Memory]) -> Memory:
        """Concatenate the rows of several memories; shorter ones are padded along S, with False in the mask."""
        return Memory(
            join_rows([memory.states_BSH for memory in memories]),
            join_rows([memory.mask_BS for memory in memories]),
            _join_mappings([memory.extras for memory in memories]),
            _join_mappings([memory.by_sentence for memory in memories]),
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> Memory:
        """Apply a function to every tensor."""
        return Memory(
            function(self.states_BSH),
            function(self.mask_BS),
            {name: function(tensor) for name, tensor in self.extras.items()},
            {name: function(tensor) for name, tensor in self.by_sentence.items()},
        )


class Decoder(nn.Module):
    """Base class of decoders, which turn embedded target tokens into hidden states for the output layer.

    Calling `step` for each token returns the same hidden states as `forward` over the whole target.

    Attributes:
        input_size: Width of the embeddings.
        input_size_key: Constructor keyword that sets `input_size`, for error messages.
        memory_size: Width of the encoder's states; None for a decoder that does not read them.
        memory_size_key: Constructor keyword that sets `memory_size`, for error messages.
        output_size: Width of the hidden states that the output layer reads.
        by_sentence_sizes: Width of each tensor that the decoder reads from `Encoded.by_sentence`, by name.
        has_attention: Whether `forward` and `step` return attention, which aligns target with source tokens.
        max_tokens: Longest target, in tokens with BOS and without EOS, that `forward` accepts; None for no limit.
    """

    input_size: int
    input_size_key: str = "input_size"
    memory_size: int | None
    memory_size_key: str = "memory_size"
    output_size: int
    by_sentence_sizes: Mapping[str, int] = MappingProxyType({})
    has_attention: bool = True
    max_tokens: int | None = None

    def initialize(self) -> None:
        """Draw the weights that should differ from the uniform ones of `Seq2Seq.initialize`; the default draws none."""

    @abstractmethod
    def prepare(self, encoded: Encoded) -> Mapping[str, Tensor]:
        """Return the tensors [B, S, ...] for `Memory.extras` that all decoding steps share.

        Search overwrites rows of these tensors, so none of them may be a parameter or a buffer itself.
        """

    @abstractmethod
    def forward(self, embedded_BTE: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """Decode a whole target with teacher forcing.

        Args:
            embedded_BTE: Embeddings of BOS and the target without EOS, float [B, T, input_size].
            memory: Memory of the B source sentences.

        Returns:
            Hidden states [B, T, output_size], and attention [B, T, S] or None.
        """

    @abstractmethod
    def start(self, memory: Memory, beam: int) -> DecoderState:
        """Return the state before the first token: `tensors` are [B, beam, ...], `by_step` [B, beam, 0, ...]."""

    @abstractmethod
    def step(
        self, embedded_BKE: Tensor, state: DecoderState, memory: Memory
    ) -> tuple[Tensor, Tensor | None, DecoderState]:
        """Decode one more token of K hypotheses for each sentence. `state` must not be changed.

        Args:
            embedded_BKE: Embeddings of the hypotheses' last tokens, float [B, K, input_size].
            state: State that `start` or the step before returned.
            memory: Memory of the B source sentences.

        Returns:
            Hidden states [B, K, output_size], attention [B, K, S] or None, and the new state.
        """


def select_beams(tensors: Sequence[Tensor], beams_BN: Tensor) -> list[Tensor]:
    """Return the hypotheses [B, N, ...] with the given beam indices from each tensor [B, K, ...].

    One `index_select` of whole hypotheses is faster than `gather`, which would index every element.
    """
    beam = tensors[0].shape[1]
    starts_B1 = torch.arange(0, len(beams_BN) * beam, beam, device=beams_BN.device)[:, None]
    flat_M = (beams_BN + starts_B1).flatten()
    selected = [tensor.flatten(0, 1).index_select(0, flat_M) for tensor in tensors]
    return [tensor.view(*beams_BN.shape, *tensor.shape[1:]) for tensor in selected]


@dataclass(frozen=True)
class DecoderState:
    """State of a decoder between two steps; every tensor is [B, K, ...].

    Sentences enter a search at different times, so the rows of one state may have taken different numbers of steps.
    Each row therefore stores its own position in `tensors` where the decoder needs it. Positions are whole numbers: on
    CUDA, those of a finished sentence stay as they are while the other rows are stepped, so that they remain in range.

    Attributes:
        tensors: Tensors of fixed size by name.
        by_step: Tensors [B, K, T, ...] by name that grow by one entry along T at each step, such as the keys of
            self-attention. The entries of a row that has taken fewer than T steps come first. `join` pads T with
            zeros, and `trim` shortens it.
    """

    tensors: Mapping[str, Tensor]
    by_step: Mapping[str, Tensor] = field(default_factory=dict)

    def reorder(self, parents_BK: Tensor, select: SelectBeams = select_beams) -> DecoderState:
        """Return the state in which each hypothesis has the state of its parent.

        Args:
            parents_BK: Beam index of each parent, within the same sentence, int64.
            select: Selects the states of the parents.
        """
        tensors = (*self.tensors.values(), *self.by_step.values())
        if not tensors:
            return self
        moved, num_fixed = select(tensors, parents_BK), len(self.tensors)
        return DecoderState(
            dict(zip(self.tensors, moved[:num_fixed], strict=True)),
            dict(zip(self.by_step, moved[num_fixed:], strict=True)),
        )

    def select(self, rows_N: Tensor) -> DecoderState:
        """Return a copy of the given sentences' states, in the given order."""
        return DecoderState(
            {name: tensor.index_select(0, rows_N) for name, tensor in self.tensors.items()},
            {name: tensor.index_select(0, rows_N) for name, tensor in self.by_step.items()},
        )

    def trim(self, num_steps: int) -> DecoderState:
        """Return the entries of the first `num_steps` steps as views; no row may have taken more."""
        return DecoderState(self.tensors, {name: tensor[:, :, :num_steps] for name, tensor in self.by_step.items()})

    @staticmethod
    def join(states: Sequence[DecoderState]) -> DecoderState:
        """Concatenate the sentences of several states; axes after [B, K] are padded with zeros to the longest."""
        return DecoderState(
            _join_mappings([state.tensors for state in states]),
            _join_mappings([state.by_step for state in states]),
        )


class Attention(nn.Module):
    """Base class of attention over the encoder's states.

    Attributes:
        query_size: Width of the queries.
        memory_size: Width of the encoder's states.
        output_size: Width of the context.
    """

    query_size: int
    memory_size: int
    output_size: int

    @abstractmethod
    def keys(self, states_BSH: Tensor) -> Tensor:
        """Return the keys [B, S, A], the part of the score that depends on the source alone."""

    @abstractmethod
    def forward(self, query_BTH: Tensor, keys_BSA: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Attend to the source.

        Args:
            query_BTH: Queries, float [B, T, query_size]; in search T is the beam.
            keys_BSA: Result of `keys`.
            memory: Memory of the B source sentences.

        Returns:
            Context [B, T, output_size], and weights [B, T, S], which are 0 on padding and sum to 1 over S.
        """


class SearchModel(Protocol):
    """Methods that search calls; models, ensembles and quantized copies implement them."""

    def encode(self, source: Tokens) -> Memory:
        """Return the memory of B source sentences."""
        ...

    def start(self, memory: Memory, beam: int) -> DecoderState:
        """Return the state before the first token."""
        ...

    def step(
        self, tokens_BK: Tensor, state: DecoderState, memory: Memory
    ) -> tuple[Tensor, Tensor | None, DecoderState]:
        """Decode one more token.

        Args:
            tokens_BK: Last token of each hypothesis, int64.
            state: State that `start` or the step before returned.
            memory: Memory of the B source sentences.

        Returns:
            Log-probabilities of the next token, fp32 [B, K, V]; attention [B, K, S] or None; and the new state. The
            caller owns the log-probabilities: search overwrites those of suppressed tokens.
        """
        ...


def join_rows(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors along their first axis; the other axes are padded with zeros (False) to the longest."""
    shapes = [tensor.shape[1:] for tensor in tensors]
    if all(shape == shapes[0] for shape in shapes):
        return torch.cat(tuple(tensors))
    longest = [max(sizes) for sizes in zip(*shapes, strict=True)]
    joined = tensors[0].new_zeros(sum(len(tensor) for tensor in tensors), *longest)
    start = 0
    for tensor in tensors:
        joined[(slice(start, start + len(tensor)), *(slice(size) for size in tensor.shape[1:]))] = tensor
        start += len(tensor)
    return joined


def _join_mappings(mappings: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join the tensors of each name; all mappings have the same names."""
    return {name: join_rows([mapping[name] for mapping in mappings]) for name in mappings[0]}
