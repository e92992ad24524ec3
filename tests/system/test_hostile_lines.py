"""translate.py writes exactly one line of output for each line of input, whatever characters it contains."""

from __future__ import annotations

import pytest

LINE_BREAKS = "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # some programs read these as the end of a line

HOSTILE = {
    "CRLF": b"The dog sleeps.\r\nThe cat sleeps.\r\n",
    "lone CR": b"The dog\rsleeps.\nThe cat sleeps.\n",
    "BOM": b"\xef\xbb\xbfThe dog sleeps.\nThe cat sleeps.\n",
    "U+2028 and U+2029": "The dog\u2028sleeps.\nThe\u2029cat sleeps.\n".encode(),
    "U+0085": "The dog\u0085sleeps.\nThe cat sleeps.\n".encode(),
    "NUL": b"The dog\x00sleeps.\n\x00\n",
    "form feed and others": b"The dog\x0csleeps.\x0b\nThe\x1ccat\x1dsleeps\x1e.\n",
    "emoji": "The 🐕 sleeps. 👩‍👩‍👧 🏳️‍🌈\n😴\n".encode(),
    "unseen scripts": "ᚠᛇᚻ ᛒᛦᚦ\nكلب ينام 狗在睡觉 ಠ_ಠ\n".encode(),
    "combining marks alone": "\u0308\u0301\n\u200b\u200d\n".encode(),
    "blank": b"\nThe dog sleeps.\n\n\nThe cat sleeps.\n\n",
    "spaces only": " \n\t\n\u00a0\u3000\n  The dog sleeps.  \n".encode(),
    "no newline at the end": b"The dog sleeps.\nThe cat sleeps.",
    "only a newline": b"\n",
    "an empty file": b"",
    "only a BOM": b"\xef\xbb\xbf",
    "markup": b"<s> </s> <pad> <unk> <0x0A>\n{{x}} ${y} %s\n",
}


def expected_lines(text: bytes) -> list[str]:
    return text.decode("utf-8-sig").removesuffix("\n").split("\n") if text.decode("utf-8-sig") else []


@pytest.mark.parametrize("through", ["file", "pipe"])
def test_one_line_for_each_line(run_command, tiny, tmp_path, through) -> None:
    """Translate all hostile texts as one file; a line between them must have the same translation each time."""
    anchor = "The old man sees the house."
    lines = [anchor]
    for text in HOSTILE.values():
        lines += [*expected_lines(text.removeprefix(b"\xef\xbb\xbf")), anchor]
    data = "".join(line + "\n" for line in lines).encode()
    checkpoint = (f"checkpoint={tiny.folder}/best.pt", "precision=fp32")
    if through == "file":
        (tmp_path / "a.en").write_bytes(data)
        done = run_command("translate", *checkpoint, "input=a.en", "output=a.de", cwd=tmp_path)
        output = (tmp_path / "a.de").read_bytes().decode("utf-8")
    else:
        done = run_command("translate", *checkpoint, cwd=tmp_path, stdin=data)
        output = done.out
    assert done.code == 0, done.err
    assert not set(output) & set(LINE_BREAKS)
    translations = output.split("\n")
    assert translations.pop() == ""
    assert len(translations) == len(lines)
    assert len({text for line, text in zip(lines, translations, strict=True) if line == anchor}) == 1
    assert all(text == "" for line, text in zip(lines, translations, strict=True) if not line.strip())


@pytest.mark.parametrize("name", HOSTILE)
def test_one_line_for_each_line_of_each_hostile_file(run_command, tiny, tmp_path, name) -> None:
    (tmp_path / "a.en").write_bytes(HOSTILE[name])
    checkpoint = (f"checkpoint={tiny.folder}/best.pt", "decoding.beam_size=1")
    done = run_command("translate", *checkpoint, "input=a.en", "output=a.de", cwd=tmp_path)
    assert done.code == 0, done.err
    output = (tmp_path / "a.de").read_bytes().decode("utf-8")
    assert output.count("\n") == len(expected_lines(HOSTILE[name]))
    assert output == "" or output.endswith("\n")
    assert not set(output) & set(LINE_BREAKS)


def test_byte_order_mark_and_carriage_returns_are_ignored(run_command, tiny, tmp_path) -> None:
    checkpoint = (f"checkpoint={tiny.folder}/best.pt", "precision=fp32")
    plain = run_command("translate", *checkpoint, cwd=tmp_path, stdin=b"The dog sleeps.\nThe cat sleeps.\n")
    for name in ("BOM", "CRLF", "no newline at the end"):
        assert run_command("translate", *checkpoint, cwd=tmp_path, stdin=HOSTILE[name]).out == plain.out


@pytest.mark.slow
def test_lines_of_5000_words_and_characters_do_not_affect_their_neighbors(run_command, tiny, tmp_path) -> None:
    sentence = "The old man sees the house. "
    lines = [sentence, (sentence * 834).strip(), "x" * 5000, sentence]
    assert len(lines[1].split()) > 5000
    data = "".join(line + "\n" for line in lines).encode()
    checkpoint = (f"checkpoint={tiny.folder}/best.pt", "precision=fp32", "decoding.beam_size=1")
    done = run_command("translate", *checkpoint, cwd=tmp_path, stdin=data)
    assert done.code == 0, done.err
    first, _, _, last, end = done.out.split("\n")
    assert (first, end) == (last, "")
    assert "line 2 has " in done.err
    assert "line 3 has " in done.err
