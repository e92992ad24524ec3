"""Ensemble: several models that search sees as one."""

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
from gnmt.fileio import path_list
from gnmt.model.interfaces import DecoderState, Memory, SearchModel

Mean = Literal["log_probs", "probabilities"]


class Ensemble:
    """A SearchModel that averages the predictions of several models.

    The members may differ in architecture and size, but must share their tokenizers. Their memories and states are
    merged, so that select, join and reorder apply to all members at once: every tensor is named
    `<member index>.<name>`, except that the encoder states of the first member are those of the merged memory.

    Attention is the mean over the members that have attention.

    Args:
        members: The models.
        mean: `log_probs` averages the log-probabilities and renormalizes them (a product of experts: a token that is
            impossible for one member is impossible). `probabilities` averages the probabilities (a mixture). In both,
            equal members give the distribution of one of them.
    """

    def __init__(self, members: Sequence[SearchModel], mean: Mean = "log_probs") -> None:
        if mean not in get_args(Mean):
            raise InputError(f"ensemble is {mean!r}; it must be one of {', '.join(get_args(Mean))}")
        assert members, "an ensemble has at least one member"
        self.members = tuple(members)
        self.mean = mean

    def encode(self, source: Tokens) -> Memory:
        """Return the members' memories as one."""
        memories = [member.encode(source) for member in self.members]
        tensors = [{**memory.extras, "states": memory.states_BSH} for memory in memories]
        del tensors[0]["states"]  # these are the states of the merged memory
        by_sentence = _merged([memory.by_sentence for memory in memories])
        return Memory(memories[0].states_BSH, memories[0].mask_BS, _merged(tensors), by_sentence)

    def start(self, memory: Memory, beam: int) -> DecoderState:
        """Return the members' states before the first token as one."""
        return _merged_states([member.start(own_memory, beam) for member, own_memory in self._with_memories(memory)])

    def step(
        self, tokens_BK: Tensor, state: DecoderState, memory: Memory
    ) -> tuple[Tensor, Tensor | None, DecoderState]:
        """Decode one more token with every member and average the results; see SearchModel.step."""
        log_probs, attentions, states = [], [], []
        for index, (member, own_memory) in enumerate(self._with_memories(memory)):
            own_state = DecoderState(_of_member(state.tensors, index), _of_member(state.by_step, index))
            log_probs_BKV, attention_BKS, own_state = member.step(tokens_BK, own_state, own_memory)
            log_probs.append(log_probs_BKV.float())
            states.append(own_state)
            if attention_BKS is not None:
                attentions.append(attention_BKS.float())
        log_probs_MBKV = torch.stack(log_probs)
        attention = torch.stack(attentions).mean(0) if attentions else None
        if self.mean == "probabilities":
            mean_BKV = log_probs_MBKV.logsumexp(0) - math.log(len(self.members))
        else:
            mean_BKV = log_probs_MBKV.mean(0).log_softmax(-1)
        return mean_BKV, attention, _merged_states(states)

    def _with_memories(self, memory: Memory) -> list[tuple[SearchModel, Memory]]:
        """Return each member with its own memory, taken from the merged one."""
        pairs = []
        for index, member in enumerate(self.members):
            extras = _of_member(memory.extras, index)
            states_BSH = extras.pop("states", memory.states_BSH)
            by_sentence = _of_member(memory.by_sentence, index)
            pairs.append((member, Memory(states_BSH, memory.mask_BS, extras, by_sentence)))
        return pairs


def _merged(of_members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the members' tensors in one mapping, named `<member index>.<name>`."""
    return {f"{index}.{name}": tensor for index, named in enumerate(of_members) for name, tensor in named.items()}


def _merged_states(states: Sequence[DecoderState]) -> DecoderState:
    """Return the states of the members as one."""
    return DecoderState(_merged([state.tensors for state in states]), _merged([state.by_step for state in states]))


def _of_member(tensors: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Return the tensors of one member under their own names."""
    prefix = f"{index}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_members(
    checkpoints: str | Path | Sequence[str | Path],
    device: torch.device,
    trusted_packages: tuple[str, ...] = (),
    weights: Weights = "averaged",
) -> tuple[LoadedModel, ...]:
    """Load one checkpoint, or several checkpoints whose models can form an ensemble.

    Args:
        checkpoints: A path, or several.
        device: Device of the models.
        trusted_packages: Packages besides gnmt whose classes a checkpoint may name.
        weights: Which weights to take; see gnmt.checkpoint.load.load_model.

    Raises:
        InputError: A checkpoint cannot be loaded, or two differ in their tokenizers.
    """
    paths = path_list(checkpoints)
    if not paths:
        raise InputError("checkpoint names no file: give a path, or a list of paths for an ensemble")
    members = tuple(load_model(path, device, trusted_packages, weights) for path in paths)
    for path, member in zip(paths, members, strict=True):
        if member.tokenizers.digest != members[0].tokenizers.digest:
            raise InputError(
                f"checkpoint {path} has other tokenizers than {paths[0]}, but the models of an ensemble must share "
                "their subwords: train them on one preprocessed folder, or with tokenizer=existing"
            )
    return members
