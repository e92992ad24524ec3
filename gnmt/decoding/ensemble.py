"""Several models that translate together: to search they are one model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from gnmt.batch import Tokens
from gnmt.checkpoint.file import Weights
from gnmt.checkpoint.load import LoadedModel, load_model
from gnmt.errors import InputError
from gnmt.model.interfaces import DecoderState, Memory, SearchModel

Mean = Literal["log_probs", "probabilities"]


class Ensemble:
    """Members that read and write the same pieces; each keeps its own memory and state, whatever its architecture.

    mean: `log_probs`, the mean of the members' log-probabilities, normalized so that a step's probabilities sum to 1
    (a product of experts: a token that one member rules out is ruled out); `probabilities`, the mean of their
    probabilities (a mixture). Equal members give what one of them gives, in both.
    Attention is the mean of those members' that have one. The merged memory holds the first member's encoder states,
    everything else under names that begin with the member's number, so that select, join and reorder serve it too.
    """

    def __init__(self, members: Sequence[SearchModel], mean: Mean = "log_probs") -> None:
        if mean not in get_args(Mean):
            raise InputError(f"ensemble is {mean!r}; it must be one of {', '.join(get_args(Mean))}")
        assert members, "an ensemble of nobody"
        self.members = tuple(members)
        self.mean = mean

    def encode(self, source: Tokens) -> Memory:
        """Every member's memory, as one."""
        memories = [member.encode(source) for member in self.members]
        tensors = [{**memory.extras, "states": memory.states_BSH} for memory in memories]
        del tensors[0]["states"]  # the merged memory's own
        by_sentence = _merged([memory.by_sentence for memory in memories])
        return Memory(memories[0].states_BSH, memories[0].mask_BS, _merged(tensors), by_sentence)

    def start(self, memory: Memory, beam: int) -> DecoderState:
        """Every member's state before the first token."""
        states = [member.start(of_member, beam) for member, of_member in self._with_memories(memory)]
        return _merged_states(states)

    def step(
        self, tokens_BK: Tensor, state: DecoderState, memory: Memory
    ) -> tuple[Tensor, Tensor | None, DecoderState]:
        """One token further: log-probabilities [B, K, V] fp32, attention [B, K, S] or None, the next state."""
        log_probs, attentions, states = [], [], []
        for number, (member, of_member) in enumerate(self._with_memories(memory)):
            member_state = DecoderState(_of_member(state.tensors, number), _of_member(state.by_step, number))
            log_probs_BKV, attention_BKS, member_state = member.step(tokens_BK, member_state, of_member)
            log_probs.append(log_probs_BKV.float())
            states.append(member_state)
            if attention_BKS is not None:
                attentions.append(attention_BKS.float())
        attention = torch.stack(attentions).mean(0) if attentions else None
        return self._mean(torch.stack(log_probs)), attention, _merged_states(states)

    def _mean(self, log_probs_MBKV: Tensor) -> Tensor:
        """The members' log-probabilities as one distribution, [B, K, V]."""
        if self.mean == "probabilities":
            return log_probs_MBKV.logsumexp(0) - math.log(len(self.members))
        return log_probs_MBKV.mean(0).log_softmax(-1)

    def _with_memories(self, memory: Memory) -> list[tuple[SearchModel, Memory]]:
        pairs = []
        for number, member in enumerate(self.members):
            extras = _of_member(memory.extras, number)
            states_BSH = extras.pop("states", memory.states_BSH)
            by_sentence = _of_member(memory.by_sentence, number)
            pairs.append((member, Memory(states_BSH, memory.mask_BS, extras, by_sentence)))
        return pairs


def _merged(of_members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The members' tensors in one mapping, `<number>.<name>`."""
    return {f"{number}.{name}": tensor for number, named in enumerate(of_members) for name, tensor in named.items()}


def _merged_states(states: Sequence[DecoderState]) -> DecoderState:
    """The members' states as one."""
    return DecoderState(_merged([state.tensors for state in states]), _merged([state.by_step for state in states]))


def _of_member(tensors: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """One member's tensors under their own names."""
    prefix = f"{number}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_members(
    checkpoints: str | Path | Sequence[str | Path],
    device: torch.device,
    trusted_packages: tuple[str, ...] = (),
    weights: Weights = "averaged",
) -> tuple[LoadedModel, ...]:
    """The model of one checkpoint, or those of several that can translate together. weights: see load_model.

    Raises InputError where one cannot be loaded, and where two have other tokenizers, so that one id would mean
    two pieces.
    """
    paths = [checkpoints] if isinstance(checkpoints, str | Path) else list(checkpoints)
    if not paths:
        raise InputError("checkpoint names no file: give a path, or a list of paths for an ensemble")
    members = tuple(load_model(path, device, trusted_packages, weights) for path in paths)
    for path, member in zip(paths, members, strict=True):
        if member.tokenizers.digest != members[0].tokenizers.digest:
            raise InputError(
                f"checkpoint {path} has other tokenizers than {paths[0]}: the models of an ensemble must read and "
                "write the same pieces; train them on one preprocessed folder, or with tokenizer=existing"
            )
    return members
