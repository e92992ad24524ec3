"""Pictures of where a translation looked; apart from alignment.py, since matplotlib takes long to load."""

from __future__ import annotations

from matplotlib.figure import Figure

from gnmt.data.tokenizer import Tokenizers
from gnmt.reporting.figures import alignment_figure
from gnmt.types import Translation


def draw_alignment(tokenizers: Tokenizers, translation: Translation) -> Figure | None:
    """A translation's attention over the pieces of both sides.

    None where there is none to draw: a blank line, attention not asked for, or a line that was translated in pieces.
    """
    if len(translation.attentions) != 1:
        return None
    source_pieces = tokenizers.source.pieces(translation.source_tokens)
    target_pieces = tokenizers.target.pieces(translation.tokens)
    return alignment_figure(source_pieces, target_pieces, translation.attentions[0])
