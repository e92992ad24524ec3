"""scripts/evaluate.py, translate.py and inspect_checkpoint.py on a run's checkpoint."""

from __future__ import annotations

import gzip
import json
import os
import platform
import shutil
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gnmt.checkpoint.file import FORMAT_VERSION, read_checkpoint
from gnmt.decoding.translator import Translator
from gnmt.errors import InputError

SENTENCES = ["The old man reads a book.", "", "Does the child see the house?"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Return an English file of three lines; the second one is blank."""
    path = tmp_path / "a.en"
    path.write_text("".join(line + "\n" for line in SENTENCES), encoding="utf-8")
    return path


# evaluate.py


def read_scores(folder: Path, pattern: str) -> dict:
    """Return the contents of the only scores file that matches the pattern, in which # is a hash."""
    [path] = folder.glob(pattern.replace("#", "[0-9a-f]" * 8) + ".json")
    return json.loads(path.read_text(encoding="utf-8"))


def test_on_dev_evaluation_gives_the_scores_of_training(run_command, tiny, tmp_path) -> None:
    run = tiny.copied_to(tmp_path)
    done = run_command("evaluate", "checkpoint=runs/tiny/best.pt", "test_set=dev", cwd=tmp_path)
    assert done.code == 0, done.err
    recorded = read_checkpoint(run.folder / "best.pt")
    figures = read_scores(run.folder / "translations", "dev-#.best.#")
    assert figures["bleu"] == recorded["best"]["dev/bleu"]
    assert figures["chrf"] == recorded["best"]["dev/chrf"]
    assert (figures["step"], figures["precision"]) == (recorded["best_step"], recorded["precision"])


def test_on_dev_averaged_weights_give_the_scores_of_training(run_command, tiny, tmp_path) -> None:
    """best.pt holds the average alone, a full checkpoint also the weights: both give the scores of training."""
    overrides = [text for text in tiny.copied_to(tmp_path).overrides if not text.startswith("name=")]
    done = run_command("train", *overrides, "name=averaged", "trainer.ema_decay=0.9", cwd=tmp_path)
    assert done.code == 0, done.err
    folder = tmp_path / "runs" / "averaged"
    best = read_checkpoint(folder / "best.pt")
    full = f"step_{best['best_step']:08d}"
    for path in (folder / "best.pt", folder / "checkpoints" / f"{full}.pt"):
        done = run_command("evaluate", f"checkpoint={path}", "test_set=dev", f"output={tmp_path}", cwd=tmp_path)
        assert done.code == 0, done.err
        figures = read_scores(tmp_path, f"dev-#.{path.stem}.#")
        assert (figures["bleu"], figures["chrf"]) == (best["best"]["dev/bleu"], best["best"]["dev/chrf"])
    raw = ("weights=raw", "test_set=dev", f"output={tmp_path}")
    done = run_command("evaluate", f"checkpoint={folder}/last.pt", *raw, cwd=tmp_path)
    assert done.code == 0, done.err
    assert read_scores(tmp_path, "dev-#.last.weights-raw.#")["step"]
    done = run_command("evaluate", f"checkpoint={folder}/best.pt", *raw, cwd=tmp_path)
    assert done.code == 2
    assert "best.pt has only averaged weights" in done.err
    assert "such as last.pt" in done.err


def test_evaluation_prints_signatures_writes_files_and_reports_to_tensorboard(run_command, tiny, tmp_path) -> None:
    run = tiny.copied_to(tmp_path)
    done = run_command("evaluate", "checkpoint=runs/tiny/best.pt", cwd=tmp_path)
    assert done.code == 0, done.err
    heading, bleu, chrf, chrfpp, ter, gleu, *paths = done.out.splitlines()
    assert heading == "test, 5 sentences, runs/tiny/best.pt"
    assert bleu.startswith("bleu")
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in bleu
    assert chrf.startswith("chrf")
    assert "nc:6|nw:0|space:no|version:" in chrf
    assert chrfpp.startswith("chrfpp")
    assert "nc:6|nw:2|space:no|version:" in chrfpp
    assert ter.startswith("ter")
    assert "tok:tercom|norm:no|punct:yes|asian:no|version:" in ter
    assert gleu.startswith("gleu")
    assert "nrefs:1|case:mixed|tok:13a|mean|version:" in gleu
    figures = read_scores(run.folder / "translations", "test-#.best.#")
    [translations] = (run.folder / "translations").glob("*.txt")
    assert paths == [
        f"scores: {translations.with_suffix('.json')}",
        f"translations: {translations}",
        f"by sentence, worst first: {translations.with_suffix('.tsv')}",
    ]
    assert figures["num_sentences"] == 5
    assert figures["decoding"]["beam_size"] == 2
    assert translations.read_bytes().count(b"\n") == 5
    events = EventAccumulator(str(run.folder))
    events.Reload()
    for metric in ("bleu", "chrf", "chrfpp", "ter", "gleu"):
        [point] = events.Scalars(f"evaluation/test/{metric}")
        assert point.step == figures["step"]
        assert point.value == pytest.approx(figures[metric])


def test_a_pair_of_files_is_a_test_set(run_command, tiny, text, tmp_path) -> None:
    (tmp_path / "a.de").write_text("Der alte Mann liest ein Buch.\n\nSieht das Kind das Haus?\n", encoding="utf-8")
    checkpoint = f"checkpoint={tiny.folder}/last.pt"
    done = run_command("evaluate", checkpoint, "source=a.en", "target=a.de", "output=out", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.startswith("a.en, 3 sentences")
    [translations] = (tmp_path / "out").glob("a.en-*.last.*.txt")
    assert translations.read_bytes().split(b"\n")[1] == b""


def test_several_references_and_files_of_pairs_are_test_sets(run_command, tiny, text, tmp_path) -> None:
    """Only the first of several references could be used, and source=d.tsv target=d.tsv scored whole lines."""
    checkpoint = f"checkpoint={tiny.folder}/best.pt"
    sources = text.read_text(encoding="utf-8").splitlines()
    (tmp_path / "a.de").write_text("Der alte Mann liest ein Buch.\n\nSieht das Kind das Haus?\n", encoding="utf-8")
    (tmp_path / "b.de").write_text("Ein Buch liest der alte Mann.\n\nSieht ein Kind das Haus?\n", encoding="utf-8")
    files = [f"source={text}", "target=[a.de,b.de]"]
    done = run_command("evaluate", checkpoint, *files, "output=two", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.count("nrefs:2|") == 5  # BLEU, chrF, chrF++, TER and GLEU
    scores = read_scores(tmp_path / "two", "a.en-#.best.*")
    assert [Path(path).name for path in scores["target"]] == ["a.de", "b.de"]
    references = (tmp_path / "a.de").read_text(encoding="utf-8").splitlines()
    pairs = "".join(f"{source}\t{target}\n" for source, target in zip(sources, references, strict=True))
    (tmp_path / "d.tsv").write_text(pairs, encoding="utf-8")
    done = run_command("evaluate", checkpoint, "pairs=d.tsv", "output=pairs", cwd=tmp_path)
    assert done.code == 0, done.err
    assert read_scores(tmp_path / "pairs", "d.tsv-#.best.*")["num_sentences"] == 3
    refused = run_command("evaluate", checkpoint, "source=d.tsv", "target=d.tsv", cwd=tmp_path)
    assert refused.code == 2
    assert "source=d.tsv is a file of TSV, but source takes one sentence per line: give it as pairs=" in refused.err


@pytest.mark.parametrize(
    "command",
    [
        ("translate", "output="),
        ("translate", "output_folder="),
        ("score", "source=a.en", "target=a.en", "output="),
        ("evaluate", "output="),
        ("evaluate", "output=''"),
        ("average_checkpoints", "checkpoints=[a.pt]", "output="),
        ("export_checkpoint", "output="),
        ("import_checkpoint", "source=safetensors", "output="),
        ("benchmark", "task=decoding", "output="),
        ("compare", "runs=.", "plots="),
        ("prepare", "data.preprocessed="),
        ("train", "name="),
    ],
)
def test_an_empty_path_is_refused_by_its_key(run_command, tmp_path, command) -> None:
    """evaluate.py wrote into the working folder."""
    script, *settings = command
    checkpoint = ["checkpoint=a.pt"] if script not in ("average_checkpoints", "compare", "prepare", "train") else []
    done = run_command(script, *checkpoint, *settings, cwd=tmp_path)
    assert done.code == 2
    assert f"{settings[-1].partition('=')[0]}: is empty; give a value" in done.err
    assert list(tmp_path.iterdir()) == []


def test_results_of_files_with_equal_names_do_not_overwrite_each_other(run_command, tiny, tmp_path) -> None:
    """The results of a/test.en and b/test.en shared their files and their curve."""
    run = tiny.copied_to(tmp_path)
    for folder, line in (("a", "The old man sleeps."), ("b", "The dog sees the house.")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.en").write_text(f"{line}\n", encoding="utf-8")

    def evaluated(folder: str, *options: str) -> str:
        """Evaluate on a file of the folder, and return the path of the scores."""
        files = [f"source={folder}/test.en", f"target={folder}/test.en"]
        done = run_command("evaluate", "checkpoint=runs/tiny/best.pt", *files, *options, cwd=tmp_path)
        assert done.code == 0, done.err
        assert done.out.startswith("test.en, 1 sentence")
        return done.out.split("scores: ")[1].splitlines()[0]

    first, second = evaluated("a"), evaluated("b")
    assert first != second
    assert (evaluated("a"), evaluated("./b")) == (first, second)
    greedy = evaluated("b", "decoding.beam_size=1")
    assert greedy == second.replace(".best.", ".best.beam_size-1.")
    for path, folder in ((first, "a"), (second, "b")):
        figures = json.loads(Path(path).read_text(encoding="utf-8"))
        assert figures["source"] == figures["target"] == str((tmp_path / folder / "test.en").resolve())
        assert figures["test_set"] == "test.en"
    events = EventAccumulator(str(run.folder))
    events.Reload()
    texts = [Path(path).name.split(".best.")[0] for path in (first, second)]
    assert {f"evaluation/{text}/bleu" for text in texts} <= set(events.Tags()["scalars"])


def test_scores_of_a_checkpoint_outside_of_a_run_are_written_beside_it(run_command, tiny, tmp_path) -> None:
    """They were written to a folder translations/, which all checkpoints there would have shared."""
    shutil.copy(tiny.folder / "best.pt", tmp_path / "average.pt")
    done = run_command("evaluate", "checkpoint=average.pt", "test_set=dev", cwd=tmp_path)
    assert done.code == 0, done.err
    assert {path.name for path in tmp_path.iterdir()} == {"average.pt", "average.translations"}
    figures = read_scores(tmp_path / "average.translations", "dev-#.average.#")
    assert figures["checkpoint_files"] == [str((tmp_path / "average.pt").resolve())]
    assert figures["data_fingerprint"] == read_checkpoint(tmp_path / "average.pt")["data_fingerprint"]


def test_decoding_options_can_be_replaced_and_are_recorded(run_command, tiny, tmp_path) -> None:
    options = ["decoding.beam_size=1", "decoding.max_length_offset=0", "precision=fp32", "lowercase=true"]
    done = run_command("evaluate", f"checkpoint={tiny.folder}/best.pt", *options, "output=.", cwd=tmp_path)
    assert "case:lc" in done.out
    figures = read_scores(tmp_path, "test-#.best.beam_size-1.max_length_offset-0.lowercase-true*.#")
    assert figures["decoding"]["beam_size"] == 1
    assert figures["decoding"]["max_length_offset"] == 0
    assert figures["decoding"]["max_length_factor"] == 0.5
    assert figures["precision"] == "fp32"


def test_jobs_of_a_sweep_do_not_overwrite_each_other(run_command, tiny, tmp_path) -> None:
    run = tiny.copied_to(tmp_path)
    done = run_command("evaluate", "-m", "checkpoint=runs/tiny/best.pt", "decoding.beam_size=1,3", cwd=tmp_path)
    assert done.code == 0, done.err
    names = {path.name for path in (run.folder / "translations").glob("*.json")}
    assert len(names) == 2
    assert {name.split(".best.")[1].partition(".")[0] for name in names} == {"beam_size-1", "beam_size-3"}


def test_a_file_named_like_dev_has_a_curve_of_its_own(run_command, tiny, tmp_path) -> None:
    """Its results overwrote those of dev and added points to training's dev curve."""
    run = tiny.copied_to(tmp_path)
    (tmp_path / "dev.en").write_text("A dog is sleeping.\n", encoding="utf-8")
    done = run_command("evaluate", "checkpoint=runs/tiny/best.pt", "source=dev.en", "target=dev.en", cwd=tmp_path)
    assert done.code == 0, done.err
    events = EventAccumulator(str(run.folder))
    events.Reload()
    assert len(events.Scalars("dev/bleu")) == 2
    [tag] = [tag for tag in events.Tags()["scalars"] if tag.startswith("evaluation/dev.en-") and tag.endswith("/bleu")]
    assert len(events.Scalars(tag)) == 1


def test_alignments_are_drawn_on_request(run_command, tiny, tmp_path) -> None:
    options = ["num_alignments=2", "output=out"]
    done = run_command("evaluate", f"checkpoint={tiny.folder}/best.pt", *options, cwd=tmp_path)
    assert done.code == 0, done.err
    for number in (1, 2):
        [path] = (tmp_path / "out").glob(f"test-*.best.*.alignment-{number}.png")
        assert path.read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "out").glob("*.alignment-3.png"))


# translate.py


def test_translate_draws_the_attention_of_the_first_lines_beside_the_output(
    run_command, tiny, text, tmp_path, monkeypatch
) -> None:
    words = ["translate", f"checkpoint={tiny.folder}/best.pt", f"input={text}", "num_alignments=2"]
    done = run_command(*words, cwd=tmp_path)
    assert done.code == 2
    assert "num_alignments=2 reads the input again and writes figures beside the output" in done.err
    done = run_command(*words, "output=a.de", cwd=tmp_path)
    assert done.code == 0, done.err
    figures = sorted(path.name for path in tmp_path.glob("a.de.*"))
    first_lines = text.read_text(encoding="utf-8").split("\n")[:2]
    expected = [f"a.de.alignment-{number}.png" for number, line in enumerate(first_lines, start=1) if line.strip()]
    assert figures == expected
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in figures)


def test_a_pipe_is_read_once_and_completely(run_command, tiny, text, tmp_path) -> None:
    """Counting its lines for the progress bar emptied it, and the output had no line."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(text.read_bytes()))
    writer.start()
    done = run_command("translate", f"checkpoint={tiny.folder}/best.pt", f"input={pipe}", "output=a.de", cwd=tmp_path)
    writer.join()
    assert done.code == 0, done.err
    assert (tmp_path / "a.de").read_bytes().count(b"\n") == 3


def test_an_output_that_is_a_pipe_is_written_and_stays_a_pipe(run_command, tiny, text, tmp_path) -> None:
    """A pipe was replaced by a plain file, as /dev/null would have been."""
    pipe, lines = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: lines.append(pipe.read_bytes()))
    reader.start()
    done = run_command(
        "translate", f"checkpoint={tiny.folder}/best.pt", f"input={text}", f"output={pipe}", cwd=tmp_path
    )
    assert done.code == 0, done.err
    reader.join()
    assert lines[0].count(b"\n") == 3
    assert pipe.is_fifo()


def test_a_checkpoint_alone_in_another_folder_translates(run_command, tiny, text, tmp_path) -> None:
    """Neither the run's folder nor the preprocessed data is needed."""
    home = tmp_path / "elsewhere"
    home.mkdir()
    shutil.copy(tiny.folder / "best.pt", home / "model.pt")
    done = run_command("translate", "checkpoint=model.pt", f"input={text}", "output=a.de", cwd=home)
    assert (done.code, done.out) == (0, "")
    lines = (home / "a.de").read_text(encoding="utf-8").split("\n")
    assert (len(lines), lines[1], lines[3]) == (4, "", "")
    assert {path.name for path in home.iterdir()} == {"model.pt", "a.de"}


def test_standard_output_holds_only_the_translations(run_command, tiny, text, tmp_path) -> None:
    checkpoint = f"checkpoint={tiny.folder}/best.pt"
    piped = run_command("translate", checkpoint, cwd=tmp_path, stdin=text.read_bytes())
    assert run_command("translate", checkpoint, f"input={text}", "output=a.de", cwd=tmp_path).code == 0
    assert piped.code == 0
    assert piped.out == (tmp_path / "a.de").read_text(encoding="utf-8")
    assert piped.out.count("\n") == 3


def test_compressed_input_is_read(run_command, tiny, tmp_path) -> None:
    (tmp_path / "a.en.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    done = run_command("translate", f"checkpoint={tiny.folder}/best.pt", "input=a.en.gz", cwd=tmp_path)
    assert (done.code, done.out.count("\n")) == (0, 2)


def test_the_python_interface_gives_the_same_as_the_command(run_command, tiny, text, tmp_path) -> None:
    checkpoint = tiny.folder / "best.pt"
    printed = run_command("translate", f"checkpoint={checkpoint}", f"input={text}", cwd=tmp_path).out
    translations = Translator.load(checkpoint).translate(SENTENCES, attention=True)
    assert [translation.text for translation in translations] == printed.split("\n")[:-1]
    first = translations[0]
    assert first.attention_TS is not None
    assert first.attention_TS.shape[0] == len(first.tokens)
    torch.testing.assert_close(first.attention_TS.sum(1), torch.ones(len(first.tokens)), atol=1e-2, rtol=0)


@pytest.mark.parametrize("kind", [InputError, ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, "old\n"])
def test_an_unfinished_output_does_not_appear(run_command, tiny, text, tmp_path, monkeypatch, before, kind) -> None:
    def stopped_midway(self, lines, **options):
        raise kind("midway")

    monkeypatch.setattr(Translator, "translate", stopped_midway)
    output = tmp_path / "out" / "a.de"
    output.parent.mkdir()
    if before is not None:
        output.write_text(before, encoding="utf-8")
    command = ["translate", f"checkpoint={tiny.folder}/best.pt", f"input={text}", f"output={output}"]
    if kind is ZeroDivisionError:  # an internal error keeps its traceback
        with pytest.raises(ZeroDivisionError):
            run_command(*command, cwd=tmp_path)
    else:
        assert run_command(*command, cwd=tmp_path).code == {InputError: 2, KeyboardInterrupt: 130}[kind]
    assert (output.read_text(encoding="utf-8") if output.exists() else None) == before
    assert {path.name for path in output.parent.iterdir()} == ({"a.de"} if before else set())


# inspect_checkpoint.py


def test_inspect_describes_a_checkpoint(run_command, tiny, tmp_path) -> None:
    done = run_command("inspect_checkpoint", f"checkpoint={tiny.folder}/best.pt", "format=json", cwd=tmp_path)
    assert done.code == 0, done.err
    described = json.loads(done.out)
    contents = read_checkpoint(tiny.folder / "best.pt")
    assert described["step"] == contents["step"]
    assert described["best"] == contents["best"]
    assert described["config"]["model"]["embedding_size"] == 16
    assert described["tokenizers"]["source"]["vocabulary_size"] == 420
    parameters = described["parameters"]
    total = parameters.pop("total")
    assert total == sum(parameters.values())
    assert f"{total:,} parameters" in tiny.printed.err
    assert described["versions"]["torch"] == torch.__version__
    assert described["versions"]["python"] == platform.python_version()
    assert {"gnmt", "sentencepiece", "format", "git_revision"} <= described["versions"].keys()


def test_inspect_prints_text(run_command, tiny, tmp_path) -> None:
    done = run_command("inspect_checkpoint", f"checkpoint={tiny.folder}/last.pt", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    for expected in (
        "step: 4",
        "dev/bleu: ",
        "embedding_size: 16",
        "vocabulary_size: 420",
        f"format: {FORMAT_VERSION}",
        "total: 20,613",
    ):
        assert expected in done.out
    _, config = done.out.split("\nconfig:\n")
    recorded = json.loads(read_checkpoint(tiny.folder / "last.pt")["config"])
    assert OmegaConf.to_container(OmegaConf.create(textwrap.dedent(config))) == recorded
