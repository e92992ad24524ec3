"""Pictures for people: which source tokens the model looked at for each target token, and curves."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

log = logging.getLogger(__name__)

_WORD_START = "▁"  # SentencePiece's mark for the space before a word

# The first installed ones stand in for letters that the default font lacks (Chinese, Japanese, Korean, Arabic ...).
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


def alignment_figure(source_pieces: Sequence[str], target_pieces: Sequence[str], attention_TS: Tensor) -> Figure:
    """A grid with a row for each target piece and a column for each source piece; dark is much attention.

    attention_TS: weights in [0, 1], any float type and device. Letters that no installed font has are boxes, which
    the log says once. The caller owns the figure: it is on the Agg canvas and known to no display.
    """
    expected = (len(target_pieces), len(source_pieces))
    assert tuple(attention_TS.shape) == expected, f"attention is {tuple(attention_TS.shape)}, pieces are {expected}"
    width = min(_MAX_INCHES, 1.5 + _INCHES_PER_TOKEN * len(source_pieces))
    height = min(_MAX_INCHES, 1.5 + _INCHES_PER_TOKEN * len(target_pieces))
    figure = Figure(figsize=(max(width, 2.5), max(height, 2.5)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(attention_TS.detach().float().cpu().numpy(), cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    axes.xaxis.tick_top()
    columns, rows = [_label(piece) for piece in source_pieces], [_label(piece) for piece in target_pieces]
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    for tick_label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        tick_label.set_parse_math(False)  # a piece "$" is a dollar, not the start of a formula
        tick_label.set_fontfamily(_fonts())
    if any(ord(letter) not in _drawable() for label in (*columns, *rows) for letter in label):
        _tell_of_boxes()
    return figure


def lines_figure(
    places: Sequence[str] | Sequence[float],
    lines: Mapping[str, Sequence[Sequence[float]]],
    x_label: str,
    y_label: str,
    log_y: bool = False,
) -> Figure:
    """A line for each name, through the means of its values at each place, with their sample standard deviations.

    places: texts stand at equal distances, numbers where they belong. lines: for each place the values, such as those
    of several seeds; a line has a gap where there is none. The names stand in a legend beside the axes.
    """
    figure = Figure(figsize=(8.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    named = any(isinstance(place, str) for place in places)
    x = range(len(places)) if named else [float(place) for place in places]
    for place, (name, values) in enumerate(lines.items()):
        means = np.array([np.mean(found) if len(found) else np.nan for found in values])
        deviations = np.array([np.std(found, ddof=1) if len(found) > 1 else 0.0 for found in values])
        axes.errorbar(
            x,
            means,
            yerr=deviations,
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=4,
            capsize=3,
            linewidth=1.2,
            label=name,
        )
    if named:
        long = sum(len(str(place)) for place in places) > 70
        axes.set_xticks(
            x, [str(place) for place in places], rotation=45 if long else 0, ha="right" if long else "center"
        )
    if log_y:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if lines:
        for text in figure.legend(loc="outside right upper", fontsize="small", frameon=False).get_texts():
            text.set_parse_math(False)  # a folder's name may hold dollars
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Writes the figure; the name's ending says the format (.png, .svg, .pdf). Makes the folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with _quiet_about_glyphs():
        figure.savefig(path, dpi=150)


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """The drawn figure, uint8 [height, width, 3]."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    with _quiet_about_glyphs():
        canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()  # type: ignore[no-untyped-call]


def _label(piece: str) -> str:
    """A piece as readers see it: the word-start mark is a space, what cannot be printed a replacement mark."""
    text = piece.replace(_WORD_START, " ")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


@cache
def _fonts() -> list[str]:
    """The default font and the installed fallbacks; matplotlib takes each letter from the first that has it."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _FALLBACK_FONTS if name in installed)]


@cache
def _drawable() -> frozenset[int]:
    """Code points for which one of `_fonts` has a glyph."""
    found = [font_manager.get_font(font_manager.findfont(name)).get_charmap() for name in _fonts()]
    return frozenset().union(*found)


@cache
def _tell_of_boxes() -> None:
    """Once a process; without a Korean font a picture of Korean is one of boxes, and nothing else would say why."""
    log.warning(
        "no installed font has some letters of the alignment pictures, which show boxes for them; fonts that are "
        "looked for: %s",
        ", ".join(_FALLBACK_FONTS),
    )


class _quiet_about_glyphs(warnings.catch_warnings):  # noqa: N801
    """Missing glyphs are drawn as boxes; a warning for each letter says no more."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
