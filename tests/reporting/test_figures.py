"""The alignment figure: its contents, and subwords that break plotting libraries."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from gnmt.reporting import figures
from gnmt.reporting.figures import alignment_figure, image_bytes, pixels


def labels(figure):
    axes = figure.axes[0]
    return [label.get_text() for label in axes.get_xticklabels()], [
        label.get_text() for label in axes.get_yticklabels()
    ]


def test_columns_are_source_subwords_and_rows_are_target_subwords():
    attention = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.2, 0.8]])
    figure = alignment_figure(["▁the", "▁dog", "</s>"], ["▁Hund", "</s>"], attention)
    assert labels(figure) == ([" the", " dog", "</s>"], [" Hund", "</s>"])
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), attention.numpy())


def test_much_attention_is_dark():
    image = pixels(alignment_figure(["a", "b"], ["c", "d"], torch.tensor([[1.0, 0.0], [1.0, 0.0]]))).astype(int)
    assert image.ndim == 3
    assert image.shape[2] == 3
    axes_rows = image[image.shape[0] // 2 :]
    left, right = axes_rows[:, image.shape[1] // 3], axes_rows[:, -image.shape[1] // 4]
    assert left.sum(1).min() < 300 < 600 < right.sum(1).max()


def test_bf16_attention_is_drawn():
    figure = alignment_figure(["a"], ["b"], torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True))
    assert pixels(figure).size


@pytest.mark.parametrize(
    "subword", ["$", "$\\frac{", "^_", "%", "", "▁", "\0", "\n", "\x1b", "你好", "👩‍👩‍👧", "\u202e", "ا"]
)
def test_any_subword_can_be_drawn(subword):
    """matplotlib reads "$" as the start of a formula and raises an exception; missing glyphs are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(alignment_figure([subword, "$x"], [subword, "$"], torch.full((2, 2), 0.5))).size


def test_figures_of_long_sentences_have_a_bounded_size():
    figure = alignment_figure(["a"] * 400, ["b"] * 5, torch.zeros(5, 400))
    assert figure.get_size_inches().tolist() == [24.0, 3.0]


def test_the_format_of_an_image_is_that_of_its_suffix():
    figure = alignment_figure(["▁你", "$"], ["b"], torch.ones(1, 2))
    assert image_bytes(figure, "new/a.png").startswith(b"\x89PNG")
    assert b"<svg" in image_bytes(figure, "a.b.svg")


def test_a_wrong_shape_fails_an_assertion():
    with pytest.raises(AssertionError, match=r"\(2, 1\)"):
        alignment_figure(["a", "b"], ["c"], torch.ones(2, 1))


def test_characters_without_a_font_are_one_warning(monkeypatch, caplog):
    monkeypatch.setattr(figures, "_drawable", lambda: frozenset(map(ord, "ab ")))
    figures._warn_of_boxes.cache_clear()
    alignment_figure(["▁a"], ["b"], torch.ones(1, 1))
    assert not caplog.records
    for _ in range(3):
        alignment_figure(["▁a", "▁고양이"], ["b"], torch.ones(1, 2))
    figures._warn_of_boxes.cache_clear()
    [record] = caplog.records
    assert "show boxes" in record.getMessage()
    assert "install Noto Sans CJK" in record.getMessage()


def test_the_default_font_has_latin_letters():
    assert set(map(ord, "abcäß \N{REPLACEMENT CHARACTER}")) <= figures._drawable()
