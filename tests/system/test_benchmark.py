"""scripts/benchmark.py task=decoding on a tiny model, and the decoding engine on a trained model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import int8_ranges
from benchmarks.decoding import COLUMNS, Figure, Workload, peak_mib
from benchmarks.measuring import header, row
from gnmt.batch import EOS_ID
from gnmt.checkpoint.load import load_model
from gnmt.data.tokenizer import Tokenizers
from gnmt.decoding.engine.inference_copy import inference_copy
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.search import search
from gnmt.device import Precision, int8_obstacle, onednn_dtypes

# bf16 runs as fp32, which is then measured once, where oneDNN has no bf16 kernels.
SYSTEMS = ["baseline", "fp32", *(["bf16"] if torch.bfloat16 in onednn_dtypes() else [])]

CELL = ("sizes=[tiny]", "beams=[2]", "batch_sizes=[2]", "source_tokens=4", "repetitions=2", "device=cpu")


def test_decoding_benchmark_writes_finite_figures_and_profiles(
    run_command: Callable[..., object], tmp_path: Path
) -> None:
    finished = run_command(
        "benchmark", *CELL, "lengths=[mixed]", "precisions=[fp32,bf16]", "memory=false", "profile=traces",
        "output=out/figures.json", cwd=tmp_path,
    )  # fmt: skip
    assert finished.code == 0, finished.err
    written = json.loads((tmp_path / "out" / "figures.json").read_text(encoding="utf-8"))
    assert [figure["system"] for figure in written["figures"]] == SYSTEMS
    for figure in written["figures"]:
        assert len(figure["seconds"]) == 2
        for key in ("sentences_per_second", "tokens_per_second", "ratio"):
            assert 0 < figure[key] < math.inf
        assert figure["peak_mib"] is figure["latency_p50_ms"] is figure["latency_p99_ms"] is None
    assert written["figures"][0]["ratio"] == 1
    assert written["setting"]["repetitions"] == 2
    assert "_linear_pointwise" in (tmp_path / "out" / "figures.profile.txt").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "traces" / f"tiny_mixed_2_2_{SYSTEMS[-1]}.trace.json").read_bytes())["traceEvents"]
    rows = [row.split() for row in finished.out.splitlines() if row.startswith(("size ", "tiny "))]
    assert [row[4] for row in rows] == ["system", *SYSTEMS]


def test_sentences_that_are_translated_alone_have_latencies(run_command, tmp_path) -> None:
    settings = ("sizes=[tiny]", "beams=[1]", "batch_sizes=[1]", "lengths=[mixed]", "source_tokens=3", "repetitions=1")
    finished = run_command(
        "benchmark", *settings, "device=cpu", "precisions=[fp32]", "memory=false", "output=a.json", cwd=tmp_path
    )
    assert finished.code == 0, finished.err
    for figure in json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["figures"]:
        assert 0 < figure["latency_p50_ms"] <= figure["latency_p99_ms"] < math.inf


def test_a_row_shows_the_end_of_a_long_path() -> None:
    figure = Figure("runs/some_long_name/best.pt", "mixed", 5, 32, "int8", [0.5], 250.0, 10240.0, 2.25, 321.4)
    cells = row(COLUMNS, figure)
    assert cells.split() == ["name/best.pt", "mixed", "5", "32", "int8", "250.00", "10240.0", "2.25", "321", "-", "-"]
    assert len(cells) == len(header(COLUMNS))


def test_both_kinds_of_int8_are_compared_in_a_table(tiny, samples, monkeypatch, capsys) -> None:
    """Where int8 products are not exact, the numbers mean nothing, but the program runs."""
    monkeypatch.setattr(int8_ranges, "int8_obstacle", lambda device: None)
    monkeypatch.setattr(int8_ranges, "REPETITIONS", 1)
    int8_ranges.main(str(tiny.folder / "best.pt"), str(samples / "a.en"), str(samples / "a.de"))
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[2:]] == ["fp32", "int8, scales by row", "int8, ranges of training"]
    assert all(0 <= float(row[1]) <= 100 and float(row[2]) >= 0 for row in rows[2:])


@pytest.mark.slow
def test_memory_is_measured_in_a_separate_process(run_command: Callable[..., object], tmp_path: Path) -> None:
    finished = run_command(
        "benchmark", *CELL, "lengths=[equal]", "precisions=[fp32]", "output=figures.json", cwd=tmp_path
    )
    assert finished.code == 0, finished.err
    for figure in json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["figures"]:
        assert 50 < figure["peak_mib"] < 3000


@pytest.mark.slow
def test_memory_of_the_parent_process_does_not_count() -> None:
    """A process inherits ru_maxrss, the peak memory of its parent, and the table showed only that."""
    workload = Workload("tiny", "equal", beam=1, batch_size=1, num_batches=1, source_tokens=5, seed=1, device="cpu")
    held = torch.ones(3 * 2**28)  # 3 GiB
    assert peak_mib(workload, "fp32") < held.nbytes / 2**20 / 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sizes=[huge]", "sizes: found huge, allowed are gnmt, multi30k, tiny"),
        ("precisions=[int4]", "precisions: found int4, allowed are auto, fp32, bf16, fp16, int8"),
        ("beams=[0]", "beams.0: found 0, allowed is a whole number of at least 1"),
        ("lengths=[]", "lengths: found [], allowed is a list of at least one"),
        ("sizes=[]", "there is nothing to measure"),
        ("task=singing", 'task: found "singing", allowed is one of decoding, length, training'),
    ],
)
def test_wrong_values_are_refused_with_their_key(
    run_command: Callable[..., object], tmp_path: Path, override: str, message: str
) -> None:
    finished = run_command("benchmark", *CELL, override, cwd=tmp_path)
    assert finished.code == 2
    assert message in finished.err


@pytest.mark.slow
def test_the_engine_translates_as_the_plain_model_does(trained: object) -> None:
    loaded = load_model(trained.folder / "best.pt", torch.device("cpu"))
    preprocessed = next((trained.home / "preprocessed").glob("demo-*"))
    lines = (preprocessed / "dev" / "source.txt").read_text(encoding="utf-8").split("\n")[:40]
    found = {name: translations(loaded.model.eval(), loaded.tokenizers, lines, name) for name in ("plain", "fp32")}
    assert [hypothesis.tokens for hypothesis in found["fp32"]] == [hypothesis.tokens for hypothesis in found["plain"]]
    for fast, plain in zip(found["fp32"], found["plain"], strict=True):
        assert abs(fast.score - plain.score) < 1e-5 * len(plain.tokens)
    narrow = ["bf16"] + (["int8"] if int8_obstacle(torch.device("cpu")) is None else [])
    for name in narrow:
        same = [
            fast.tokens == plain.tokens
            for fast, plain in zip(
                translations(loaded.model, loaded.tokenizers, lines, name), found["plain"], strict=True
            )
        ]
        assert sum(same) >= 0.8 * len(same), name


def translations(model: object, tokenizers: Tokenizers, lines: list[str], precision: str) -> list:
    """Return the best hypothesis of each line, from the model itself ("plain") or from the engine in a precision."""
    device = torch.device("cpu")
    fast = model if precision == "plain" else inference_copy(model, Precision(precision, device))
    sources = [[*tokenizers.source.encode(line), EOS_ID] for line in lines if line]
    results = search(
        fast, sources, SearchOptions(), device=device, suppressed=tokenizers.target.never_produced, batch_size=16
    )
    return [result.hypotheses[0] for result in results]
