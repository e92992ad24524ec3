"""The choice of recurrent layers by the options `cell`, `layer_norm` and `weight_dropout` of encoders and decoders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from gnmt.errors import InputError
from gnmt.model.recurrent.layers import GRU, LSTM, LayerMaker, LayerNormLSTM, RecurrentLayer
from gnmt.model.recurrent.linear_recurrence import RGLRU, MinLSTM
from gnmt.model.recurrent.quantizable_lstm import QuantizableLSTM

Cell = Literal["lstm", "gru", "quantizable_lstm", "min_lstm", "rg_lru"]
"""Kind of the recurrent layers.

"lstm" and "gru" run step after step, in fused kernels. "quantizable_lstm" clips its cells, so that int8 decoding knows
their range, and needs `model.clipping` (Wu et al. 2016, section 6). The gates of the others do not read the previous
output, so they train in parallel over time: "min_lstm" (Feng et al. 2024) and "rg_lru" (De et al. 2024); see
linear_recurrence.py.
"""


def layer_class(cell: Cell, layer_norm: bool, key: str, weight_dropout: float = 0.0) -> LayerMaker:
    """Return the class of layer for a cell.

    Args:
        cell: Kind of the layers.
        layer_norm: Whether gates are normalized.
        key: Config key of the component, such as `model.encoder`, for the error message.
        weight_dropout: Dropout probability of the layers' recurrent weights.

    Raises:
        InputError: For layer normalization of a cell other than an LSTM, and for dropout of recurrent weights of a cell
            that has none.
    """
    if layer_norm and cell != "lstm":
        raise InputError(f"{key}.layer_norm=true needs {key}.cell=lstm, found cell={cell}: change one of the two")
    if cell in ("min_lstm", "rg_lru"):
        if weight_dropout:
            raise InputError(
                f"{key}.weight_dropout={weight_dropout} needs recurrent weights, and {key}.cell={cell} has none: use "
                f"{key}.weight_dropout=0, or cell=lstm or gru"
            )
        return MinLSTM if cell == "min_lstm" else RGLRU
    if layer_norm:
        return partial(LayerNormLSTM, weight_dropout=weight_dropout)
    classes: dict[Cell, Callable[..., RecurrentLayer]] = {"lstm": LSTM, "gru": GRU, "quantizable_lstm": QuantizableLSTM}
    return partial(classes[cell], weight_dropout=weight_dropout)
