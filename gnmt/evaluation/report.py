"""An HTML report about systems on one test set: scores, settings, curves, errors, and all sentences side by side.

`build_report` computes everything, and `Report.as_html` renders it with report.html into one file that needs no
network.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jinja2
from matplotlib import rc_context
from matplotlib.figure import Figure

from gnmt.checkpoint.file import read_checkpoint
from gnmt.config.schema import ReportConfig
from gnmt.data.store import read_preprocessed
from gnmt.errors import InputError
from gnmt.evaluation import error_analysis
from gnmt.evaluation.compare import (
    NOTHING,
    Table,
    differing_settings,
    draw_over_updates,
    group_runs,
    seeds,
    short_keys,
)
from gnmt.evaluation.error_analysis import FREQUENCY_RANGES, Counts, Words, split_words
from gnmt.evaluation.metrics import score_by_length, sentence_chrf
from gnmt.evaluation.run_records import RunRecord, read_runs
from gnmt.evaluation.segment_scores import read_score_files
from gnmt.evaluation.significance import Test, compare_seeds, compare_systems
from gnmt.evaluation.systems import (
    Scoring,
    System,
    choose_references,
    choose_scoring,
    choose_sources,
    read_systems,
    with_segment_scores,
)
from gnmt.fileio import path_list, read_text_lines
from gnmt.reporting.figures import image_bytes, lines_figure

log = logging.getLogger(__name__)

NUM_EXAMPLES = 8  # sentences, words or phrases shown as examples of one kind of error


@dataclass(frozen=True)
class Chart:
    """A figure as SVG, the table of its numbers, and an explanation."""

    title: str
    explanation: str
    svg: str
    table: Table


@dataclass(frozen=True)
class Section:
    """A heading with tables and charts below it."""

    title: str
    explanation: str
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()


@dataclass(frozen=True)
class Report:
    """The contents of a report.

    Args:
        title: Its title.
        sections: Everything above the sentences.
        sentences: The sentences of all systems, which the page's script shows.
    """

    title: str
    sections: Sequence[Section]
    sentences: Mapping[str, Any]

    def as_html(self) -> str:
        """Return the page. Text is escaped, also inside of the embedded data."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        data = json.dumps(self.sentences, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        # A script element ends at `</script`, wherever it stands; JSON may write < as an escape.
        data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
        return environment.get_template("report.html").render(title=self.title, sections=self.sections, data=data)


@dataclass(frozen=True)
class Inputs:
    """What a report is about.

    Args:
        systems: The baseline and the others.
        sources: The sentences that were translated.
        references: For each set of references, one for each sentence. Errors are counted against the first set.
        scoring: The metrics.
        scores: The table of scores, with intervals and p-values.
        over_seeds: The table of scores over seeds, if there is one.
        runs: The records of the systems that are run folders.
        target_language: ISO 639 code of the target language, for negation.
        frequencies: Occurrences of each word in the target side of the training text; None if it is not known.
    """

    systems: Sequence[System]
    sources: Sequence[str]
    references: Sequence[Sequence[str]]
    scoring: Scoring
    scores: Table
    over_seeds: Table | None
    runs: Sequence[RunRecord]
    target_language: str
    frequencies: Mapping[str, int] | None


def build_report(title: str, inputs: Inputs) -> Report:
    """Compute a report."""
    words = _SystemWords.split(inputs)
    sections = [
        Section("Scores", "", [table for table in (inputs.scores, inputs.over_seeds) if table is not None]),
        *([_runs_section(inputs.runs)] if inputs.runs else []),
        _lengths_section(inputs, words),
        _words_section(inputs, words),
        _phrases_section(inputs, words),
    ]
    return Report(title, sections, _sentences(inputs))


@dataclass(frozen=True)
class _SystemWords:
    """Words of sources, of the first references, and of each system's translations."""

    sources: list[Words]
    references: list[Words]
    by_system: dict[str, list[Words]]

    @staticmethod
    def split(inputs: Inputs) -> _SystemWords:
        def split(texts: Iterable[str]) -> list[Words]:
            return split_words(texts, inputs.scoring.tokenize, inputs.scoring.lowercase)

        by_system = {system.name: split(system.translations) for system in inputs.systems}
        return _SystemWords(split(inputs.sources), split(inputs.references[0]), by_system)


# Runs


def _runs_section(runs: Sequence[RunRecord]) -> Section:
    """Return the settings in which the runs differ, and their curves on dev."""
    groups = group_runs(runs)
    differing = differing_settings(groups)
    settings = Table(
        ["run", "seeds", *short_keys(differing.keys)],
        [
            [group.runs[0].folder.name, ", ".join(seeds(group.runs)), *(group.cell(key) for key in differing.keys)]
            for group in groups
        ],
        differing.left_out,
        column_notes=differing.column_notes(),
    )
    charts = []
    for tag, label in (("dev/loss", "dev loss, nats per token"), ("dev/bleu", "dev BLEU")):
        curves = [dict(run.scalars.get(tag, [])) for run in runs]
        steps = sorted({step for curve in curves for step in curve})
        if steps:
            rows = [[f"{step:,}", *(_number(curve.get(step), 3) for curve in curves)] for step in steps]
            table = Table(["update", *(run.folder.name for run in runs)], rows, [])
            charts.append(Chart(label, "", svg_of(draw_over_updates(runs, tag, label)), table))
    return Section("Runs", "Runs that differ only in their seed share a row and a line.", [settings], charts)


# Errors


def _lengths_section(inputs: Inputs, words: _SystemWords) -> Section:
    """Return the lengths of the translations, and BLEU by source length."""
    num_expected = sum(map(len, words.references))
    lengths = Table(
        ["system", "words", "of the references' words"],
        [
            [name, f"{(number := sum(map(len, texts))):,}", f"{100 * number / max(1, num_expected):.1f}%"]
            for name, texts in words.by_system.items()
        ],
        [],
    )
    by_length = {
        system.name: score_by_length(
            list(inputs.sources),
            system.translations,
            *inputs.references,
            tokenize=inputs.scoring.tokenize,
            lowercase=inputs.scoring.lowercase,
        )
        for system in inputs.systems
    }
    ranges = next(iter(by_length.values()))
    names = [f"{row.from_words}-{row.to_words}" if row.to_words else f"{row.from_words}+" for row in ranges]
    values = {name: [row.bleu for row in rows] for name, rows in by_length.items()}
    counts = [row.num_sentences for row in ranges]
    chart = _range_chart("BLEU by words of the source", "", names, counts, "sentences", values, "words", "BLEU")
    return Section("Length", "", [lengths], [chart])


def _words_section(inputs: Inputs, words: _SystemWords) -> Section:
    """Return F1 of words by their frequency in training, and of numbers, names and negations."""
    kinds: list[tuple[str, dict[str, Counts]]] = []

    def add(kind: str, by_system: dict[str, Counts | None]) -> None:
        known = {name: counts for name, counts in by_system.items() if counts is not None}
        if any(counts.produced + counts.expected for counts in known.values()):
            kinds.append((kind, known))

    references, by_system = words.references, words.by_system
    add("words with digits", {name: error_analysis.numbers(ours, references) for name, ours in by_system.items()})
    add(
        "names (capitalized words of the source)",
        {name: error_analysis.names(ours, references, words.sources) for name, ours in by_system.items()},
    )
    add(
        "sentences with a negation",
        {name: error_analysis.negation(ours, references, inputs.target_language) for name, ours in by_system.items()},
    )
    rows = [
        [
            kind,
            name,
            f"{counts.expected:,}",
            *(_number(value, 1) for value in (counts.precision, counts.recall, counts.f1)),
        ]
        for kind, known in kinds
        for name, counts in known.items()
    ]
    tables = [Table(["kind", "system", "in the references", "precision", "recall", "F1"], rows, [])] if rows else []
    charts = []
    if inputs.frequencies is not None:
        names = [_range_name(low, high) for low, high in FREQUENCY_RANGES]
        found = {
            name: error_analysis.by_frequency(ours, references, inputs.frequencies) for name, ours in by_system.items()
        }
        charts.append(
            _range_chart(
                "F1 of words by their occurrences in the training text",
                "A word counts as right if the reference of the same sentence has it.",
                names,
                [counts.expected for counts in next(iter(found.values()))],
                "words in the references",
                {name: [counts.f1 for counts in of_system] for name, of_system in found.items()},
                "occurrences in the training text",
                "F1 in percent",
            )
        )
    explanation = f"Precision, recall and F1 in percent. {_which_reference(inputs)}".rstrip()
    return Section("Words", explanation, tables, charts)


def _phrases_section(inputs: Inputs, words: _SystemWords) -> Section:
    """Return repeated phrases, copied source words, and phrases that are produced too often or too seldom."""
    surplus_rows, differences = [], []
    for name, ours in words.by_system.items():
        repeated = error_analysis.repetitions(ours, words.references)
        copied = error_analysis.copied_words(ours, words.references, words.sources)
        examples = [f"{phrase} (line {index + 1})" for index, phrase in [*repeated.items()][:NUM_EXAMPLES]]
        surplus_rows.append(
            [
                name,
                f"{len(repeated):,}",
                "; ".join(examples) or NOTHING,
                f"{copied.total():,}",
                ", ".join(word for word, _ in copied.most_common(NUM_EXAMPLES)) or NOTHING,
            ]
        )
        too_often, too_seldom = error_analysis.phrase_differences(ours, words.references)
        for kind, found_phrases in (("too often", too_often), ("too seldom", too_seldom)):
            found = [f"{one.phrase} ({one.produced:,}, {one.expected:,})" for one in found_phrases]
            differences.append([name, kind, "; ".join(found) or NOTHING])
    surplus = Table(
        ["system", "sentences that repeat a phrase", "phrases", "copied source words", "words"],
        surplus_rows,
        [
            "repeated: a phrase follows itself at once, and nothing does in the reference",
            "copied: the translation has a word of the source that no reference of any sentence has",
        ],
    )
    phrases = Table(
        ["system", "produced", "phrases of up to three words"],
        differences,
        ["in parentheses: occurrences in the translations, and in the references"],
    )
    return Section("Phrases", _which_reference(inputs), [surplus, phrases])


def _which_reference(inputs: Inputs) -> str:
    """Return a sentence that says which of several references count; empty for one."""
    return "Only the first reference of each sentence counts." if len(inputs.references) > 1 else ""


def _range_chart(
    title: str,
    explanation: str,
    ranges: Sequence[str],
    counts: Sequence[int],
    counted: str,
    values: Mapping[str, Sequence[float | None]],
    axis: str,
    label: str,
) -> Chart:
    """Return a chart with a line for each system over named ranges.

    Args:
        title, explanation: Text above it.
        ranges: Names of the ranges.
        counts: Sentences or words in each.
        counted: What they are.
        values: For each system a value for each range; None if there is none.
        axis: Label of the ranges.
        label: Label of the values.
    """
    lines = {name: [[] if value is None else [value] for value in of_system] for name, of_system in values.items()}
    rows = [
        [name, f"{count:,}", *(_number(of_system[index], 1) for of_system in values.values())]
        for index, (name, count) in enumerate(zip(ranges, counts, strict=True))
    ]
    figure = lines_figure(list(ranges), lines, axis, label)
    return Chart(title, explanation, svg_of(figure), Table(["range", counted, *values], rows, []))


def _range_name(low: int, high: int | None) -> str:
    if high is None:
        return f"{low:,}+"
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def svg_of(figure: Figure) -> str:
    """Return the figure as an SVG element whose text is text, in the color of the page around it."""
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "gnmt", "font.family": "sans-serif"}):
        svg = image_bytes(figure, "figure.svg").decode()
    svg = svg[svg.index("<svg") :].replace("#000000", "currentColor")
    return svg.replace("stroke: black", "stroke: currentColor")


# Sentences


def _sentences(inputs: Inputs) -> dict[str, Any]:
    """Return the data of the page's script.

    It holds the names of the systems and of the given segment scores, and for each sentence its texts and scores.
    """
    chrf = [
        sentence_chrf(system.translations, *inputs.references, lowercase=inputs.scoring.lowercase)
        for system in inputs.systems
    ]
    rows = []
    for index, source in enumerate(inputs.sources):
        systems = []
        for number, system in enumerate(inputs.systems):
            entry: dict[str, Any] = {
                "text": system.translations[index],
                "chrf": round(chrf[number][index], 1),
            }
            if system.scores is not None:
                entry["score"] = round(system.scores[index], 3)
            if system.segment_scores:
                entry["given"] = {name: round(scores[index], 4) for name, scores in system.segment_scores.items()}
            if system.attention is not None:
                entry["attention"] = [[round(100 * weight) for weight in row] for row in system.attention[index]]
            if system.word_log_probs is not None:
                log_probs = system.word_log_probs[index]
                entry["probabilities"] = [round(math.exp(min(log_prob, 0.0)), 2) for log_prob in log_probs]
            systems.append(entry)
        rows.append(
            {
                "line": index + 1,
                "source": source,
                "references": [of_set[index] for of_set in inputs.references],
                "systems": systems,
            }
        )
    return {
        "systems": [system.name for system in inputs.systems],
        "scores": list(inputs.systems[0].segment_scores),
        "rows": rows,
    }


# Read


def read_inputs(cfg: ReportConfig) -> Inputs:
    """Read everything that a report needs; raises InputError if a path cannot be read or the texts do not fit."""
    targets = path_list(cfg.target or [])
    score_files = read_score_files(cfg.scores)
    systems = with_segment_scores(read_systems(path_list(cfg.systems), targets, cfg.test_set), score_files)
    references = choose_references(systems, targets)
    scoring = choose_scoring(systems, cfg.metrics, cfg.bleu_tokenize, cfg.lowercase)
    folders = [system.run for system in systems if system.run is not None]
    runs = read_runs(folders)[0] if folders else []
    languages = [run.config["data"].get("target_language") for run in runs if "data" in run.config]
    language = cfg.target_language or next((language for language in languages if language), "")
    if not error_analysis.knows_negations(language):
        known = ", ".join(error_analysis.NEGATION_LANGUAGES)
        if cfg.target_language is not None:
            raise InputError(f"target_language: found {language}, allowed are {known}, whose negations are known")
        log.warning(
            "no accuracy of negations: the target language is %s; target_language= may be one of %s",
            language or "not known",
            known,
        )
    # Everything is read before the tests of significance, which take most of the time.
    sources = choose_sources(systems, cfg.source)
    frequencies = word_frequencies(cfg.training_text, folders, scoring)
    return Inputs(
        systems,
        sources,
        references,
        scoring,
        compare_systems(
            systems, references, scoring, test=cast(Test, cfg.test), num_samples=cfg.num_samples, seed=cfg.seed
        ),
        compare_seeds(systems, references, scoring),
        runs,
        language,
        frequencies,
    )


def word_frequencies(training_text: str | None, runs: Sequence[Path], scoring: Scoring) -> Mapping[str, int] | None:
    """Return the occurrences of each word in the target side of the training text.

    Args:
        training_text: Path of the text; None for that of the first run, from the preprocessed folder that its best.pt
            records.
        runs: Run folders.
        scoring: How words are split.

    Returns:
        The numbers, or None, with a warning, if there is no text.
    """
    if training_text is not None:
        texts: Iterable[str] = read_text_lines(training_text)
    elif runs:
        try:
            store = read_preprocessed(read_checkpoint(runs[0] / "best.pt")["preprocessed_folder"]).store
        except InputError as error:
            log.warning("no F1 by word frequency: %s; training_text= names the text", error)
            return None
        texts = (store.target_text(pair) for pair in range(len(store)))
    else:
        log.warning("no F1 by word frequency: training_text= names the target side of the training text")
        return None
    return Counter(word for words in split_words(texts, scoring.tokenize, scoring.lowercase) for word in words)
