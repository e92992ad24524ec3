"""Other architectures than GNMT by command: train, resume, translate in reduced precision, and ensemble with a GNMT."""

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
def test_a_run_resumes_exactly_and_its_checkpoint_translates(model: str, run_command, tiny, tmp_path) -> None:
    overrides = [text for text in tiny.copied_to(tmp_path).overrides if not text.startswith("name=")]
    overrides += [f"model={model}", *SMALL, *MODELS[model], "precision=fp32"]

    def weights(name: str, *max_steps: int) -> dict[str, torch.Tensor]:
        for steps in max_steps:
            done = run_command("train", *overrides, f"name={name}", f"trainer.max_steps={steps}", cwd=tmp_path)
            assert done.code == 0, done.err
        return read_checkpoint(tmp_path / "runs" / name / "last.pt")["model"]

    straight, resumed = weights("straight", 4), weights("resumed", 2, 4)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())

    lines = b"The old man reads a book.\n\nDoes the child see the house?\n"
    for precision in ("bf16", "int8"):  # training evaluates in fp32
        done = run_command(
            "translate",
            "checkpoint=runs/straight/best.pt",
            f"precision={precision}",
            "format=jsonl",
            "decoding.n_best=2",
            "decoding.beam_size=2",
            f"alignments={'false' if model == 'seq2seq' else 'true'}",
            cwd=tmp_path,
            stdin=lines,
        )
        assert done.code == 0, done.err
        assert [json.loads(line)["line"] for line in done.out.splitlines()] == [1, 2, 3], precision
    if model == "seq2seq":  # once, the test set was translated first, and nothing was drawn
        for command in (["evaluate", "num_alignments=1"], ["translate", "format=tsv", "alignments=true"]):
            done = run_command(*command, "checkpoint=runs/straight/best.pt", cwd=tmp_path, stdin=lines)
            assert (done.code, done.out) == (2, "")
            assert f"{command[-1]} needs attention" in done.err
    members = "checkpoint=[runs/straight/best.pt,runs/tiny/best.pt]"  # tiny is a GNMT
    done = run_command("translate", members, cwd=tmp_path, stdin=lines)
    assert done.code == 0, done.err
    assert done.out.count("\n") == 3
