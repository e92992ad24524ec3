"""The root keys of every command's config, with their types.

The metadata of a key holds what a type cannot express: a range, choices, a pattern, or the class of a component. Keys
inside a component have no schema here; their ranges and choices are annotations of its constructor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from gnmt.config.validate import BatchSize, BeamSize, Probability, Range, Seed


def choice(*choices: str) -> dict[str, Any]:
    """Return the metadata of a text that must be one of the choices."""
    return {"choices": lambda: choices}


def component(kind: str, *supplied: str, partial: bool = False, unless: str | None = None) -> dict[str, Any]:
    """Return the metadata of a component, a node with `_target_` and the keywords of its class.

    Args:
        kind: The dotted name of the class that the target must be or derive from.
        supplied: Keywords that the program gives itself.
        partial: Also allow a node without `_target_`, which replaces single options of `kind`.
        unless: A root key; if it is not null, the node is checked later, when the program has completed it.
    """
    return {"component": kind, "supplied": supplied, "partial": partial, "unless": unless}


def typed(hint: Any) -> dict[str, Any]:
    """Return the metadata of a value that is checked against an annotation.

    For OmegaConf such a field is Any. It would convert other values without a word: 3.7 to 3, and 3 to true.
    """
    return {"hint": hint}


# gnmt.device imports torch, which takes a second: too long for --help and --cfg job.


def _precisions() -> tuple[str, ...]:
    from gnmt.device import PRECISIONS

    return PRECISIONS


def _search_precisions() -> tuple[str, ...]:
    from gnmt.device import SEARCH_PRECISIONS

    return SEARCH_PRECISIONS


PRECISION = {"choices": _precisions}
SEARCH_PRECISION = {"choices": _search_precisions}
RECORDED_OR_SEARCH_PRECISION = {"choices": lambda: ("recorded", *_search_precisions())}
DEVICE = {"pattern": r"auto|cpu|cuda(:\d+)?", "allowed": "auto, cpu, cuda or cuda:N"}
PATHS = {"paths": True, "optional": False}
OPTIONAL_PATHS = {"paths": True, "optional": True}
SCORE_FILES = typed(str | list[str] | dict[str, str | list[str]] | None)
CORPUS = component("gnmt.data.corpora.Corpus")
TOKENIZER = component("gnmt.data.tokenizer.TokenizerSource")
SEARCH = "gnmt.decoding.options.SearchOptions"


@dataclass
class TrainConfig:
    """Root keys of scripts/train.py."""

    name: str | None = MISSING
    runs: str = MISSING
    seed: Any = field(default=MISSING, metadata=typed(Seed))
    device: str = field(default=MISSING, metadata=DEVICE)
    precision: str = field(default=MISSING, metadata=PRECISION)
    resume: str = field(default=MISSING, metadata=choice("auto", "never"))
    initialize_from: str | None = MISSING
    from_run: str | None = MISSING
    deterministic: Any = field(default=MISSING, metadata=typed(bool))
    onednn_cache_capacity: Any = field(default=MISSING, metadata=typed(Annotated[int, Range(1, 2**31 - 1)] | None))
    trusted_packages: list[str] = MISSING
    data: Any = field(default=MISSING, metadata=CORPUS)
    tokenizer: Any = field(default=MISSING, metadata=TOKENIZER)
    model: Any = field(
        default=MISSING,
        metadata=component(
            "gnmt.model.seq2seq.Seq2Seq", "source_vocabulary_size", "target_vocabulary_size", unless="initialize_from"
        ),
    )
    objective: Any = field(default=MISSING, metadata=component("gnmt.training.objective.ObjectiveOptions"))
    loss: Any = field(
        default=MISSING,
        metadata=component("gnmt.training.objective.LabelSmoothedCrossEntropy", "vocabulary_size", "never_produced"),
    )
    optimizer: Any = field(default=MISSING, metadata=component("torch.optim.Optimizer", "params"))
    schedule: Any = field(default=MISSING, metadata=component("gnmt.training.schedule.Schedule"))
    trainer: Any = field(default=MISSING, metadata=component("gnmt.training.trainer.TrainerOptions"))
    decoding: Any = field(default=MISSING, metadata=component(SEARCH))


@dataclass
class PrepareConfig:
    """Root keys of scripts/prepare.py."""

    initialize_from: str | None = MISSING
    data: Any = field(default=MISSING, metadata=CORPUS)
    tokenizer: Any = field(default=MISSING, metadata=TOKENIZER)
    overwrite: Any = field(default=MISSING, metadata=typed(bool))
    verify: Any = field(default=MISSING, metadata=typed(bool))
    text_folder: str | None = MISSING
    trusted_packages: list[str] = MISSING


@dataclass
class TranslatorConfig:
    """Root keys of every command that loads a translator, see gnmt.decoding.translator."""

    checkpoint: Any = field(default=MISSING, metadata=PATHS)
    ensemble: str = field(default=MISSING, metadata=choice("log_probs", "probabilities"))
    target_language: str | None = MISSING
    max_source_tokens: Any = field(default=MISSING, metadata=typed(Annotated[int, Range(2)]))
    device: str = field(default=MISSING, metadata=DEVICE)
    precision: str = field(default=MISSING, metadata=SEARCH_PRECISION)
    trusted_packages: list[str] = MISSING
    decoding: Any = field(default=MISSING, metadata=component(SEARCH, partial=True))


@dataclass
class EvaluatedConfig(TranslatorConfig):
    """Root keys of the commands that translate and score a test set."""

    test_set: str | None = MISSING
    source: str | None = MISSING
    target: Any = field(default=MISSING, metadata=OPTIONAL_PATHS)
    pairs: str | None = MISSING
    columns: list[str] = MISSING
    data_folder: str | None = MISSING
    output: str | None = MISSING
    bleu_tokenize: str | None = MISSING
    lowercase: Any = field(default=MISSING, metadata=typed(bool))
    replace_unknown: str = field(default=MISSING, metadata=choice("none", "copy"))
    weights: str = field(default=MISSING, metadata=choice("averaged", "raw"))
    batch_size: Any = field(default=MISSING, metadata=typed(BatchSize | None))
    precision: str = field(default=MISSING, metadata=RECORDED_OR_SEARCH_PRECISION)


@dataclass
class EvaluateConfig(EvaluatedConfig):
    """Root keys of scripts/evaluate.py."""

    num_alignments: Any = field(default=MISSING, metadata=typed(Annotated[int, Range(0)]))


@dataclass
class TuneDecodingConfig(EvaluatedConfig):
    """Root keys of scripts/tune_decoding.py."""

    grid: Any = field(default=MISSING, metadata=typed(dict[str, list[Any] | None]))
    metric: str = field(default=MISSING, metadata=choice("bleu", "chrf"))


@dataclass
class TranslateConfig(TranslatorConfig):
    """Root keys of scripts/translate.py."""

    input: Any = field(default=MISSING, metadata=PATHS)
    output: str = MISSING
    output_folder: str | None = MISSING
    prefixes: str | None = MISSING
    format: str = field(default=MISSING, metadata=choice("text", "tsv", "jsonl", "pairs"))
    alignments: Any = field(default=MISSING, metadata=typed(bool))
    word_attention: Any = field(default=MISSING, metadata=typed(bool))
    replace_unknown: str = field(default=MISSING, metadata=choice("none", "copy"))
    num_alignments: Any = field(default=MISSING, metadata=typed(Annotated[int, Range(0)]))
    resume: str = field(default=MISSING, metadata=choice("auto", "never"))
    batch_size: Any = field(default=MISSING, metadata=typed(BatchSize))


@dataclass
class ScoreConfig(TranslatorConfig):
    """Root keys of scripts/score.py."""

    source: str | None = MISSING
    target: str | None = MISSING
    pairs: str | None = MISSING
    columns: list[str] = MISSING
    input: str | None = MISSING
    output: str = MISSING
    format: str = field(default=MISSING, metadata=choice("jsonl", "tsv"))
    alignments: Any = field(default=MISSING, metadata=typed(bool))
    word_attention: Any = field(default=MISSING, metadata=typed(bool))
    batch_size: Any = field(default=MISSING, metadata=typed(BatchSize))


@dataclass
class InspectConfig:
    """Root keys of scripts/inspect_checkpoint.py."""

    checkpoint: str = MISSING
    format: str = field(default=MISSING, metadata=choice("text", "json"))


@dataclass
class AverageConfig:
    """Root keys of scripts/average_checkpoints.py."""

    checkpoints: list[str] = MISSING
    run: str | None = MISSING
    last: Any = field(default=MISSING, metadata=typed(Annotated[int, Range(1)]))
    output: str = MISSING


@dataclass
class ImportConfig:
    """Root keys of scripts/import_checkpoint.py."""

    source: str = field(default=MISSING, metadata=choice("nvidia_gnmt", "safetensors"))
    checkpoint: str = MISSING
    output: str = MISSING
    trusted_packages: list[str] = MISSING


@dataclass
class ExportConfig:
    """Root keys of scripts/export_checkpoint.py."""

    checkpoint: str = MISSING
    output: str = MISSING


@dataclass
class CompareConfig:
    """Root keys of scripts/compare.py."""

    runs: Any = field(default=MISSING, metadata=PATHS)
    sort: str | None = MISSING
    columns: list[str] | None = MISSING
    filter: list[str] = MISSING
    scores: Any = field(default=MISSING, metadata=SCORE_FILES)
    by_length: Any = field(default=MISSING, metadata=typed(bool))
    figure: str | None = MISSING
    plots: str | None = MISSING
    gradient_updates: Any = field(default=MISSING, metadata=typed(Annotated[int, Range(1)]))
    format: str = field(default=MISSING, metadata=choice("markdown", "tsv"))


@dataclass
class SystemsConfig:
    """Root keys of the commands that compare systems on one test set."""

    systems: Any = field(default=MISSING, metadata=PATHS)
    test_set: str | None = MISSING
    target: Any = field(default=MISSING, metadata=OPTIONAL_PATHS)
    metrics: Any = field(default=MISSING, metadata=typed(list[Literal["bleu", "chrf", "chrfpp", "ter", "gleu"]]))
    scores: Any = field(default=MISSING, metadata=SCORE_FILES)
    test: str = field(default=MISSING, metadata=choice("bootstrap", "randomization"))
    num_samples: Any = field(default=MISSING, metadata=typed(Annotated[int, Range(1)] | None))
    bleu_tokenize: str | None = MISSING
    lowercase: Any = field(default=MISSING, metadata=typed(bool | None))
    seed: Any = field(default=MISSING, metadata=typed(Seed))


@dataclass
class SignificanceConfig(SystemsConfig):
    """Root keys of scripts/significance.py."""

    format: str = field(default=MISSING, metadata=choice("markdown", "tsv"))


@dataclass
class ReportConfig(SystemsConfig):
    """Root keys of scripts/report.py."""

    source: str | None = MISSING
    target_language: str | None = MISSING
    training_text: str | None = MISSING
    title: str = MISSING
    output: str = MISSING


@dataclass
class BenchmarkConfig:
    """Root keys of scripts/benchmark.py."""

    task: str = field(default=MISSING, metadata=choice("decoding", "training", "length"))
    sizes: list[str] = MISSING
    lengths: list[str] = MISSING
    precisions: list[str] = MISSING
    num_batches: Any = field(default=MISSING, metadata=typed(Annotated[int, Range(1)]))
    checkpoint: str | None = MISSING
    beams: Any = field(default=MISSING, metadata=typed(list[BeamSize]))
    batch_sizes: Any = field(default=MISSING, metadata=typed(list[BatchSize]))
    source_tokens: Any = field(default=MISSING, metadata=typed(Annotated[int, Range(2)]))
    dropout: Any = field(default=MISSING, metadata=typed(Probability))
    sentence_tokens: Any = field(default=MISSING, metadata=typed(list[Annotated[int, Range(2)]]))
    batch_tokens: Any = field(default=MISSING, metadata=typed(Annotated[int, Range(4)]))
    repetitions: Any = field(default=MISSING, metadata=typed(Annotated[int, Range(1)]))
    triton: Any = field(default=MISSING, metadata=typed(bool))
    memory: Any = field(default=MISSING, metadata=typed(bool))
    profile: str | None = MISSING
    output: str | None = MISSING
    seed: Any = field(default=MISSING, metadata=typed(Seed))
    device: str = field(default=MISSING, metadata=DEVICE)
    trusted_packages: list[str] = MISSING


SCHEMAS = {
    "train": TrainConfig,
    "prepare": PrepareConfig,
    "evaluate": EvaluateConfig,
    "tune_decoding": TuneDecodingConfig,
    "translate": TranslateConfig,
    "score": ScoreConfig,
    "inspect_checkpoint": InspectConfig,
    "average_checkpoints": AverageConfig,
    "import_checkpoint": ImportConfig,
    "export_checkpoint": ExportConfig,
    "compare": CompareConfig,
    "significance": SignificanceConfig,
    "report": ReportConfig,
    "benchmark": BenchmarkConfig,
}

for _name, _schema in SCHEMAS.items():
    ConfigStore.instance().store(group="schema", name=_name, node=_schema, package="_global_")
