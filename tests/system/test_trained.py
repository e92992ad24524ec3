"""A trained model: the path from raw text to BLEU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gnmt.checkpoint.file import read_checkpoint
from gnmt.data.demo_grammar.corpus import generate
from gnmt.decoding.translator import Translator
from gnmt.evaluation.metrics import score_translations

pytestmark = pytest.mark.slow

# This model reaches 54. A model without attention, or a search with a bug, stays far below this floor.
LOWEST_BLEU = 35.0


def scores_of(folder: Path, test_set: str) -> dict[str, float]:
    """Return the scores of best.pt on a test set, the only ones in the folder."""
    [path] = folder.glob(f"{test_set}-*.best.*.json")
    scores: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return scores


def test_training_reaches_the_floor_on_dev(trained) -> None:
    assert read_checkpoint(trained.folder / "best.pt")["best"]["dev/bleu"] >= LOWEST_BLEU, trained.printed.err


def test_evaluation_agrees_with_training_on_dev_and_holds_on_test(run_command, trained, tmp_path) -> None:
    checkpoint = f"checkpoint={trained.folder}/best.pt"
    for test_set in ("dev", "test"):
        done = run_command("evaluate", checkpoint, f"test_set={test_set}", "output=.", cwd=tmp_path)
        assert done.code == 0, done.err
    recorded = read_checkpoint(trained.folder / "best.pt")["best"]
    dev = scores_of(tmp_path, "dev")
    assert (dev["bleu"], dev["chrf"]) == (recorded["dev/bleu"], recorded["dev/chrf"])
    assert scores_of(tmp_path, "test")["bleu"] >= LOWEST_BLEU
    assert scores_of(tmp_path, "test")["unfinished"] == 0


def test_translating_the_test_file_gives_the_translations_of_evaluation(run_command, trained, tmp_path) -> None:
    """The file is translated with the batch size of evaluation."""
    sizes = (20000, 100, 100)
    (tmp_path / "test.en").write_text("".join(source + "\n" for source, _ in generate(*sizes).test), encoding="utf-8")
    checkpoint = f"checkpoint={trained.folder}/best.pt"
    assert run_command("evaluate", checkpoint, "output=.", cwd=tmp_path).code == 0
    batch_size = json.loads((trained.folder / "config.json").read_text())["trainer"]["evaluation_batch_size"]
    options = ["input=test.en", "output=test.de", f"batch_size={batch_size}"]
    done = run_command("translate", checkpoint, *options, cwd=tmp_path)
    assert done.code == 0, done.err
    [translations] = tmp_path.glob("test-*.best.*.txt")
    assert (tmp_path / "test.de").read_bytes() == translations.read_bytes()


def test_translations_do_not_depend_on_batches_or_order(trained) -> None:
    sources = [source for source, _ in generate(20000, 100, 100).dev[:24]]
    translator = Translator.load(trained.folder / "best.pt", device="cpu", precision="fp32", batch_size=32)
    together = translator.translate(sources)
    for batch_size in (1, 3, 32):
        translator.batch_size = batch_size
        backwards = translator.translate(sources[::-1])[::-1]
        for one, other in zip(together, backwards, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-5)
            assert one.text == other.text or one.tokens != other.tokens


def test_a_wider_beam_finds_better_scores_and_greedy_still_translates(trained) -> None:
    pairs = generate(20000, 100, 100).dev[:50]
    sources, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    translator = Translator.load(trained.folder / "best.pt", device="cpu", precision="fp32")
    greedy = translator.translate(sources, beam_size=1)
    wide = translator.translate(sources, beam_size=8)
    assert sum(one.score for one in wide) > sum(one.score for one in greedy)
    scores = score_translations([one.text for one in greedy], references)
    assert scores.bleu >= LOWEST_BLEU / 2


def test_attention_follows_the_source(trained) -> None:
    """Over a sentence, attention visits most source tokens, and mostly moves forwards."""
    sources = [source for source, _ in generate(20000, 100, 100).dev[:20]]
    translator = Translator.load(trained.folder / "best.pt", device="cpu", precision="fp32")
    variety, forwards = [], []
    for translation in translator.translate(sources, attention=True):
        assert translation.attention_TS is not None
        positions = translation.attention_TS.argmax(dim=1)
        variety.append(len(set(positions.tolist())) / len(positions))
        forwards.append(float((positions[1:] >= positions[:-1]).float().mean()))
    assert sum(variety) / len(variety) > 0.5
    assert sum(forwards) / len(forwards) > 0.6
