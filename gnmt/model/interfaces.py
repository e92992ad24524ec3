"""Interfaces between encoder, decoder, attention and search, and the tensors that pass between them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from gnmt.batch import Tokens


class Encoded(NamedTuple):
    """What an encoder says of the source.

    states_BSH: one state a source token. by_token: further tensors [B, S, ...]; by_sentence: [B, ...] without a source
    axis, such as the final states that a bridge hands to the decoder. A decoder documents which names it reads.
    """

    states_BSH: Tensor
    by_token: Mapping[str, Tensor] = MappingProxyType({})
    by_sentence: Mapping[str, Tensor] = MappingProxyType({})


class Memory(NamedTuple):
    """What decoding needs of the source, computed once; `B` rows, never copied for the beam.

    states_BSH: encoder outputs. mask_BS: bool, True for a real source token (with EOS).
    extras: what a decoder prepares once for all its steps, such as projected keys; every tensor is [B, S, ...], so
    that `trim` and `join` know the source axis. by_sentence: what has no source axis, [B, ...].
    """

    states_BSH: Tensor
    mask_BS: Tensor
    extras: Mapping[str, Tensor]
    by_sentence: Mapping[str, Tensor] = MappingProxyType({})

    def select(self, rows_N: Tensor) -> Memory:
        """The given rows, in that order (sentences that stay, or repeated ones)."""
        return Memory(
            self.states_BSH.index_select(0, rows_N),
            self.mask_BS.index_select(0, rows_N),
            {name: tensor.index_select(0, rows_N) for name, tensor in self.extras.items()},
            {name: tensor.index_select(0, rows_N) for name, tensor in self.by_sentence.items()},
        )

    def compact(self, holes_N: Tensor, movers_N: Tensor, num_rows: int) -> Memory:
        """The first rows, with the `movers` from behind them in the places of the `holes`, as views.

        In place: `select` would copy every row that stays, and memory is the largest thing there is in a search.
        """

        def filled(tensor: Tensor) -> Tensor:
            if len(holes_N):
                tensor = tensor.contiguous() if 0 in tensor.stride() else tensor  # rows that are one and the same
                tensor[holes_N] = tensor[movers_N]
            return tensor[:num_rows]

        extras = {name: filled(tensor) for name, tensor in self.extras.items()}
        by_sentence = {name: filled(tensor) for name, tensor in self.by_sentence.items()}
        return Memory(filled(self.states_BSH), filled(self.mask_BS), extras, by_sentence)

    def trim(self, width: int) -> Memory:
        """The first `width` source positions, as views; every row's real tokens must lie within."""
        extras = {name: tensor[:, :width] for name, tensor in self.extras.items()}
        return Memory(self.states_BSH[:, :width], self.mask_BS[:, :width], extras, self.by_sentence)

    @staticmethod
    def join(memories: Sequence[Memory]) -> Memory:
        """The sentences of all, one memory's after another's; shorter ones get padding, which the mask leaves out."""
        first = memories[0]
        return Memory(
            join_rows([memory.states_BSH for memory in memories]),
            join_rows([memory.mask_BS for memory in memories]),
            {name: join_rows([memory.extras[name] for memory in memories]) for name in first.extras},
            {name: join_rows([memory.by_sentence[name] for memory in memories]) for name in first.by_sentence},
        )


@dataclass(frozen=True)
class DecoderState:
    """What a decoder remembers between steps: every tensor is [B, K, ...] and each row owns its position.

    One pair of mappings for every architecture, so that `select`, `reorder`, `join` and `trim` serve them all.
    by_step: what grows by one entry at each step, [B, K, T, ...], such as the keys of self-attention. Sentences in
    flight differ in length: a row's entries are its first ones, and it knows in `tensors` how many they are; `join`
    pads T with zeros, `trim` cuts what no row needs any more.
    """

    tensors: Mapping[str, Tensor]
    by_step: Mapping[str, Tensor] = field(default_factory=dict)

    def reorder(self, parents_BK: Tensor) -> DecoderState:
        """Each beam entry takes the state of its parent entry, int64 [B, K], within its sentence."""
        tensors = (*self.tensors.values(), *self.by_step.values())
        if not tensors:
            return self
        taken, num = select_beams(tensors, parents_BK), len(self.tensors)
        return DecoderState(
            dict(zip(self.tensors, taken[:num], strict=True)), dict(zip(self.by_step, taken[num:], strict=True))
        )

    def select(self, rows_N: Tensor) -> DecoderState:
        """The given sentences, in that order."""
        return DecoderState(
            {name: tensor.index_select(0, rows_N) for name, tensor in self.tensors.items()},
            {name: tensor.index_select(0, rows_N) for name, tensor in self.by_step.items()},
        )

    def trim(self, num_steps: int) -> DecoderState:
        """The entries of the first so many steps, as views; no row may have taken more."""
        return DecoderState(self.tensors, {name: tensor[:, :, :num_steps] for name, tensor in self.by_step.items()})

    @staticmethod
    def join(states: Sequence[DecoderState]) -> DecoderState:
        """The sentences of all, one state's after another's; axes behind [B, K] are padded to the longest."""
        first = states[0]
        return DecoderState(
            {name: join_rows([state.tensors[name] for state in states]) for name in first.tensors},
            {name: join_rows([state.by_step[name] for state in states]) for name in first.by_step},
        )


def join_rows(tensors: Sequence[Tensor]) -> Tensor:
    """The rows of all, one tensor's after another's; every further axis is padded with zeros (False) to its longest."""
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


def select_beams(tensors: Sequence[Tensor], entries_BN: Tensor) -> list[Tensor]:
    """The given entries of each sentence's beam, [B, N, ...] of [B, K, ...]; copies whole entries, which is fast."""
    beam = tensors[0].shape[1]
    starts_B1 = torch.arange(0, len(entries_BN) * beam, beam, device=entries_BN.device)[:, None]
    flat_M = (entries_BN + starts_B1).flatten()
    taken = [tensor.flatten(0, 1).index_select(0, flat_M) for tensor in tensors]
    return [tensor.view(*entries_BN.shape, *tensor.shape[1:]) for tensor in taken]


class Encoder(nn.Module):
    """Reads the embedded source. Widths: `input_size` of the embeddings, `output_size` of the states it returns.

    by_sentence_sizes: width of each tensor of its Encoded.by_sentence, none for most. only_for_states: keywords of the
    constructor that were given and change nothing but the states, so that they need a decoder which reads these.
    input_size_key: the keyword of the encoder's node that says input_size, for messages.
    max_tokens: of a source, with EOS, that it can read; None for no limit.
    """

    input_size: int
    input_size_key: str = "input_size"
    output_size: int
    by_sentence_sizes: Mapping[str, int] = MappingProxyType({})
    only_for_states: Sequence[str] = ()
    max_tokens: int | None = None

    def initialize(self) -> None:
        """Draws anew the weights that are not to start uniform, as those of Linear and LSTM do; here none."""

    @abstractmethod
    def forward(self, embedded_BSE: Tensor, lengths_B: Tensor) -> Encoded:
        """States [B, S, output_size]; what lies behind a row's length never reaches what is said of the row."""


class Decoder(nn.Module):
    """Writes the target.

    Widths: `input_size` of the embeddings, `memory_size` of the encoder's states (None: it reads none of them),
    `output_size` of the hidden states before the output layer. input_size_key, memory_size_key: the keywords of the
    decoder's node that say them, for messages. by_sentence_sizes: what it reads of Encoded.by_sentence,
    and in which width. has_attention: whether `forward` and `step` give attention that aligns target with source.
    max_tokens: that `forward` takes, BOS counted and EOS not; None for no limit.
    `forward` over a whole sequence and `step` after `step` give the same hidden states.
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
        """Draws anew the weights that are not to start uniform, as those of Linear and LSTM do; here none."""

    @abstractmethod
    def prepare(self, encoded: Encoded) -> Mapping[str, Tensor]:
        """What all steps share, computed once from what the encoder says: tensors [B, S, ...].

        Search writes sentences that stay over those that leave: no parameter and no buffer may be handed out as it is.
        """

    @abstractmethod
    def forward(self, embedded_BTE: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """Teacher forcing: hidden [B, T, output_size] and attention [B, T, S], or None without attention."""

    @abstractmethod
    def start(self, memory: Memory, beam: int) -> DecoderState:
        """The state before the first token: tensors [B, beam, ...], and by_step [B, beam, 0, ...] what will grow."""

    @abstractmethod
    def step(
        self, embedded_BKE: Tensor, state: DecoderState, memory: Memory
    ) -> tuple[Tensor, Tensor | None, DecoderState]:
        """One token further: hidden [B, K, output_size], attention [B, K, S] or None, and the new state."""


class Attention(nn.Module):
    """Looks up the source. Widths: `query_size`, `memory_size` of the states, `output_size` of the context."""

    query_size: int
    memory_size: int
    output_size: int

    @abstractmethod
    def keys(self, states_BSH: Tensor) -> Tensor:
        """The part of the score that depends on the source alone, [B, S, A]."""

    @abstractmethod
    def forward(self, query_BTH: Tensor, keys_BSA: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Context [B, T, output_size] and weights [B, T, S], which are 0 on padding and sum to 1."""


class SearchModel(Protocol):
    """All that search sees of a model; an ensemble looks the same."""

    def encode(self, source: Tokens) -> Memory: ...

    def start(self, memory: Memory, beam: int) -> DecoderState: ...

    def step(
        self, tokens_BK: Tensor, state: DecoderState, memory: Memory
    ) -> tuple[Tensor, Tensor | None, DecoderState]:
        """(log-probabilities [B, K, V] fp32, attention [B, K, S] or None, the next state).

        The log-probabilities are the caller's: search writes over those of tokens that may not come.
        """
        ...
