"""Figures: attention between source and target subwords, and curves with error bars.

`alignment_figure` and `lines_figure` draw, `image_bytes` and `pixels` convert a figure to a file or an array.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

log = logging.getLogger(__name__)

_WORD_START = "▁"  # SentencePiece's character for the space before a word

# Fonts for characters that the default font lacks (Chinese, Japanese, Korean, Arabic, ...).
_FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "IPAexGothic",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "Noto Sans KR",
    "NanumGothic",
    "NanumBarunGothic",
    "UnDotum",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
    "Unifont",
)
_INCHES_PER_TOKEN = 0.3
_MAX_INCHES = 24.0
_MARKERS = "osv^D<>PX*"


def alignment_figure(source_subwords: Sequence[str], target_subwords: Sequence[str], attention_TS: Tensor) -> Figure:
    """Draw attention weights as a grid with a row for each target subword and a column for each source subword.

    Dark cells have much attention. Characters that no installed font has are drawn as boxes, with one warning.
    The figure is on the Agg canvas, without a display.

    Args:
        source_subwords: Labels of the columns.
        target_subwords: Labels of the rows.
        attention_TS: Weights in [0, 1], of any float type and device.
    """
    expected = (len(target_subwords), len(source_subwords))
    assert tuple(attention_TS.shape) == expected, f"attention is {tuple(attention_TS.shape)}, subwords are {expected}"
    width = min(_MAX_INCHES, 1.5 + _INCHES_PER_TOKEN * len(source_subwords))
    height = min(_MAX_INCHES, 1.5 + _INCHES_PER_TOKEN * len(target_subwords))
    figure = Figure(figsize=(max(width, 2.5), max(height, 2.5)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(attention_TS.detach().float().cpu().numpy(), cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    axes.xaxis.tick_top()
    columns, rows = [_label(subword) for subword in source_subwords], [_label(subword) for subword in target_subwords]
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    for tick_label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        tick_label.set_parse_math(False)  # the subword "$" does not start a formula
        tick_label.set_fontfamily(_fonts())
    if any(ord(letter) not in _drawable() for label in (*columns, *rows) for letter in label):
        _warn_of_boxes()
    return figure


def lines_figure(
    x_values: Sequence[str] | Sequence[float],
    lines: Mapping[str, Sequence[Sequence[float]]],
    x_label: str,
    y_label: str,
    log_y: bool = False,
) -> Figure:
    """Draw lines through the means of several values at each point, with sample standard deviations as error bars.

    Args:
        x_values: Positions of the points: numbers, or texts, which are placed at equal distances.
        lines: For each name in the legend, the values at each point, such as those of several seeds. A point without
            values is a gap between texts, and left out between numbers, where another line may have it.
        x_label: Label of the x axis.
        y_label: Label of the y axis.
        log_y: Use a logarithmic y axis.
    """
    figure = Figure(figsize=(8.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    named = any(isinstance(value, str) for value in x_values)
    x = np.arange(len(x_values)) if named else np.array([float(value) for value in x_values])
    for index, (name, values) in enumerate(lines.items()):
        means = np.array([np.mean(found) if len(found) else np.nan for found in values])
        deviations = np.array([np.std(found, ddof=1) if len(found) > 1 else 0.0 for found in values])
        # Runs are evaluated at different updates: a gap at the update of another run would break the line.
        shown = np.full(len(means), True) if named else ~np.isnan(means)
        axes.errorbar(
            x[shown],
            means[shown],
            yerr=deviations[shown],
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=4,
            capsize=3,
            linewidth=1.2,
            label=name,
        )
    if named:
        long = sum(len(str(value)) for value in x_values) > 70
        axes.set_xticks(
            x, [str(value) for value in x_values], rotation=45 if long else 0, ha="right" if long else "center"
        )
    if log_y:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if lines:
        for text in figure.legend(loc="outside right upper", fontsize="small", frameon=False).get_texts():
            text.set_parse_math(False)  # a folder's name may hold `$`
    return figure


def image_bytes(figure: Figure, name: str) -> bytes:
    """Return the contents of an image file in the format of a file name's suffix (.png, .svg, .pdf)."""
    file = io.BytesIO()
    with _no_glyph_warnings():
        figure.savefig(file, dpi=150, format=Path(name).suffix[1:])
    return file.getvalue()


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """Draw the figure and return it as uint8 [height, width, 3]."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    with _no_glyph_warnings():
        canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()  # type: ignore[no-untyped-call]


def _label(subword: str) -> str:
    """Return a subword with a space for the word-start character and U+FFFD for characters that cannot be printed."""
    text = subword.replace(_WORD_START, " ")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


@cache
def _fonts() -> list[str]:
    """Return the default font and the installed fallbacks; matplotlib uses the first font that has a character."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _FALLBACK_FONTS if name in installed)]


@cache
def _drawable() -> frozenset[int]:
    """Return the code points for which one of the fonts has a glyph."""
    found = [font_manager.get_font(font_manager.findfont(name)).get_charmap() for name in _fonts()]
    return frozenset().union(*found)


@cache
def _warn_of_boxes() -> None:
    """Log a warning once per process: without it, a figure of boxes would have no explanation."""
    log.warning("figures show boxes for characters that no installed font has: install Noto Sans CJK or Unifont")


@contextmanager
def _no_glyph_warnings() -> Iterator[None]:
    """Suppress matplotlib's warning for each missing glyph; `_warn_of_boxes` replaces them all."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield
