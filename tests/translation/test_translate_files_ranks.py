"""Several processes translate the chunks of one file."""

from __future__ import annotations

import threading

import pytest
from stub_translator import NUM_LINES, Killed, StubTranslator, expected, kill_at, names, translate
from torch.distributed import HashStore

from gnmt.distributed import Ranks, report_once
from gnmt.errors import InputError
from gnmt.translation.jobs import Job
from gnmt.translation.partial_output import PartialOutput
from gnmt.translation.translate_files import Progress


def run_ranks(translators, **options):
    """Run translate_files in a thread for each rank, and return what each raised, or None."""
    store = HashStore()
    raised = [None] * len(translators)

    def run(rank):
        try:
            translate(translators[rank], ranks=Ranks(rank, len(translators), rank, store), **options)
        except BaseException as error:
            raised[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(translators))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return raised


def test_several_ranks_write_what_one_process_writes(home):
    translators = [StubTranslator(), StubTranslator(), StubTranslator()]
    assert run_ranks(translators, kind="tsv") == [None] * 3
    shared = (home / "a.de").read_bytes()
    assert [translator.calls for translator in translators] == [[(1, 4), (13, 4)], [(5, 4), (17, 2)], [(9, 4)]]
    translate(StubTranslator(), kind="tsv")
    assert (home / "a.de").read_bytes() == shared
    assert names(home) == ["a.de", "a.en", "best.pt"]


def test_another_number_of_ranks_can_resume(home):
    with pytest.raises(Killed):
        translate(kill_at(10))
    translators = [StubTranslator(), StubTranslator()]
    assert run_ranks(translators) == [None, None]
    assert [translator.calls for translator in translators] == [[(9, 4), (17, 2)], [(13, 4)]]
    assert (home / "a.de").read_text() == expected()


@pytest.mark.parametrize("failing", [0, 1])
def test_the_error_of_one_rank_ends_all(home, failing):
    """One rank left the loop alone, and the others waited forever."""

    def before(number):
        raise InputError("no more memory")

    translators = [StubTranslator(), StubTranslator()]
    translators[failing].before = before
    raised = run_ranks(translators)
    assert str(raised[failing]) == "no more memory"
    assert str(raised[1 - failing]) == f"stopped, because rank {failing} did: no more memory"
    assert run_ranks([StubTranslator(), StubTranslator()]) == [None, None]
    assert (home / "a.de").read_text() == expected()


def test_an_error_that_only_rank_0_finds_ends_all(home):
    with pytest.raises(Killed):
        translate(kill_at(10), kind="tsv")
    raised = run_ranks([StubTranslator(), StubTranslator()])
    assert all("resume=never" in str(error) for error in raised)


@pytest.mark.parametrize(
    ("rank", "failed_first", "expected"),
    [(0, True, InputError), (0, False, InputError), (1, True, InputError), (1, False, SystemExit)],
)
def test_only_rank_0_and_the_failed_process_report_an_error(rank, failed_first, expected):
    ranks = Ranks(rank, 2, rank, HashStore())
    ranks.failures.failed_first = failed_first
    with pytest.raises(expected), report_once(ranks):
        raise InputError("stopped, because rank 0 did: no more memory")


def test_progress_counts_the_lines_of_all_ranks_without_listing_the_partial_output(home, monkeypatch):
    """Every process listed all chunks after each of its own, which took most of the time for millions of lines."""
    with pytest.raises(Killed):
        translate(kill_at(6))
    listings, reached = [], []
    chunks, reach = PartialOutput.finished_chunks, Progress.reach
    monkeypatch.setattr(PartialOutput, "finished_chunks", lambda self: listings.append(1) or chunks(self))
    monkeypatch.setattr(Progress, "reach", lambda self, done: reached.append(done) or reach(self, done))
    assert run_ranks([StubTranslator(), StubTranslator()]) == [None, None]
    assert len(listings) == 2, "both by rank 0, before it begins"
    assert max(reached) == NUM_LINES


def test_ranks_need_files(home):
    with pytest.raises(InputError, match="2 processes need plain files as input= and output=, found input=- output=a"):
        translate(StubTranslator(), Job("-", "a.de"), ranks=Ranks(0, 2, 0, HashStore()))
