"""GNMT's relatives by the commands: train, go on, translate in every precision, together with a GNMT."""

from __future__ import annotations

import json

import pytest
import torch

from gnmt.checkpoint.file import read_checkpoint

pytestmark = pytest.mark.slow

SMALL = ("model.encoder.num_layers=2", "model.decoder.num_layers=2")
MODELS: dict[str, tuple[str, ...]] = {
    "attention": ("model.encoder.hidden_size=8",),
    "convolutional_small": (),
    "hybrid": (),
    "hybrid_reverse": (),
    "rnmt_plus_small": (),
    "seq2seq": ("decoding.coverage_beta=0",),
    "transformer_tiny": (),
}


@pytest.mark.parametrize("model", MODELS)
def test_a_run_goes_on_exactly_and_its_checkpoint_translates(model: str, run_command, tiny, tmp_path) -> None:
    overrides = [text for text in tiny.copied_to(tmp_path).overrides if not text.startswith("name=")]
    overrides += [f"model={model}", *SMALL, *MODELS[model], "precision=fp32"]

    def weights(name: str, *max_steps: int) -> dict[str, torch.Tensor]:
        for steps in max_steps:
            done = run_command("train", *overrides, f"name={name}", f"trainer.max_steps={steps}", cwd=tmp_path)
            assert done.code == 0, done.err
        return read_checkpoint(tmp_path / "runs" / name / "last.pt")["model"]

    at_once, in_two = weights("at_once", 4), weights("in_two", 2, 4)
    assert at_once.keys() == in_two.keys()
    assert all(torch.equal(tensor, in_two[name]) for name, tensor in at_once.items())

    lines = b"The old man reads a book.\n\nDoes the child see the house?\n"
    for precision in ("bf16", "int8"):  # training has evaluated in fp32
        done = run_command(
            *("translate", "checkpoint=runs/at_once/best.pt", f"precision={precision}", "format=jsonl"),
            *("decoding.n_best=2", "decoding.beam_size=2", f"alignments={'false' if model == 'seq2seq' else 'true'}"),
            cwd=tmp_path,
            stdin=lines,
        )
        assert done.code == 0, done.err
        assert [json.loads(line)["line"] for line in done.out.splitlines()] == [1, 2, 3], precision
    members = "checkpoint=[runs/at_once/best.pt,runs/tiny/best.pt]"  # beside a GNMT
    done = run_command("translate", members, cwd=tmp_path, stdin=lines)
    assert done.code == 0, done.err
    assert done.out.count("\n") == 3
