"""Runs that cannot be resumed in the same folder, and runs that are resumed despite damage."""

from __future__ import annotations


def test_a_run_is_not_resumed_with_other_settings(run_command, tiny, tmp_path) -> None:
    run = tiny.copied_to(tmp_path)
    before = (run.folder / "config.json").read_bytes()
    done = run_command("train", *run.overrides, "optimizer.lr=0.5", "model.encoder.num_layers=3", cwd=tmp_path)
    assert done.code == 2
    assert "runs/tiny holds a run with other settings" in done.err
    assert "optimizer.lr: 0.004 → 0.5" in done.err
    assert "model.encoder.num_layers: 2 → 3" in done.err
    assert "name=..." in done.err
    assert (run.folder / "config.json").read_bytes() == before
    assert "ERROR gnmt: runs/tiny holds a run with other settings" in (run.folder / "train.log").read_text()


def test_a_run_is_not_resumed_on_other_text_and_tokenizers(run_command, samples, sample_overrides, tmp_path) -> None:
    """The command is the same, but a changed file would change the subwords."""
    for name in ("a.en", "a.de"):
        (tmp_path / name).write_bytes((samples / name).read_bytes())
    overrides = [text.replace(str(samples), ".") for text in sample_overrides]
    assert run_command("train", *overrides, "name=mine", cwd=tmp_path).code == 0
    (tmp_path / "a.en").write_text("".join(f"another town has {n} streets\n" for n in range(40)), encoding="utf-8")
    changed = run_command("train", *overrides, "name=mine", "trainer.max_steps=3", cwd=tmp_path)
    assert changed.code == 2
    assert "was preprocessed from other inputs or settings" in changed.err
    assert "data.train.source: other content" in changed.err
    elsewhere = run_command(
        "train", *overrides, "name=mine", "trainer.max_steps=3", "data.preprocessed=other", cwd=tmp_path
    )
    assert elsewhere.code == 2
    assert "runs/mine was trained on other text and tokenizers than other holds" in elsewhere.err


def test_a_folder_with_a_run_is_refused_with_resume_never(run_command, tiny, tmp_path) -> None:
    done = run_command("train", *tiny.copied_to(tmp_path).overrides, "resume=never", cwd=tmp_path)
    assert done.code == 2
    assert "runs/tiny already holds a run and resume=never" in done.err


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(run_command, tiny, tmp_path) -> None:
    run = tiny.copied_to(tmp_path)
    newest = run.folder / "checkpoints" / "step_00000004.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    done = run_command("train", *run.overrides, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "warning: checkpoint runs/tiny/checkpoints/step_00000004.pt" in done.err
    assert "falling back to the previous checkpoint" in done.err
    assert "from update 2" in done.err
