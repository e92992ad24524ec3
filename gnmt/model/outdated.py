"""Models of earlier versions, which took settings that did nothing; a new model with them is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gnmt.model.recurrent.encoder import layer_widths

_ENCODER, _DECODER = "gnmt.model.recurrent.encoder.LSTMEncoder", "gnmt.model.recurrent.plain_decoder.PlainDecoder"


def without_idle_parts(node: Any, contents: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A checkpoint's config node of the same model without them, and its contents without the weights of idle parts.

    Nothing is checked: what is no config of such a model comes back as it is.
    """
    try:
        encoder, decoder = dict(node["encoder"]), node["decoder"]
        if encoder["_target_"] != _ENCODER:
            return node, dict(contents)
        idle: tuple[str, ...] = ()
        if decoder["_target_"] == _DECODER:
            idle = _unread(encoder, decoder["num_layers"])
        encoder["residual_from"] = _first_residual(encoder)
        changed = {"model": _kept(contents["model"], idle), "average": _kept(contents.get("average") or {}, idle)}
        return {**node, "encoder": encoder}, {**contents, **{key: changed[key] for key in changed if key in contents}}
    except (KeyError, TypeError, ValueError, AttributeError):
        return node, dict(contents)


def _unread(encoder: dict[str, Any], num_layers: int) -> tuple[str, ...]:
    """Takes out what a decoder of so many layers without attention never sees; how the names of its weights begin."""
    upper = tuple(f"encoder.layers.{layer}." for layer in range(num_layers, encoder["num_layers"]))
    encoder["num_layers"] = min(encoder["num_layers"], num_layers)
    encoder["num_bidirectional_layers"] = min(encoder.get("num_bidirectional_layers", 1), encoder["num_layers"])
    encoder |= {"projection_size": None, "embedding_shortcut": False}
    return (*upper, "encoder.projection.", "encoder.shortcut.")


def _first_residual(encoder: Mapping[str, Any]) -> int | None:
    """The first layer with a residual connection; as it stands where that layer can have one, or there is none."""
    residual_from, num_layers = encoder.get("residual_from", 3), encoder["num_layers"]
    if residual_from is None or residual_from > num_layers:
        return residual_from  # type: ignore[no-any-return]
    widths = layer_widths(
        encoder["input_size"], encoder["hidden_size"], num_layers, encoder.get("num_bidirectional_layers", 1)
    )
    return next((at for at in range(residual_from, num_layers + 1) if widths[at - 1] == widths[at]), None)


def _kept(weights: Mapping[str, Any], idle: tuple[str, ...]) -> dict[str, Any]:
    return {name: weight for name, weight in weights.items() if not name.startswith(idle)}
