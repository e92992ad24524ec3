"""Lines are split at sentence ends, in time linear in their length."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnmt.decoding.segments import split_sentences

# The same sentence ends by a plain pattern, whose time grows with the square of a run of marks.
PLAIN = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s)|[。！？]+[」』”’）]*""")


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(line=st.text(alphabet='.!…"”)] a。！」', max_size=12))
def test_the_possessive_pattern_finds_the_sentence_ends_of_the_plain_one(line):
    ends = [match.end() for match in PLAIN.finditer(line)]
    sentences = split_sentences(line)
    assert "".join(sentences) == line
    assert [len("".join(sentences[: n + 1])) for n in range(len(sentences))] == sorted({*ends, len(line)} - {0})


@pytest.mark.parametrize("run", [".", ".)", "。", "。」", ")", "。."])
def test_a_run_of_marks_takes_no_longer_than_other_text(run):
    """20,000 dots once took 4.5 seconds; these runs would take minutes."""
    line = "a" + run * 100_000 + "b"
    started = time.process_time()
    assert "".join(split_sentences(line)) == line
    assert time.process_time() - started < 5


def test_a_long_run_of_closing_marks_takes_no_longer_than_other_text():
    line = "a." + ")" * 100_000 + "b"
    started = time.process_time()
    assert split_sentences(line) == [line]
    assert time.process_time() - started < 5
