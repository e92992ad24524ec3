"""Checks that the parts of a model fit together.

Each check raises InputError with the config keys to change. `Seq2Seq` calls `check_parts` and `check_clipping`.
Training and the loading of checkpoints call `check_shared_vocabulary`, because a model does not contain its tokenizers.
Encoders, decoders and attentions call the other checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gnmt.errors import InputError
from gnmt.model.clipping import Clip, Clipping
from gnmt.model.interfaces import Attention, Decoder, Encoder

TIES_SIDES = ("source_target", "all")
"""Values of `model.tie_embeddings` with which source and target share one embedding table."""

TIES_TARGET_OUTPUT = ("target_output", "all")
"""Values of `model.tie_embeddings` with which the output layer shares the target's embedding table."""


def check_parts(encoder: Encoder, decoder: Decoder, embedding_size: int, tie_embeddings: str) -> None:
    """Check everything that must agree between the embeddings, the encoder and the decoder of a Seq2Seq."""
    _check_widths(encoder, decoder, embedding_size)
    _check_bridge(encoder, decoder)
    _check_states_are_read(encoder, decoder)
    if tie_embeddings in TIES_TARGET_OUTPUT and decoder.output_size != embedding_size:
        instead = "source_target" if tie_embeddings in TIES_SIDES else "none"
        raise InputError(
            f"model.tie_embeddings={tie_embeddings} needs model.embedding_size ({embedding_size}) equal to the "
            f"decoder's output size ({decoder.output_size}): make them equal, or use model.tie_embeddings={instead}"
        )


def _check_widths(encoder: Encoder, decoder: Decoder, embedding_size: int) -> None:
    """Check the widths of the embeddings and of the encoder's states."""
    for side, size, key in (
        ("encoder", encoder.input_size, encoder.input_size_key),
        ("decoder", decoder.input_size, decoder.input_size_key),
    ):
        if size != embedding_size:
            raise InputError(
                f"model.embedding_size is {embedding_size}, but model.{side}.{key} is {size}: make them equal"
            )
    if decoder.memory_size is not None and encoder.output_size != decoder.memory_size:
        key = f"model.decoder.{decoder.memory_size_key}"
        # A decoder with one width for its embeddings and the encoder's states cannot adapt to the encoder.
        adapt = "" if decoder.memory_size_key == decoder.input_size_key else f"use {key}={encoder.output_size}, or "
        raise InputError(
            f"the width of the encoder's states is {encoder.output_size}, but {key} is {decoder.memory_size}; they "
            f"must be equal: {adapt}change model.encoder.hidden_size (a bidirectional top layer doubles it) or "
            "model.encoder.projection_size"
        )


def _check_bridge(encoder: Encoder, decoder: Decoder) -> None:
    """Check that the encoder returns the final states from which the decoder starts."""
    given = encoder.by_sentence_sizes
    attends = decoder.memory_size is not None
    instead = "model.decoder.bridge=none" if attends else "a decoder with attention (model/decoder=attention)"
    if decoder.by_sentence_sizes and not given:
        raise InputError(
            "the decoder starts from the encoder's final states, but this encoder returns none: set "
            f"model.encoder.final_states=true (model/encoder=lstm has it), or use {instead}"
        )
    for name, size in decoder.by_sentence_sizes.items():
        if name not in given:
            raise InputError(
                f"the decoder starts from {name}, but the encoder returns {', '.join(given)}: make num_layers and "
                f"cell of model.encoder and model.decoder equal, or use {instead}"
            )
        if given[name] != size:
            raise InputError(
                f"the decoder starts from {name} of width {size}, but the encoder returns it with width "
                f"{given[name]} (a bidirectional layer's is twice its hidden_size): choose model.encoder.hidden_size "
                "and model.decoder.hidden_size so that each layer's widths are equal (with "
                f"model.encoder.num_bidirectional_layers=0 all layers have one width), or use {instead}"
            )
    # Without attention nothing else reads these layers, so they would get no gradient.
    unread = [name for name in given if name.startswith("final_hidden_") and name not in decoder.by_sentence_sizes]
    if not attends and unread:
        raise InputError(
            f"the encoder returns {', '.join(unread)}, which this decoder does not read, so these layers would not be "
            "trained: make num_layers of model.encoder and model.decoder equal, or use a decoder with attention "
            "(model/decoder=attention)"
        )


def _check_states_are_read(encoder: Encoder, decoder: Decoder) -> None:
    """Check that the decoder reads the encoder's states if an option of the encoder changes them."""
    if decoder.memory_size is None and encoder.state_options:
        keys = ", ".join(f"model.encoder.{key}" for key in encoder.state_options)
        raise InputError(
            f"{keys} would change the encoder's states, but this decoder has no attention and reads only the layers' "
            "final states: remove the option, or use a decoder with attention (model/decoder=attention)"
        )


def check_clipping(encoder: Encoder, decoder: Decoder, clipping: Clipping | None) -> None:
    """Check that the model has bounds if and only if it has layers that clip their cells."""
    clips = any(isinstance(module, Clip) for part in (encoder, decoder) for module in part.modules())
    if clips and clipping is None:
        raise InputError(
            "model.clipping is null, but cell=quantizable_lstm needs bounds for its cells: add "
            "model/clipping=annealed, or choose another model.encoder.cell and model.decoder.cell"
        )
    if clipping is not None and not clips:
        raise InputError(
            "model.clipping bounds the cells of quantizable LSTM layers, and this model has none: set "
            "model.encoder.cell=quantizable_lstm, or leave out model/clipping"
        )


def check_shared_vocabulary(node: Mapping[str, Any], joint: bool) -> None:
    """Check that source and target have the same subwords where they share one embedding table.

    Args:
        node: The config node of the model.
        joint: True if both sides have the same subwords.
    """
    tie_embeddings = node.get("tie_embeddings")
    if tie_embeddings in TIES_SIDES and not joint:
        raise InputError(
            f"model.tie_embeddings={tie_embeddings} shares one embedding table between source and target, but their "
            "subwords differ: use tokenizer.joint=true, or model.tie_embeddings=none or target_output"
        )


def check_residual(widths: list[int], residual_from: int | None) -> None:
    """Check that the encoder layer where residual connections begin has equal input and output widths.

    Args:
        widths: Width of the first layer's input, then that of each layer's output.
        residual_from: First layer with a residual connection, counted from 1; None for no residual connections.
    """
    num_layers = len(widths) - 1
    if residual_from is None or residual_from > num_layers or widths[residual_from - 1] == widths[residual_from]:
        return
    possible = [layer for layer in range(residual_from + 1, num_layers + 1) if widths[layer - 1] == widths[layer]]
    allowed = f"{possible[0]} (the next layer with equal widths) or null" if possible else "null"
    raise InputError(
        f"model.encoder.residual_from={residual_from} adds the input of layer {residual_from}, of width "
        f"{widths[residual_from - 1]}, to its output, of width {widths[residual_from]} (a bidirectional layer's output "
        f"is twice its hidden_size), but they must be equal: allowed is {allowed}"
    )


def check_query(attention: Attention, hidden_size: int) -> None:
    """Check that the attention takes queries of the decoder's width."""
    if attention.query_size != hidden_size:
        raise InputError(
            f"model.decoder.attention.query_size={attention.query_size}, but the decoder's layers have "
            f"model.decoder.hidden_size={hidden_size}: make them equal"
        )


def check_heads(key: str, num_heads: int, **sizes: int) -> None:
    """Check that attention heads divide widths evenly.

    Args:
        key: Config key of the component, such as `model.encoder`.
        num_heads: Number of heads.
        sizes: Widths that are split among the heads, by keyword of the component.
    """
    for name, size in sizes.items():
        if size % num_heads:
            raise InputError(
                f"{key}.num_heads={num_heads} does not divide {key}.{name}={size}: every head takes an equal part of "
                f"it, so choose a divisor of {size}, or make {name} a multiple of {num_heads}"
            )


def check_alignment_layer(alignment_layer: int | None, num_layers: int, default: str) -> None:
    """Check that a decoder's alignment layer exists.

    Args:
        alignment_layer: Layer whose attention is the alignment, counted from 1; None for the default.
        num_layers: Number of layers of the decoder.
        default: Meaning of None, for the error message.
    """
    if alignment_layer is not None and alignment_layer > num_layers:
        raise InputError(
            f"model.decoder.alignment_layer={alignment_layer}, but model.decoder.num_layers={num_layers}: choose a "
            f"layer from 1 to {num_layers}, or null for {default}"
        )
