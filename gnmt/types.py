"""The values that travel between the parts of gnmt.

Shape suffixes: B batch, S source length, T target length, H hidden, V vocabulary, K beam.
Everything here is batch-major; masks are bool and True marks a real token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
"""What `precision` may be; gnmt.runtime says what they mean."""

SEARCH_PRECISIONS = (*PRECISIONS, "int8")
"""The same for translating and scoring, where weights may be quantised."""


class InputError(ValueError):
    """Something that a user gave is wrong: a config, a file, a checkpoint, a line of text.

    The message is the product: it names the key or `path:line`, what was found, what is allowed
    and how to mend it. Scripts print it alone; a traceback is for our own bugs.
    """


class Interrupted(KeyboardInterrupt):
    """A signal asked to stop. The message says what was saved and how to go on; scripts end with exit_code.

    agreed: whether the work was stopped in good order, in all its processes; False where it was broken off.
    """

    def __init__(self, message: str, exit_code: int, *, agreed: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.agreed = agreed


def counted(number: int, noun: str, comma: bool = False) -> str:
    """1 pair, 2 pairs: a number with its noun, for messages. comma: between thousands."""
    return f"{number:{',' if comma else ''}} {noun}{'' if number == 1 else 's'}"


class Tokens(NamedTuple):
    """Padded token ids of one side of a batch.

    ids_BT: int64, PAD_ID behind each row's end. lengths_B: int64, real tokens in each row.
    """

    ids_BT: Tensor
    lengths_B: Tensor

    @property
    def mask_BT(self) -> Tensor:
        """bool [B, T], True for a real token."""
        positions_T = torch.arange(self.ids_BT.shape[1], device=self.ids_BT.device)
        return positions_T < self.lengths_B[:, None]

    def to(self, device: torch.device) -> Tokens:
        return Tokens(self.ids_BT.to(device, non_blocking=True), self.lengths_B.to(device, non_blocking=True))


class Batch(NamedTuple):
    """Sentence pairs with the framing of training.

    source: pieces and EOS. target: BOS, pieces and EOS, so its lengths are |Y| + 1.
    pairs_B: int64, each row's index in the prepared store.
    num_labels: target tokens with EOS, without BOS, of all rows; a number of the host, which therefore never has to
    wait for the device to count them.
    """

    source: Tokens
    target: Tokens
    pairs_B: Tensor
    num_labels: int

    @property
    def target_input(self) -> Tokens:
        """What the decoder reads: BOS and the pieces, |Y| tokens a row."""
        lengths_B = self.target.lengths_B - 1
        inputs = Tokens(self.target.ids_BT[:, :-1], lengths_B)
        return Tokens(inputs.ids_BT.masked_fill(~inputs.mask_BT, PAD_ID), lengths_B)

    @property
    def labels(self) -> Tokens:
        """What the decoder must say: the pieces and EOS, |Y| tokens a row."""
        return Tokens(self.target.ids_BT[:, 1:], self.target.lengths_B - 1)

    @property
    def num_real_tokens(self) -> int:
        """Source and target tokens with EOS, without BOS and padding: what throughput counts."""
        return int(self.source.lengths_B.sum()) + self.num_labels

    @property
    def num_padded_tokens(self) -> int:
        """The same with padding: what memory and time go by."""
        return self.source.ids_BT.numel() + self.target.ids_BT.numel() - len(self.pairs_B)

    def to(self, device: torch.device) -> Batch:
        """The batch on that device; pairs_B, which only the host reads, stays where it is."""
        return self._replace(source=self.source.to(device), target=self.target.to(device))


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

    def fill_holes(self, holes_N: Tensor, movers_N: Tensor, num_rows: int) -> Memory:
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
class State:
    """What a decoder remembers between steps: every tensor is [B, K, ...] and each row owns its position.

    One pair of mappings for every architecture, so that `select`, `reorder`, `join` and `trim` serve them all.
    by_step: what grows by one entry at each step, [B, K, T, ...], such as the keys of self-attention. Sentences in
    flight differ in length: a row's entries are its first ones, and it knows in `tensors` how many they are; `join`
    pads T with zeros, `trim` cuts what no row needs any more.
    """

    tensors: Mapping[str, Tensor]
    by_step: Mapping[str, Tensor] = field(default_factory=dict)

    def reorder(self, parents_BK: Tensor) -> State:
        """Each beam entry takes the state of its parent entry, int64 [B, K], within its sentence."""
        tensors = (*self.tensors.values(), *self.by_step.values())
        if not tensors:
            return self
        taken, num = take_entries(tensors, parents_BK), len(self.tensors)
        return State(
            dict(zip(self.tensors, taken[:num], strict=True)), dict(zip(self.by_step, taken[num:], strict=True))
        )

    def select(self, rows_N: Tensor) -> State:
        """The given sentences, in that order."""
        return State(
            {name: tensor.index_select(0, rows_N) for name, tensor in self.tensors.items()},
            {name: tensor.index_select(0, rows_N) for name, tensor in self.by_step.items()},
        )

    def trim(self, num_steps: int) -> State:
        """The entries of the first so many steps, as views; no row may have taken more."""
        return State(self.tensors, {name: tensor[:, :, :num_steps] for name, tensor in self.by_step.items()})

    @staticmethod
    def join(states: Sequence[State]) -> State:
        """The sentences of all, one state's after another's; axes behind [B, K] are padded to the longest."""
        first = states[0]
        return State(
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


def take_entries(tensors: Sequence[Tensor], entries_BN: Tensor) -> list[Tensor]:
    """The given entries of each sentence's beam, [B, N, ...] of [B, K, ...]; copies whole entries, which is fast."""
    beam = tensors[0].shape[1]
    starts_B1 = torch.arange(0, len(entries_BN) * beam, beam, device=entries_BN.device)[:, None]
    flat_M = (entries_BN + starts_B1).flatten()
    taken = [tensor.flatten(0, 1).index_select(0, flat_M) for tensor in tensors]
    return [tensor.view(*entries_BN.shape, *tensor.shape[1:]) for tensor in taken]


@dataclass(frozen=True)
class Translation:
    """One translation of a line.

    text: detokenised. score: eq. 14 of Wu et al. 2016. tokens: the pieces' ids, with EOS where finished.
    attentions: fp32, one row a target token, one column a source token with EOS; one matrix, and of a line that was
    translated in pieces one for each; empty where not asked for.
    finished: False where the length limit cut it off. log_prob: log P(Y|X), natural logarithm.
    source_tokens: the ids that were read, with EOS of each piece: the columns of the attentions.
    part_lengths: of a line that was translated in pieces, how many of the tokens come from each; else empty.
    alternatives: the other hypotheses of an n-best list, or the other samples, in their order.
    steps: decoder steps of its search. steps_after_best: those after the best was found, which is what the stopping
    rule costs.
    """

    text: str
    score: float
    tokens: tuple[int, ...]
    attentions: tuple[Tensor, ...] = ()
    finished: bool = True
    log_prob: float = 0.0
    source_tokens: tuple[int, ...] = ()
    part_lengths: tuple[int, ...] = ()
    alternatives: tuple[Translation, ...] = ()
    steps: int = 0
    steps_after_best: int = 0

    @property
    def attention_TS(self) -> Tensor | None:
        """All tokens' attention [T, S], or None; of a line in pieces a copy with theirs along the diagonal."""
        if len(self.attentions) <= 1:
            return self.attentions[0] if self.attentions else None
        along_diagonal: Tensor = torch.block_diag(*self.attentions)  # type: ignore[no-untyped-call]
        return along_diagonal


@dataclass(frozen=True)
class Range:
    """The values that a number in a config may take, as annotation: `Annotated[float, Range(0, 1)]`.

    `gnmt.config.check_config` reads it; None leaves a side open, open_low and open_high exclude the bound itself.
    A float must be finite, but where `high` is infinity.
    """

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False


@dataclass(frozen=True)
class Deferred:
    """A component that is checked with the config and built later: `Annotated[Callable[..., X], Deferred(X, "name")]`.

    Of its node the constructor gets a function, which takes the keywords `supplied`, known only at run time, and builds
    the `kind`.
    """

    kind: type
    supplied: tuple[str, ...]
