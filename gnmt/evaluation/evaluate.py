"""Evaluate a checkpoint on a test set.

`evaluate` translates the test set, scores it, and writes the scores and the translations. The test set comes from
`TrainingData.test_set` or `EvaluationFiles`. The files are named

    <test set>-<hash of the text>.<checkpoint><variant>.<hash of the checkpoints>.json, .txt and .tsv

where the hashes are of contents: the same evaluation replaces its own files, and no evaluation replaces those of
another text or another checkpoint. TensorBoard's tags are `evaluation/<test set><variant>/<metric>`; only the tag of a
pair of files has the hash of the text, too.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gnmt.checkpoint.file import sha256_of_checkpoints
from gnmt.checkpoint.load import LoadedModel
from gnmt.config.build import build
from gnmt.config.schema import EvaluatedConfig
from gnmt.config.validate import check_component
from gnmt.data.changed_lines import changed_lines
from gnmt.data.corpora import SCRIPTS, Corpus, Direction, bleu_tokenizer, language_unlike_13a
from gnmt.data.parallel_text import ParallelFiles
from gnmt.data.store import DamagedDataError, read_preprocessed
from gnmt.data.tokenizer import AnyTokenizer, Tokenizer
from gnmt.data.word_character import WordCharacterTokenizer
from gnmt.decoding.alignment import draw_alignment
from gnmt.decoding.options import SearchOptions, build_search_options
from gnmt.decoding.segments import Translation
from gnmt.decoding.translator import Translator
from gnmt.errors import InputError, format_count
from gnmt.evaluation.metrics import (
    METRIC_TITLES,
    LengthScores,
    Scores,
    check_tokenizer,
    score_by_length,
    score_translations,
    sentence_chrf,
)
from gnmt.fileio import check_output, check_output_folder, path_list, short_hash, write_atomically
from gnmt.logs import counter, progress_bar
from gnmt.reporting.figures import image_bytes
from gnmt.reporting.tensorboard import Reporter

log = logging.getLogger(__name__)

Pairs = list[tuple[str, str]]
Rows = Sequence[tuple[str, ...]]
"""Source and references of each sentence; all have the same number of references."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a checkpoint on a test set, and the paths of the files: scores, translations, and both by sentence."""

    scores: Scores
    by_length: Sequence[LengthScores]
    test_set: str
    scores_file: Path
    translations_file: Path
    sentences_file: Path


def evaluate(
    translator: Translator,
    pairs: Rows,
    *,
    test_set: str,
    files: EvaluationFiles | None = None,
    data_fingerprint: str | None = None,
    checkpoints: Sequence[Path],
    steps: Sequence[int],
    bleu_tokenize: str,
    lowercase: bool = False,
    num_alignments: int = 0,
    variant: str = "",
    output: Path | None = None,
    direction: Direction | None = None,
) -> Evaluation:
    """Translate the sources, score them, and write scores and translations; of n-best lists, the best one counts.

    Args:
        translator: The model and its search.
        pairs: Source and reference, or several references, of each sentence.
        test_set: Name of the test set.
        files: The files that the pairs were read from, if they were.
        data_fingerprint: Fingerprint of the training data if the pairs are one of its test sets.
        checkpoints: Files that the translator was loaded from.
        steps: Number of updates of each checkpoint.
        bleu_tokenize: Tokenization of BLEU and GLEU, one of `metrics.BLEU_TOKENIZERS`.
        lowercase: BLEU, chrF, chrF++ and GLEU ignore case.
        num_alignments: Draw the attention of this number of sentences, the first ones.
        variant: Part of the names of files and tags, which distinguishes this evaluation from the default one.
        output: Folder for the files. By default `translations/` of the checkpoint's run, whose TensorBoard then gets
            the scores as well; for a checkpoint outside of any run, `<its name>.translations/` beside it.
        direction: The direction of a multilingual model's test set, if it is one.

    Raises:
        InputError: If the tokenization is not available, an ensemble has no `output`, or the files cannot be written.
    """
    check_tokenizer(bleu_tokenize, key="bleu_tokenize")
    folder = output_folder(checkpoints, output)
    # The hash of the checkpoints is taken first: a training may replace best.pt during the translation.
    text_name, name = evaluation_names(test_set, pairs, checkpoints, variant)
    num_alignments = min(num_alignments, len(pairs))
    alignment_files = [folder / f"{name}.alignment-{number}.png" for number in range(1, num_alignments + 1)]
    check_output_folder("output", folder)
    scores_file, translations_file, sentences_file = (folder / f"{name}.{ending}" for ending in ("json", "txt", "tsv"))
    for path in (scores_file, translations_file, sentences_file, *alignment_files):
        check_output("output", path)
    run = run_of(checkpoints[0]) if output is None else None
    if run is not None:
        check_output_folder("output", run)
    sources, *references = zip(*pairs, strict=True)
    num_changed = count_changed_references(translator.tokenizers.target, list(chain(*references)), test_set)
    start = time.perf_counter()
    with progress_bar(description="translating", unit="line", total=len(sources)) as bar:
        translations = translator.translate(sources, progress=counter(bar))
    seconds = time.perf_counter() - start
    texts = [translation.text for translation in translations]
    scores = score_translations(texts, *references, tokenize=bleu_tokenize, lowercase=lowercase, ter=True)
    by_length = score_by_length(sources, texts, *references, tokenize=bleu_tokenize, lowercase=lowercase)
    evaluation = Evaluation(scores, by_length, test_set, scores_file, translations_file, sentences_file)
    origin: dict[str, Any] = {"checkpoint_files": [str(checkpoint.resolve()) for checkpoint in checkpoints]}
    if files is not None:
        origin |= files.resolved()
    elif data_fingerprint is not None:
        origin["data_fingerprint"] = data_fingerprint
    origin["checkpoint"] = _one_or_all([str(checkpoint) for checkpoint in checkpoints])
    origin["step"] = _one_or_all(steps)
    origin["changed_references"] = num_changed
    origin |= {"bleu_tokenize": bleu_tokenize, "lowercase": lowercase}
    if direction is not None:
        origin |= {"direction": direction.name, "zero_shot": direction.is_zero_shot}
    _write(evaluation, origin, translator, translations, seconds)
    chrf = sentence_chrf(texts, *references, lowercase=lowercase)
    _write_file(sentences_file, sentences_tsv(pairs, translations, chrf).encode())
    with_attention = translator.translate(sources[:num_alignments], attention=True)
    for path, translation in zip(alignment_files, with_attention, strict=True):
        figure = draw_alignment(translator.tokenizers, translation)
        if figure is not None:  # None for a line without attention or of several segments
            _write_file(path, image_bytes(figure, path.name))
    if run is not None:
        curve = test_set if files is None else text_name  # files of equal names get a curve each
        if direction is not None and direction.is_zero_shot:
            curve += ".zero_shot"
        with Reporter(run) as reporter:
            for metric in METRIC_TITLES:
                reporter.scalar(f"evaluation/{curve}{variant}/{metric}", getattr(scores, metric), steps[0])
    return evaluation


def count_changed_references(tokenizer: AnyTokenizer, references: Sequence[str], test_set: str) -> int | None:
    """Count the references that no translation can equal, because the tokenizer changes them, and log examples.

    Returns None for a tokenizer of pretokenized text: without the merges that segmented its training text, it cannot
    encode references.
    """
    if not isinstance(tokenizer, Tokenizer | WordCharacterTokenizer):
        return None
    changed = changed_lines(tokenizer, references)
    if changed.num_changed:
        level = logging.WARNING if changed.is_too_many("target") else logging.INFO
        log.log(level, "%s", changed.describe(f"the references of {test_set}", "target"))
    return changed.num_changed


def evaluation_names(test_set: str, pairs: Rows, checkpoints: Sequence[Path], variant: str) -> tuple[str, str]:
    """Return the name of the text, with a hash of its contents, and the name of the evaluation's files.

    The module's docstring describes the names. Raises InputError if a checkpoint cannot be read.
    """
    text_name = f"{test_set}-{short_hash(json.dumps(pairs))}"
    checkpoint_name = "+".join(checkpoint.stem for checkpoint in checkpoints)
    return text_name, f"{text_name}.{checkpoint_name}{variant}.{checkpoints_hash(checkpoints)}"


def checkpoints_hash(checkpoints: Sequence[Path]) -> str:
    """Return the hash of the contents of checkpoints that is in the names of their evaluation's files."""
    return short_hash(json.dumps(sha256_of_checkpoints(checkpoints)))


def output_folder(checkpoints: Sequence[Path], output: Path | None) -> Path:
    """Return the folder for the files of an evaluation; see `evaluate`."""
    if output is not None:
        return output
    if len(checkpoints) > 1:
        raise InputError("an ensemble belongs to no single run: give output=FOLDER for its scores")
    run, checkpoint = run_of(checkpoints[0]), checkpoints[0].resolve()
    return checkpoint.with_name(f"{checkpoint.stem}.translations") if run is None else run / "translations"


def run_of(checkpoint: Path) -> Path | None:
    """Return the run folder of a checkpoint, which is in the folder itself or in its checkpoints/; None without one."""
    folder = checkpoint.resolve().parent
    folder = folder.parent if folder.name == "checkpoints" else folder
    return folder if (folder / "config.json").is_file() else None


def variant_of(options: SearchOptions, recorded: Mapping[str, Any], further: Mapping[str, object]) -> str:
    """Return a name such as `.beam_size-1.lowercase-true` for all options that differ from the default evaluation.

    Args:
        options: Options of the search.
        recorded: The checkpoint's decoding node; search options equal to it are left out.
        further: Other options to name.
    """
    defaults = asdict(build_search_options(recorded, {}))
    differing = {key: value for key, value in asdict(options).items() if defaults[key] != value}
    return "".join(f".{key}-{str(value).lower()}" for key, value in {**differing, **further}.items())


def _write(
    evaluation: Evaluation,
    origin: Mapping[str, Any],
    translator: Translator,
    translations: Sequence[Translation],
    seconds: float,
) -> None:
    """Write the scores, with everything that they depend on, as JSON, and the translations line by line.

    Args:
        evaluation: Scores and paths.
        origin: Names of text and checkpoints, and the number of references that the tokenizer changes.
        translator: The model and its search.
        translations: One for each source.
        seconds: Time that the translation took.
    """
    contents = {
        "test_set": evaluation.test_set,
        **origin,
        **asdict(evaluation.scores),
        "by_length": [asdict(row) for row in evaluation.by_length],
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
    _write_file(evaluation.translations_file, "".join(translation.text + "\n" for translation in translations).encode())
    _write_file(evaluation.scores_file, (json.dumps(contents, indent=2) + "\n").encode())


SENTENCE_COLUMNS = ("line", "chrf", "score", "source", "translation", "reference")
"""Columns of the .tsv file. Several references are columns reference, reference_2 and so on."""


def sentences_tsv(rows: Rows, translations: Sequence[Translation], chrf: Sequence[float]) -> str:
    """Return a table of the sentences with a heading, those of the lowest chrF first.

    Columns are the line number from 1, sentence chrF, the search's score (eq. 14), source, translation and references.
    Tabs and other characters that end a field or a line in some readers become spaces.

    Args:
        rows: Source and references of each sentence.
        translations: Their translations.
        chrf: Sentence chrF of each translation.
    """
    num_references = len(rows[0]) - 1
    heading = [*SENTENCE_COLUMNS, *(f"reference_{number}" for number in range(2, num_references + 1))]
    lines = ["\t".join(heading)]
    for index in sorted(range(len(rows)), key=lambda index: (chrf[index], index)):
        source, *references = rows[index]
        figures = [str(index + 1), f"{chrf[index]:.2f}", f"{translations[index].score:.4f}"]
        texts = [" ".join(text.split()) for text in (source, translations[index].text, *references)]
        lines.append("\t".join([*figures, *texts]))
    return "".join(f"{line}\n" for line in lines)


def _write_file(path: Path, data: bytes) -> None:
    """Write a file of an evaluation; raises InputError if it cannot be written."""
    try:
        write_atomically(path, data)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): choose another folder with output=") from error


def _one_or_all(values: Sequence[Any]) -> Any:
    """Return the value of a single checkpoint, or the list of values of an ensemble."""
    return values[0] if len(values) == 1 else list(values)


# Test sets


def choose_bleu_tokenizer(
    given: str | None, data: Mapping[str, Any], pairs: Rows, target_language: str | None = None
) -> str:
    """Return the tokenization of BLEU.

    Args:
        given: Value of bleu_tokenize; None for that of the training.
        data: The `data` config node that the checkpoint records.
        pairs: The test set.
        target_language: Language of the references of a multilingual model; None for that of the training.

    Raises:
        InputError: The references are Chinese, Japanese or Korean, and neither the user nor the checkpoint says so.
    """
    name = given or data.get("bleu_tokenize", "auto")
    language = target_language or data.get("target_language", "unknown")
    if found := language_unlike_13a(name, language, (target for _, *targets in pairs for target in targets)):
        raise InputError(
            f"bleu_tokenize: most letters of the references are {SCRIPTS[found]}, but the checkpoint was trained with "
            f"data.target_language={language}: choose bleu_tokenize={bleu_tokenizer('auto', found)}"
        )
    return bleu_tokenizer(name, language)


@dataclass(frozen=True)
class EvaluationFiles:
    """A test set in files: a source with a file of targets, or several of them for several references, or pairs.

    Raises InputError unless either the source and a target or `pairs` are given.

    Args:
        source: Path of a text file.
        targets: Paths of text files; line N of each translates line N of the source.
        pairs: Path of a .tsv or .jsonl file.
        columns: The keys of source and target in a .jsonl file.
    """

    source: str | None
    targets: Sequence[str]
    pairs: str | None = None
    columns: Sequence[str] = ("source", "target")

    def __post_init__(self) -> None:
        if (self.source is None) != (not self.targets):
            raise InputError("source= and target= belong together: give both files, or pairs=, or a test_set=")
        self._texts()

    def _texts(self) -> list[ParallelFiles]:
        """Return the source with each of its references."""
        targets: Sequence[str | None] = self.targets or [None]
        return [ParallelFiles(self.source, target, self.pairs, list(self.columns)) for target in targets]

    @property
    def name(self) -> str:
        """The file name of the source, with its ending, such as `test.en`."""
        return Path(self.pairs or self.source or "").name

    def resolved(self) -> dict[str, Any]:
        """Return the absolute paths of the files that are given."""
        targets = [str(Path(target).resolve()) for target in self.targets]
        paths = {"source": self.source, "pairs": self.pairs}
        given = {key: str(Path(path).resolve()) for key, path in paths.items() if path is not None}
        return {**given, "target": _one_or_all(targets)} if targets else given

    def read(self) -> Rows:
        """Return source and references of each sentence; raises InputError if there is nothing to evaluate."""
        read = [list(text.iterate()) for text in self._texts()]
        rows = [(same[0][0], *(target for _, target in same)) for same in zip(*read, strict=True)]
        if not any(source.strip() and any(target.strip() for target in targets) for source, *targets in rows):
            names = " and ".join(path for path in (self.source, *self.targets, self.pairs) if path is not None)
            raise InputError(
                f"{names} hold no sentence pair with text on both sides ({format_count(len(rows), 'pair')} read): "
                "there is nothing to evaluate"
            )
        return rows


class EvaluationText(NamedTuple):
    """A test set of the training data, or one in files.

    Attributes:
        name: Its name in messages and files.
        rows: Source and references of each sentence.
        files: The files that the rows were read from; None for a test set of the training data.
        data_fingerprint: Fingerprint of the training data; None for files.
        direction: The direction of a multilingual model's test set; None for files and for other models.
    """

    name: str
    rows: Rows
    files: EvaluationFiles | None
    data_fingerprint: str | None
    direction: Direction | None = None


def given_files(cfg: EvaluatedConfig) -> EvaluationFiles | None:
    """Return the files that source= and target=, or pairs=, name; None without these keys.

    Raises InputError if the keys do not fit together.
    """
    if cfg.source is None and cfg.target is None and cfg.pairs is None:
        return None
    if cfg.test_set is not None or cfg.data_folder is not None:
        raise InputError("source= and target=, or pairs=, name the test set: leave out test_set= and data_folder=")
    return EvaluationFiles(cfg.source, path_list(cfg.target or []), cfg.pairs, cfg.columns)


def read_texts(
    cfg: EvaluatedConfig, files: EvaluationFiles | None, member: LoadedModel, default_set: str | None = None
) -> list[EvaluationText]:
    """Return the text of the files, or the test set of the checkpoint's training data that test_set= names.

    A test set of a multilingual model has one text for each direction.

    Args:
        cfg: The command's config.
        files: Result of `given_files`.
        member: The checkpoint, or the first one of an ensemble.
        default_set: Test set for `test_set: null`; None for the only one of the data.
    """
    if files is not None:
        return [EvaluationText(files.name, files.read(), files, None)]
    if cfg.target_language is not None:
        raise InputError("target_language= belongs to source= and target=, or pairs=; a test set has its own")
    contents, trusted = member.contents, tuple(cfg.trusted_packages)
    recorded = TrainingData(
        member.config["data"], contents["preprocessed_folder"], contents["data_fingerprint"], trusted
    )
    return recorded.test_sets(cfg.test_set or default_set, cfg.data_folder)


def read_text(
    cfg: EvaluatedConfig, files: EvaluationFiles | None, member: LoadedModel, default_set: str | None = None
) -> EvaluationText:
    """Return the only text of `read_texts`; raises InputError if there are several directions."""
    texts = read_texts(cfg, files, member, default_set)
    if len(texts) > 1:
        raise InputError(f"choose one direction: test_set= one of {', '.join(text.name for text in texts)}")
    return texts[0]


@dataclass(frozen=True)
class TrainingData:
    """The data that a checkpoint was trained on.

    Args:
        node: The recorded `data` config node.
        preprocessed_folder: Folder of the preprocessed data.
        fingerprint: Fingerprint of the data.
        trusted_packages: Packages besides gnmt whose corpus classes may be built.
    """

    node: Mapping[str, Any]
    preprocessed_folder: str
    fingerprint: str
    trusted_packages: tuple[str, ...]

    def test_sets(self, name: str | None, folder: str | None) -> list[EvaluationText]:
        """Return a test set, or, of a multilingual corpus, the test sets of all directions with this name.

        The pairs are read from the preprocessed folder if it still holds this data, otherwise from the corpus. Raises
        InputError if the folder is damaged, or has no test set of this name.

        Args:
            name: "dev" or a test set of the data, of a multilingual corpus also `<test set>.<direction>`; None for the
                only test set, of a multilingual corpus for all of them.
            folder: Folder of the corpus if it has moved since training.
        """
        if "_target_" not in self.node:
            raise InputError("an imported checkpoint has no test set: give a pair of files with source= and target=")
        texts = self._preprocessed_texts() if folder is None else None
        if texts is None:
            if folder is None:
                log.warning("%s does not hold the training data any more: reading the corpus", self.preprocessed_folder)
            texts = self._corpus_texts(folder)
        tests = [test for test, text in texts.items() if not text.is_dev]
        multilingual = any(text.direction is not None for text in texts.values())
        if name is None and multilingual and tests:
            chosen = tests
        elif name is None:
            if len(tests) != 1:
                found = f"has the test sets {', '.join(tests)}" if tests else "has no test set"
                raise InputError(
                    f"the training data {found}: choose one with test_set= (or test_set=dev), "
                    "or give a pair of files with source= and target="
                )
            chosen = tests
        else:
            chosen = [test for test in texts if test == name or (multilingual and test.startswith(f"{name}."))]
        if not chosen:
            raise InputError(f"test_set={name} is not in the training data, which has {', '.join(texts)}")
        return [
            EvaluationText(test, texts[test].pairs, None, self.fingerprint, texts[test].direction) for test in chosen
        ]

    def _preprocessed_texts(self) -> dict[str, _RecordedText] | None:
        try:
            preprocessed = read_preprocessed(self.preprocessed_folder)
        except DamagedDataError:
            raise
        except InputError:
            return None
        if preprocessed.fingerprint != self.fingerprint:
            return None
        return _by_direction(preprocessed.dev, preprocessed.tests, preprocessed.directions)

    def _corpus_texts(self, folder: str | None) -> dict[str, _RecordedText]:
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
        tests = {name: list(text.iterate()) for name, text in corpus.test_texts().items()}
        return _by_direction(list(corpus.dev_text().iterate()), tests, corpus.directions())


class _RecordedText(NamedTuple):
    """The dev text or a test set of the training data, of one direction if there are several."""

    pairs: Pairs
    is_dev: bool
    direction: Direction | None = None


def _by_direction(dev: Pairs, tests: Mapping[str, Pairs], directions: Sequence[Direction]) -> dict[str, _RecordedText]:
    """Return the texts by name; with several directions, `dev` is split into `dev.<direction>`."""
    if not directions:
        named = {name: _RecordedText(pairs, is_dev=False) for name, pairs in tests.items()}
        return {"dev": _RecordedText(dev, is_dev=True), **named}
    texts: dict[str, _RecordedText] = {}
    start = 0
    for direction in directions:
        name, end = f"dev.{direction.name}", start + direction.num_dev_pairs
        before = texts[name].pairs if name in texts else []  # of another corpus with the same languages
        texts[name] = _RecordedText(before + dev[start:end], is_dev=True, direction=direction)
        start = end
    for name, pairs in tests.items():
        of_test = next(direction for direction in directions if name.endswith(f".{direction.name}"))
        texts[name] = _RecordedText(pairs, is_dev=False, direction=of_test)
    return texts
