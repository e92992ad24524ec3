"""The picture of where a translation looked."""

from __future__ import annotations

from matplotlib.figure import Figure

from gnmt.data.tokenizer import Tokenizers
from gnmt.reporting.figures import alignment_figure
from gnmt.types import EOS_ID, Translation


def draw_alignment(tokenizers: Tokenizers, source: str, translation: Translation) -> Figure | None:
    """A translation's attention over the pieces of both sides.

    None where there is none to draw: a blank line, attention not asked for, or a line that was translated in pieces.
    """
    source_ids = [*tokenizers.source.encode(source), EOS_ID]
    shape = (len(translation.tokens), len(source_ids))
    if translation.attention_TS is None or tuple(translation.attention_TS.shape) != shape:
        return None
    source_pieces = tokenizers.source.pieces(source_ids)
    target_pieces = tokenizers.target.pieces(translation.tokens)
    return alignment_figure(source_pieces, target_pieces, translation.attention_TS)
