"""The training text is encoded in shards: any number of processes and interruptions gives the same result."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gnmt.data import preprocess as preprocess_module
from gnmt.data.cleaning import Cleaning, NumberedPair
from gnmt.data.corpora import FilesCorpus
from gnmt.data.held_out import HeldOutSentences
from gnmt.data.preprocess import preprocess
from gnmt.data.store import PreprocessedData
from gnmt.data.tokenizer import TokenizerOptions, Tokenizers
from gnmt.errors import InputError
from gnmt.fileio import UnreadableFileError

MakeCorpus = Callable[..., FilesCorpus]
Pairs = Callable[..., list[tuple[str, str]]]
STRICT = Cleaning(max_length_tokens=20, max_length_ratio=1.5, drop_duplicates=True, drop_identical=True)


@pytest.fixture
def dirty(toy_pairs: Pairs) -> list[tuple[str, str]]:
    """Pairs that cleaning drops for every reason, some for two reasons, far apart from each other."""
    pairs = toy_pairs(300)
    long = (" ".join(["mountains"] * 30), " ".join(["Berge"] * 30))
    for number, pair in {
        5: ("", "leer"), 60: ("same", "same"), 61: long, 130: pairs[3], 131: long, 140: ("same", "same"),
        200: ("\u200b", "x"), 210: ("river river river", "Fluss"), 290: pairs[3],
    }.items():  # fmt: skip
        pairs.insert(number, pair)
    return pairs


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def oracle(
    pairs: list[tuple[str, str]], preprocessed: PreprocessedData
) -> tuple[list[tuple[str, str]], dict[str, list[int]]]:
    """Return the kept pairs, and the numbers of the dropped pairs by reason: one pair at a time, all in memory."""
    kept, dropped, seen = [], {reason: [] for reason in preprocessed.report.dropped}, set()
    for number, pair in enumerate(pairs, start=1):
        lengths = sorted(len(getattr(preprocessed.tokenizers, side).encode(text)) + 1
                         for side, text in zip(("source", "target"), pair, strict=True))  # fmt: skip
        repeated = pair in seen
        reasons = {
            "blank": not (pair[0].strip() and pair[1].strip()),
            "identical": pair[0].strip() == pair[1].strip(),
            "duplicate": repeated,
            "blank ": lengths[0] == 1,
            "too_long": lengths[1] > 20,
            "length_ratio": lengths[1] > 1.5 * lengths[0],
        }
        reason = next((reason.strip() for reason, holds in reasons.items() if holds), None)
        if not reasons["blank"] and not reasons["identical"]:
            seen.add(pair)
        kept += [pair] if reason is None else []
        if reason is not None:
            dropped[reason].append(number)
    return kept, dropped


@pytest.mark.parametrize("shard", [1, 7, 100, 10_000])
def test_shards_of_any_size_give_the_same_result(
    make_corpus: MakeCorpus, dirty: list[tuple[str, str]], options: TokenizerOptions, shard: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(preprocess_module, "SHARD_PAIRS", shard)
    preprocessed = preprocess(make_corpus(dirty, STRICT), options)
    kept, dropped = oracle(dirty, preprocessed)
    store, report = preprocessed.store, preprocessed.report
    assert [(store.source_text(pair), store.target_text(pair)) for pair in range(len(store))] == kept
    assert all(
        store.source_ids([pair])[0].tolist() == preprocessed.tokenizers.source.encode(kept[pair][0])
        for pair in range(9)
    )
    assert report.dropped == {reason: len(numbers) for reason, numbers in dropped.items()}
    assert min(report.dropped.values()) > 0
    found = {reason: [example["pair"] for example in examples] for reason, examples in report.examples.items()}
    assert found == {reason: numbers[:3] for reason, numbers in dropped.items()}
    assert (report.num_pairs, report.num_kept) == (len(dirty), len(kept))
    assert [span.num_pairs for span in preprocessed.corpus_spans] == [len(kept)]


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_bytes(
    make_corpus: MakeCorpus, dirty: list[tuple[str, str]], options: TokenizerOptions, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(preprocess_module, "SHARD_PAIRS", 40)
    corpus = make_corpus(dirty, STRICT)
    alone, shared = (
        preprocess(replace(corpus, num_workers=number, preprocessed=str(tmp_path / f"p{number}")), options)
        for number in (1, 2)
    )
    assert contents(alone.folder) == contents(shared.folder)


@pytest.mark.slow
def test_signals_to_all_processes_of_a_job_do_not_stop_the_workers(
    make_corpus: MakeCorpus, dirty: list[tuple[str, str]], options: TokenizerOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm's warning SIGUSR1 killed workers, even while they were starting."""
    monkeypatch.setattr(preprocess_module, "SHARD_PAIRS", 40)

    submit = ProcessPoolExecutor.submit

    def submit_and_signal(*arguments: Any) -> Any:
        future = submit(*arguments)
        for process in multiprocessing.active_children():
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                os.kill(process.pid, number)
        return future

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit_and_signal)
    preprocessed = preprocess(replace(make_corpus(dirty, STRICT), num_workers=2), options)
    assert len(preprocessed.store) == len(oracle(dirty, preprocessed)[0])


@pytest.mark.slow
def test_workers_that_hang_are_named_and_ctrl_c_ends_them(
    make_corpus: MakeCorpus, dirty: list[tuple[str, str]], options: TokenizerOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preprocessing waited without a word, and Ctrl-C waited for the workers again."""
    monkeypatch.setattr(preprocess_module, "SHARD_PAIRS", 40)
    monkeypatch.setattr("gnmt.logs.NOTICE_SECONDS", 0.2)

    submit = ProcessPoolExecutor.submit

    def submit_and_freeze(*arguments: Any) -> Any:
        future = submit(*arguments)
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGSTOP)
        return future

    class PressCtrlC(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("waiting for the processes that encode the training text"):
                os.kill(os.getpid(), signal.SIGINT)

    handler = PressCtrlC()
    logging.getLogger().addHandler(handler)
    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit_and_freeze)
    try:
        with pytest.raises(KeyboardInterrupt):
            preprocess(replace(make_corpus(dirty, STRICT), num_workers=2), options)
    finally:
        logging.getLogger().removeHandler(handler)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_killed_worker_is_reported_and_finished_shards_are_kept(
    make_corpus: MakeCorpus, dirty: list[tuple[str, str]], options: TokenizerOptions, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(preprocess_module, "SHARD_PAIRS", 40)
    corpus = replace(make_corpus(dirty, STRICT), num_workers=2)

    submit = ProcessPoolExecutor.submit

    def submit_and_kill(*arguments: Any) -> Any:
        future = submit(*arguments)
        for process in multiprocessing.active_children():
            process.kill()
        return future

    with monkeypatch.context() as patch:
        patch.setattr(ProcessPoolExecutor, "submit", submit_and_kill)
        with pytest.raises(InputError, match=r"cannot be preprocessed: a process .* was killed.*data\.num_workers=1"):
            preprocess(corpus, options)
    assert (tmp_path / ".preprocessed.work").is_dir()
    assert len(preprocess(replace(corpus, num_workers=1), options).store) == len(
        oracle(dirty, preprocess(corpus, options))[0]
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UnreadableFileError("train.0: cannot be read: Stale handle")])
def test_it_resumes_with_finished_shards_and_the_learned_vocabulary(
    make_corpus: MakeCorpus, dirty: list[tuple[str, str]], options: TokenizerOptions, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, error: BaseException,
) -> None:  # fmt: skip
    """A temporary read error of the text lost all shards."""
    monkeypatch.setattr(preprocess_module, "SHARD_PAIRS", 40)
    corpus = make_corpus(dirty, STRICT)
    expected = contents(preprocess(corpus, options).folder)
    shutil.rmtree(corpus.preprocessed or "")
    encode, calls, learned = preprocess_module.encode_shard, [], []

    def counted(*given: Any) -> None:
        path = given[-1]
        calls.append(path.name)
        if len(calls) == 4:
            raise error
        encode(*given)

    learn = preprocess_module._make_tokenizers
    monkeypatch.setattr(preprocess_module, "_make_tokenizers", lambda *given: learned.append(1) or learn(*given))
    monkeypatch.setattr(preprocess_module, "encode_shard", counted)
    with pytest.raises(type(error)):
        preprocess(corpus, options)
    shards = tmp_path / ".preprocessed.work" / "shards"
    assert sorted(os.listdir(shards)) == calls[:3]
    data = (shards / calls[1]).read_bytes()
    (shards / calls[1]).write_bytes(data[:-30])  # a truncated shard, as after a power failure
    os.utime(tmp_path / "train.0", (1, 1))  # the text is unchanged

    preprocessed = preprocess(corpus, options)
    assert calls[4:] == [calls[1], *calls[3:4], *calls[6:]]
    assert len(calls) == 4 + 1 + 8 - 3
    assert len(learned) == 1
    found = contents(preprocessed.folder)
    assert {name for name in found if found[name] != expected[name]} <= {"manifest.json"}  # it has modification times
    assert not (tmp_path / ".preprocessed.work").exists()


def test_a_worker_uses_one_thread_and_a_single_process_all_cores(
    tmp_path: Path, toy_pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of 6 workers started a thread per core: 384 threads on 64 cores."""
    threads: list[int] = []

    class Side:
        control_symbols: ClassVar[dict[str, int]] = {}

        def encode_all(self, texts: list[str], num_threads: int = -1) -> list[list[int]]:
            threads.append(num_threads)
            return [[4]] * len(texts)

        def decode_all(self, ids: list[list[int]], num_threads: int = -1) -> list[str]:
            threads.append(num_threads)
            return ["text"] * len(ids)

    pairs = [NumberedPair(number, *pair) for number, pair in enumerate(toy_pairs(3), 1)]
    arguments = (Tokenizers(Side(), Side()), HeldOutSentences({}))  # type: ignore[arg-type]
    monkeypatch.setattr(preprocess_module, "_worker_arguments", arguments, raising=False)
    preprocess_module._encode_in_worker(pairs, Cleaning(), None, tmp_path / "a.npz")
    assert threads == [1] * 4
    with preprocess_module._shard_encoder(*arguments, 1) as submit:
        submit(pairs, Cleaning(), None, tmp_path / "b.npz").result()
    assert threads == [1] * 4 + [-1] * 4
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_results_for_other_text_are_discarded(
    make_corpus: MakeCorpus, toy_pairs: Pairs, options: TokenizerOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gnmt.data.store.StoreWriter.append", stop)
        with pytest.raises(KeyboardInterrupt):
            preprocess(make_corpus(), options)
    other = toy_pairs(300, seed=9)
    preprocessed = preprocess(make_corpus(other), options)
    assert [preprocessed.store.source_text(pair) for pair in range(300)] == [source for source, _ in other]
