"""Checks of models whose parts do not fit each other."""

from __future__ import annotations

from gnmt.errors import InputError
from gnmt.model.interfaces import Attention, Decoder, Encoder

SIDES_SHARE = ("source_target", "all")
"""Values of tie_embeddings with which source and target have one table, and so must have one vocabulary."""


def check_widths(encoder: Encoder, decoder: Decoder, embedding_size: int) -> None:
    """Raises InputError where two parts that meet have different widths."""
    parts = (
        ("encoder", encoder.input_size, encoder.input_size_key),
        ("decoder", decoder.input_size, decoder.input_size_key),
    )
    for side, size, key in parts:
        if size != embedding_size:
            raise InputError(
                f"model.embedding_size is {embedding_size}, but model.{side}.{key} is {size}: they meet and must be "
                "equal"
            )
    if decoder.memory_size is not None and encoder.output_size != decoder.memory_size:
        key = f"model.decoder.{decoder.memory_size_key}"
        # A decoder whose embeddings and source have one width cannot follow the encoder.
        follow = "" if decoder.memory_size_key == decoder.input_size_key else f"use {key}={encoder.output_size}, or "
        raise InputError(
            f"the width of the encoder's states is {encoder.output_size}, but {key} is {decoder.memory_size}: they "
            f"meet and must be equal; {follow}change model.encoder.hidden_size (a bidirectional top layer gives twice "
            "that) or model.encoder.projection_size"
        )


def check_bridge(encoder: Encoder, decoder: Decoder) -> None:
    """Raises InputError where the decoder starts from final states that the encoder does not hand over, or not so."""
    given = encoder.by_sentence_sizes
    attends = decoder.memory_size is not None
    instead = "model.decoder.bridge=none" if attends else "a decoder with attention (model/decoder=attention)"
    if decoder.by_sentence_sizes and not given:
        raise InputError(
            "the decoder starts from the encoder's final states, but this encoder hands none over: set "
            f"model.encoder.final_states=true (model/encoder=lstm has it), or use {instead}"
        )
    for name, size in decoder.by_sentence_sizes.items():
        if name not in given:
            raise InputError(
                f"the decoder starts from {name}, but the encoder hands over {', '.join(given)}: make num_layers and "
                f"cell of model.encoder and model.decoder equal, or use {instead}"
            )
        if given[name] != size:
            raise InputError(
                f"the decoder starts from {name} of width {size}, but the encoder hands it over with width "
                f"{given[name]} (a bidirectional layer's is twice its hidden_size): make model.encoder.hidden_size and "
                "model.decoder.hidden_size fit layer by layer (with model.encoder.num_bidirectional_layers=0 all have "
                f"one width), or use {instead}"
            )
    unread = [name for name in given if name.startswith("final_hidden_") and name not in decoder.by_sentence_sizes]
    if decoder.memory_size is None and unread:
        raise InputError(
            f"the encoder hands over {', '.join(unread)}, which this decoder does not start from, and nothing else "
            "reads these layers, so they would learn nothing: make num_layers of model.encoder and model.decoder "
            "equal, or use a decoder with attention (model/decoder=attention)"
        )


def check_states_are_read(encoder: Encoder, decoder: Decoder) -> None:
    """Raises InputError where the encoder does something to its states that no decoder without attention can see."""
    if decoder.memory_size is None and encoder.only_for_states:
        keys = ", ".join(f"model.encoder.{key}" for key in encoder.only_for_states)
        raise InputError(
            f"{keys} changes the states that attention reads, and this decoder has no attention: it starts from the "
            "final states of the layers and would never see it; leave it at its default, or use a decoder with "
            "attention (model/decoder=attention)"
        )


def check_residual(widths: list[int], residual_from: int | None) -> None:
    """Raises InputError where the first layer that is to have a residual connection cannot have one."""
    num_layers = len(widths) - 1
    if residual_from is None or residual_from > num_layers or widths[residual_from - 1] == widths[residual_from]:
        return
    possible = [at for at in range(residual_from + 1, num_layers + 1) if widths[at - 1] == widths[at]]
    allowed = f"{possible[0]} (the first layer from there that can have one) or null" if possible else "null"
    raise InputError(
        f"model.encoder.residual_from={residual_from} adds the input of layer {residual_from}, of width "
        f"{widths[residual_from - 1]}, to its output, of width {widths[residual_from]}, which cannot be (a "
        f"bidirectional layer gives twice its hidden_size): allowed is {allowed}"
    )


def check_query(attention: Attention, hidden_size: int) -> None:
    """Raises InputError where the attention takes other queries than a decoder of that width asks."""
    if attention.query_size != hidden_size:
        raise InputError(
            f"model.decoder.attention.query_size={attention.query_size}, but the decoder's layers have "
            f"model.decoder.hidden_size={hidden_size}: make them equal"
        )
