"""The scores of a checkpoint on a test set."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gnmt.config.build import build
from gnmt.config.validate import check_component
from gnmt.data.corpora import Corpus
from gnmt.data.parallel_text import ParallelFiles
from gnmt.data.store import read_preprocessed
from gnmt.decoding.alignment import draw_alignment
from gnmt.decoding.options import SearchOptions, build_search_options
from gnmt.decoding.translation import Translation
from gnmt.decoding.translator import Translator
from gnmt.errors import InputError, counted
from gnmt.evaluation.metrics import LengthScores, Scores, check_tokenizer, score_by_length, score_translations
from gnmt.fileio import write_atomically
from gnmt.reporting.figures import save
from gnmt.reporting.tensorboard import Reporter

SIDES = ("source", "target")
TEXT_KEYS = (*SIDES, "data_fingerprint")
PLACES_KEY = "checkpoint_files"


def run_of(checkpoint: Path) -> Path | None:
    """The run that a checkpoint lies in: best.pt at its top, the whole ones in checkpoints/; None outside of any."""
    folder = checkpoint.resolve().parent
    folder = folder.parent if folder.name == "checkpoints" else folder
    return folder if (folder / "config.json").is_file() else None


def folder_for(checkpoints: Sequence[Path], output: Path | None) -> Path:
    """`output`, or translations/ of the checkpoint's run; outside of any run, a folder named after the checkpoint.

    Raises InputError for an ensemble without output, which belongs to no single run.
    """
    if output is not None:
        return output
    if len(checkpoints) > 1:
        raise InputError("an ensemble belongs to no single run: say with output=FOLDER where its figures go")
    run, place = run_of(checkpoints[0]), checkpoints[0].resolve()
    return place.with_name(f"{place.stem}.translations") if run is None else run / "translations"


def described(
    files: tuple[str, str] | None, data_fingerprint: str | None, checkpoints: Sequence[Path]
) -> dict[str, Any]:
    """What an evaluation is of, as its JSON says it: `source` and `target`, or `data_fingerprint`; `checkpoint_files`."""
    text: dict[str, Any] = {}
    if files is not None:
        text = {side: str(Path(path).resolve()) for side, path in zip(SIDES, files, strict=True)}
    elif data_fingerprint is not None:
        text = {"data_fingerprint": data_fingerprint}
    return text | {PLACES_KEY: [str(checkpoint.resolve()) for checkpoint in checkpoints]}


def distinct_names(
    test_set: str, checkpoint_name: str, variant: str, ours: Mapping[str, Any], folder: Path, *, is_runs_own: bool
) -> tuple[str, str]:
    """The names of test set and checkpoints under which these figures take the place of no others.

    A digest of what they are of is added to the test set's where the folder has figures of another text by that name,
    and to files without an ending, which may be called like a test set of the data. One of the checkpoints' places is
    added to theirs where the file to write is of other checkpoints; one that cannot be read may be of any. The same
    evaluation gets the same names again.

    ours: see `described`. is_runs_own: whether the folder is translations/ of the checkpoint's run, where the data is
    always the run's, and a checkpoint is known by its name, last.pt whatever it points to.
    """
    text = {key: ours[key] for key in TEXT_KEYS if key in ours}
    if ("source" in text and "." not in test_set) or _holds_other_text(test_set, text, folder, is_runs_own):
        test_set = f"{test_set}-{_digest(text)}"
    path = folder / f"{test_set}.{checkpoint_name}{variant}.json"
    if path.exists():
        figures = _read(path)
        if figures is None or (not is_runs_own and figures.get(PLACES_KEY) != ours[PLACES_KEY]):
            checkpoint_name = f"{checkpoint_name}-{_digest(ours[PLACES_KEY])}"
    return test_set, checkpoint_name


def _holds_other_text(test_set: str, text: Mapping[str, Any], folder: Path, is_runs_own: bool) -> bool:
    for path in folder.glob("*.json"):
        figures = _read(path) if path.name.startswith(f"{test_set}.") else None
        if figures is None or figures.get("test_set") != test_set:
            continue
        theirs = {key: figures[key] for key in TEXT_KEYS if key in figures}
        if not theirs and is_runs_own and "source" not in text:
            continue  # from before it was recorded; the run's own data has not changed
        if theirs != text:
            return True
    return False


def _read(path: Path) -> dict[str, Any] | None:
    """The figures in a file, None where it holds none that can be read."""
    try:
        figures = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return figures if isinstance(figures, dict) and "test_set" in figures else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]


log = logging.getLogger(__name__)

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Evaluation:
    """What was measured and where it was written."""

    scores: Scores
    by_length: Sequence[LengthScores]
    test_set: str
    scores_file: Path
    translations_file: Path


@dataclass(frozen=True)
class TrainedData:
    """The data of a checkpoint's training: its recorded config node, where it was preprocessed, and its fingerprint."""

    node: Mapping[str, Any]
    preprocessed_folder: str
    fingerprint: str
    trusted_packages: tuple[str, ...]

    def named(self, test_set: str | None, folder: str | None) -> tuple[str, Pairs]:
        """The test set of that name ("dev" is one), or the only one where the name is None.

        Read from the preprocessed folder while that still holds this data, otherwise from the corpus itself.
        folder: where the corpus lies now, if not where it lay in training.
        """
        if "_target_" not in self.node:
            raise InputError("an imported checkpoint knows no test set: give a pair of files with source= and target=")
        texts = self._preprocessed_texts() if folder is None else None
        if texts is None:
            if folder is None:
                log.warning("%s no longer holds the training's data: reading the files anew", self.preprocessed_folder)
            texts = self._corpus_texts(folder)
        tests = [name for name in texts if name != "dev"]
        if test_set is None:
            if len(tests) != 1:
                found = f"has the test sets {', '.join(tests)}" if tests else "has no test set"
                raise InputError(
                    f"the training's data {found}: say which with test_set= (dev is one too), "
                    "or give a pair of files with source= and target="
                )
            test_set = tests[0]
        if test_set not in texts:
            raise InputError(f"test_set={test_set} is not in the training's data, which has {', '.join(texts)}")
        return test_set, texts[test_set]

    def _preprocessed_texts(self) -> dict[str, Pairs] | None:
        try:
            preprocessed = read_preprocessed(self.preprocessed_folder)
        except InputError:
            return None
        return {"dev": preprocessed.dev, **preprocessed.tests} if preprocessed.fingerprint == self.fingerprint else None

    def _corpus_texts(self, folder: str | None) -> dict[str, Pairs]:
        node = dict(self.node)
        if folder is not None:
            if "folder" not in node:
                raise InputError(
                    f"data_folder={folder}: {node['_target_']} has no folder; give source= and target= instead"
                )
            node["folder"] = folder
        errors = check_component(node, "data", trusted_packages=self.trusted_packages, expected=(Corpus,))
        if errors:
            raise InputError("the checkpoint's data config was refused:\n  " + "\n  ".join(errors))
        corpus: Corpus = build(node)
        texts = {"dev": corpus.dev_text(), **corpus.test_texts()}
        return {name: list(text.iterate()) for name, text in texts.items()}


def evaluate(
    translator: Translator,
    pairs: Pairs,
    *,
    test_set: str,
    files: tuple[str, str] | None = None,
    data_fingerprint: str | None = None,
    checkpoints: Sequence[Path],
    steps: Sequence[int],
    bleu_tokenize: str,
    lowercase: bool = False,
    num_alignments: int = 0,
    variant: str = "",
    output: Path | None = None,
) -> Evaluation:
    """Translates the sources, scores them, writes scores and translations, and tells the run's TensorBoard.

    Of n-best lists and several samples the first counts. files: the source's and the target's, where these and no data
    set name the pairs. data_fingerprint: of the training's data, where one of its test sets does. Figures of other text or
    of other checkpoints of the same name stay, and these get a name of their own.
    checkpoints, steps: what the translator was made of, and the updates of each. num_alignments: pictures of the
    attention to draw, of the first sentences. variant: what tells this evaluation from the plain one, for the names of
    files and tags. output: the folder to write to; None for `translations/` of the checkpoint's run, whose TensorBoard
    then gets the figures as well, and outside of any run for a folder beside the checkpoint, `<its name>.translations/`
    (InputError for an ensemble, which has no run).
    """
    check_tokenizer(bleu_tokenize)
    folder = folder_for(checkpoints, output)
    run = run_of(checkpoints[0]) if output is None else None
    subject = described(files, data_fingerprint, checkpoints)
    checkpoint_name = "+".join(checkpoint.stem for checkpoint in checkpoints)
    test_set, checkpoint_name = distinct_names(
        test_set, checkpoint_name, variant, subject, folder, is_runs_own=run is not None
    )
    sources, references = [source for source, _ in pairs], [target for _, target in pairs]
    start = time.perf_counter()
    translations = translator.translate(sources, progress=True)
    seconds = time.perf_counter() - start
    texts = [translation.text for translation in translations]
    scores = score_translations(texts, references, tokenize=bleu_tokenize, lowercase=lowercase, ter=True)
    by_length = score_by_length(sources, texts, references, tokenize=bleu_tokenize, lowercase=lowercase)
    name = f"{test_set}.{checkpoint_name}{variant}"
    evaluation = Evaluation(scores, by_length, test_set, folder / f"{name}.json", folder / f"{name}.txt")
    write(evaluation, translator, translations, seconds, checkpoints, steps, subject)
    draw_alignments(translator, sources[:num_alignments], folder, name)
    if run is not None:
        with Reporter(run) as reporter:
            for metric in ("bleu", "chrf", "ter"):
                reporter.scalar(f"evaluation/{test_set}{variant}/{metric}", getattr(scores, metric), steps[0])
    return evaluation


def write(
    evaluation: Evaluation,
    translator: Translator,
    translations: Sequence[Translation],
    seconds: float,
    checkpoints: Sequence[Path],
    steps: Sequence[int],
    subject: Mapping[str, Any],
) -> None:
    """The figures as JSON with all that they depend on, and the translations line by line.

    seconds: that translating them took. subject: what was evaluated, see `described`.
    """
    figures = {
        "test_set": evaluation.test_set,
        **subject,
        **asdict(evaluation.scores),
        "by_length": [asdict(row) for row in evaluation.by_length],
        "checkpoint": one_or_all([str(checkpoint) for checkpoint in checkpoints]),
        "step": one_or_all(steps),
        "precision": translator.precision.name,
        "batch_size": translator.batch_size,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "sentences_per_second": len(translations) / seconds,
        "decoding": asdict(translator.options),
        "unfinished": sum(not translation.finished for translation in translations),
        "search_steps": sum(translation.steps for translation in translations),
        "search_steps_after_best": sum(translation.steps_after_best for translation in translations),
    }
    try:
        evaluation.scores_file.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(translation.text + "\n" for translation in translations)
        write_atomically(evaluation.translations_file, text.encode())
        write_atomically(evaluation.scores_file, (json.dumps(figures, indent=2) + "\n").encode())
    except OSError as error:
        raise InputError(f"{evaluation.scores_file.parent}: cannot be written: {error.strerror}") from error


def one_or_all(values: Sequence[Any]) -> Any:
    """The value of a single checkpoint, or the list of an ensemble's."""
    return values[0] if len(values) == 1 else list(values)


def variant_of(options: SearchOptions, recorded: Mapping[str, Any], further: Mapping[str, object]) -> str:
    """`.beam_size-1.lowercase-true`: the search options that differ from the recorded ones, and what else is given.

    recorded: the node of a checkpoint, in which options that are younger than it are missing and mean their defaults.
    """
    before = asdict(build_search_options(recorded, {}))
    differing = {key: value for key, value in asdict(options).items() if before[key] != value}
    return "".join(f".{key}-{str(value).lower()}" for key, value in {**differing, **further}.items())


def draw_alignments(translator: Translator, sources: list[str], folder: Path, name: str) -> None:
    """<name>.alignment-1.png and so on, one for each source that has an alignment."""
    for number, translation in enumerate(translator.translate(sources, attention=True), start=1):
        figure = draw_alignment(translator.tokenizers, translation)
        if figure is not None:
            save(figure, folder / f"{name}.alignment-{number}.png")


def file_pairs(source: str, target: str) -> tuple[str, Pairs]:
    """A test set from two files, named after the source's, with its ending: `test.en` is not the data's own `test`."""
    pairs = list(ParallelFiles(source, target).iterate())
    if not any(left.strip() and right.strip() for left, right in pairs):
        raise InputError(
            f"{source} and {target} hold no sentence pair with text on both sides ({counted(len(pairs), 'pair')} "
            "read): there is nothing to evaluate"
        )
    return Path(source).name, pairs
