"""Files and checkpoints with one error each, a correct corpus, and a helper that waits for a log line."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gnmt.checkpoint.file import FORMAT_VERSION, read_checkpoint, write_checkpoint

SIDES = (("source", "en"), ("target", "de"))


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    """Return `wait_for(text, log, process, times=1)`, which waits until the log contains the text that many times.

    It fails if the process ends before, or after three minutes.
    """

    def wait(text: str, log: Path, process: subprocess.Popen[bytes], times: int = 1) -> None:
        for _ in range(1800):
            if log.read_text(encoding="utf-8").count(text) >= times:
                return
            assert process.poll() is None, log.read_text(encoding="utf-8")
            time.sleep(0.1)
        raise AssertionError(f"{text!r} was not written:\n{log.read_text(encoding='utf-8')}")

    return wait


@pytest.fixture(scope="session")
def samples(tiny, tmp_path_factory) -> Path:
    """Return a folder with correct files a.en and a.de, and other files and checkpoints with one error each."""
    folder = tmp_path_factory.mktemp("samples")
    english = [f"the house number {number} is old" for number in range(40)]
    german = [f"das Haus Nummer {number} ist alt" for number in range(40)]
    for name, lines in {"a.en": english, "a.de": german, "short.de": german[:-1], "blank": ["", " "]}.items():
        (folder / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    (folder / "empty").write_bytes(b"")
    (folder / "latin1.en").write_bytes("\n".join([*english[:6], "für", *english[7:], ""]).encode("latin-1"))
    write_wrong_checkpoints(folder, tiny.folder / "best.pt", folder / "code_ran")
    return folder


@pytest.fixture
def sample_overrides(samples: Path) -> list[str]:
    """Return the overrides that train a very small model on a.en and a.de."""
    return [
        "data=files",
        *(f"data.{split}.{side}={samples}/a.{end}" for split in ("train", "dev") for side, end in SIDES),
        "tokenizer.vocab_size=300",
        "model.embedding_size=8",
        "trainer.max_steps=2",
        "decoding.beam_size=1",
        "decoding.max_length_factor=0.5",
    ]


def write_wrong_checkpoints(folder: Path, correct: Path, marker: Path) -> None:
    """Write wrong checkpoints, made from a correct one. Code in them would create the file `marker` if it ran."""
    data = correct.read_bytes()
    (folder / "truncated.pt").write_bytes(data[: len(data) // 2])
    (folder / "text.pt").write_text("this is not a checkpoint\n")
    weights = read_checkpoint(correct)["model"]["source_embedding.weight"].numpy().tobytes()
    middle = data.index(weights) + len(weights) // 2
    (folder / "flipped.pt").write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    torch.save({**read_checkpoint(correct), "format_version": FORMAT_VERSION + 1}, folder / "future.pt")
    torch.save({"weight": torch.zeros(2)}, folder / "weights.pt")
    torch.save({"format_version": FORMAT_VERSION, "config": RunsCommand(f"touch {marker}")}, folder / "pickle.pt")
    for name, change in {
        "model": {"model": {"_target_": "os.system", "command": f"touch {marker}"}},
        "decoding": {"decoding": {"_target_": "builtins.open", "file": str(marker), "mode": "w"}},
        "data": {"data": {"_target_": "shutil.rmtree", "path": str(marker.parent), "bleu_tokenize": "13a"}},
    }.items():
        change_config(correct, folder / f"code_in_{name}.pt", lambda config, change=change: config.update(change))
    inner = {"_target_": "torch.optim.optimizer.torch.load", "f": str(folder / "pickle.pt"), "weights_only": False}
    change_config(correct, folder / "code_in_encoder.pt", lambda config: config["model"].update(encoder=inner))


def change_config(correct: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write a copy of a checkpoint with a changed config and without preprocessed data, so that the config is read."""
    contents = read_checkpoint(correct)
    config = json.loads(contents["config"])
    change(config)
    write_checkpoint(path, {**contents, "config": json.dumps(config), "preprocessed_folder": str(path.parent / "gone")})


class RunsCommand:
    """An object that runs a shell command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)
