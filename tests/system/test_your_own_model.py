"""docs/your-own-model.md, followed step by step: the test writes its files and runs its commands and its test."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "your-own-model.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Overrides for a training of seconds. Everything else is as on the page.
SMALL = (
    "data.num_train=120",
    "data.num_dev=6",
    "data.num_test=5",
    "tokenizer.vocab_size=420",
    "model.embedding_size=16",
    "schedule.total_steps=4",
    "schedule.warmup_steps=0",
    "trainer.batch_tokens=600",
    "trainer.evaluate_every_steps=2",
    "trainer.save_every_steps=2",
    "decoding.beam_size=2",
    "decoding.max_length_factor=0.5",
    "decoding.max_length_offset=2",
    "device=cpu",
)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if kind == language]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder that contains the two files of the page, with its package on Python's path."""
    named = re.findall(r"`(lab/\S+\.(?:py|yaml))`", PAGE.read_text(encoding="utf-8"))
    for path, text in zip(named, (blocks("python")[0], blocks("yaml")[0], blocks("python")[1]), strict=True):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "lab"))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "mylab"]:
        del sys.modules[name]


def test_the_test_on_the_page_passes_and_detects_an_encoder_that_reads_padding(home: Path) -> None:
    code = compile(blocks("python")[1], str(PAGE), "exec")
    exec(code, {})
    encoder = sys.modules["mylab.encoders"].AveragingEncoder
    correct_forward = encoder.forward
    encoder.forward = lambda self, embedded_BSE, lengths_B: correct_forward(
        self, embedded_BSE, lengths_B.new_full(lengths_B.shape, embedded_BSE.shape[1])
    )
    with pytest.raises(AssertionError):
        exec(code, {})


@pytest.mark.slow
def test_the_commands_train_evaluate_and_translate(home: Path, run_command) -> None:
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert [re.findall(r"scripts/(\w+)\.py", line) for line in commands] == [["train"], ["evaluate"], ["translate"]]
    for line in commands:
        echo, _, command = line.rpartition("| ")
        path, python, script, *overrides = shlex.split(command)
        assert (path, python) == ("PYTHONPATH=lab", "python")
        overrides += SMALL if "train.py" in script else ()
        stdin = f"{shlex.split(echo)[1]}\n".encode() if echo else b""
        done = run_command(Path(script).stem, *overrides, cwd=home, stdin=stdin)
        assert done.code == 0, done.err
    assert done.out.count("\n") == 1
    # Without trusted_packages, the checkpoint is refused.
    done = run_command("translate", "checkpoint=runs/averaging/best.pt", cwd=home)
    assert done.code == 2
    assert "mylab" in done.err
    assert "trusted_packages=[mylab]" in done.err
