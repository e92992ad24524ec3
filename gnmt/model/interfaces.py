"""What an encoder, a decoder and an attention offer, so that they combine freely."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import Tensor, nn

from gnmt.types import Encoded, Memory, State


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

    def initialise(self) -> None:
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

    def initialise(self) -> None:
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
    def start(self, memory: Memory, beam: int) -> State:
        """The state before the first token: tensors [B, beam, ...], and by_step [B, beam, 0, ...] what will grow."""

    @abstractmethod
    def step(self, embedded_BKE: Tensor, state: State, memory: Memory) -> tuple[Tensor, Tensor | None, State]:
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
