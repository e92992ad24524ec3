"""Train one model, from a checked config to best.pt.

`train` performs the whole run: resolve the config, find the checkpoint to resume from, preprocess the data, build the
model and the trainer, fit, and summarize. Its helper functions follow in the order in which it calls them. The training
loop is in `gnmt.training.trainer`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from gnmt.checkpoint.file import (
    REQUIRED_ENTRIES,
    UnreadableCheckpointError,
    git_revision,
    read_checkpoint,
    software_versions,
)
from gnmt.checkpoint.load import build_model, check_entries, load_weights, read_description
from gnmt.config.build import build, resolve
from gnmt.config.run_folder import CONFIG, OVERRIDES, changed_settings, locked_run_folder
from gnmt.data.batching import BatchStream, LoaderState, Prefetcher
from gnmt.data.corpora import Corpus, FilesCorpus, bleu_tokenizer
from gnmt.data.preprocess import preprocess
from gnmt.data.store import PreprocessedData
from gnmt.data.tokenizer import Tokenizers, TokenizerSource
from gnmt.decoding.scoring import check_coverage
from gnmt.device import (
    Precision,
    choose_device,
    choose_precision,
    deterministic_kernels,
    is_out_of_memory,
    return_freed_memory,
    set_onednn_cache_capacity,
)
from gnmt.distributed import Ranks, current_ranks, ending_together
from gnmt.errors import InputError, first_line, flatten, format_count, format_value
from gnmt.evaluation.metrics import check_tokenizer
from gnmt.fileio import json_bytes, write_atomically
from gnmt.model.seq2seq import Seq2Seq
from gnmt.model.validate import check_shared_vocabulary
from gnmt.reporting.tensorboard import Reporter
from gnmt.signals import explain_interrupts
from gnmt.training.data_parallel import DataParallel
from gnmt.training.dev_evaluation import MAX_PAIR_TOKENS, DevEvaluator
from gnmt.training.expected_reward import ExpectedRewardOptions
from gnmt.training.initial_checkpoint import InitialCheckpoint, read_initial_checkpoint
from gnmt.training.memory import choose_microbatch_tokens, estimate_state_bytes, measure_activation_bytes
from gnmt.training.objective import ObjectiveOptions
from gnmt.training.optimizer import MakeOptimizer, build_stages
from gnmt.training.recommendation import recommended_overrides
from gnmt.training.rewards import WORD_REWARDS
from gnmt.training.run_checkpoints import RunCheckpoints, is_writing
from gnmt.training.train_metrics import UPDATE_RATIO_TAG, BestMetric, TrainState
from gnmt.training.trainer import Trainer, TrainerOptions

log = logging.getLogger(__name__)

TRAINING_ENTRIES = (
    "optimizer",
    "scaler",
    "skipped_in_a_row",
    "average",
    "best_metric",
    "evaluations",
    "evaluation_due",
    "tokens_seen",
    "tokens_at_evaluations",
    "metrics",
    "microbatch_tokens",
    "loader_state",
    "rng",
)
"""The entries that a full checkpoint has besides REQUIRED_ENTRIES."""

TRIAL_VOCABULARY_SIZE = 1000
"""Vocabulary size of the model that is built to check the config, before the data gives the real size."""


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of a run.

    Args:
        folder: The run folder.
        steps: Number of updates done in the whole run.
        best: Dev metrics of the best evaluation by their TensorBoard tags, such as `dev/bleu`.
        best_step: The update after which they were measured.
    """

    folder: Path
    steps: int
    best: dict[str, float]
    best_step: int


def train(cfg: Any, folder: Path, overrides: Sequence[str] | None = None) -> TrainingResult:
    """Train a model with a checked config, or resume the run in the folder.

    With torchrun, all processes train one model together. Only rank 0 writes files, every rank returns the result, and
    an error on one rank stops all of them.

    Args:
        cfg: The composed and checked config.
        folder: The run folder; created if it is missing.
        overrides: Those that the config was composed with, which are recorded for from_run; None records nothing. With
            initialize_from, only they change settings of the checkpoint's model.

    Raises:
        InputError: The config, the data or a checkpoint is wrong, or the final checkpoint could not be written.
        Interrupted: A signal stopped the run. The state is saved if an update was made.
    """
    with explain_interrupts(lambda: bool(RunCheckpoints(folder, keep=1).full())), ExitStack() as stack:
        set_onednn_cache_capacity(cfg.onednn_cache_capacity)
        ranks = current_ranks()
        stack.enter_context(deterministic_kernels(cfg.deterministic))
        stack.enter_context(ending_together(ranks, is_writing))

        # Resume from the newest checkpoint, or start from scratch or from the checkpoint of initialize_from.
        if ranks.is_rank_0:
            stack.enter_context(locked_run_folder(folder))
        saved = find_saved_state(ranks, RunCheckpoints(folder, keep=1), cfg.resume)
        initial = find_initial_checkpoint(cfg, saved, folder)
        if initial is not None:
            cfg = initial.with_its_settings(cfg, overrides or ())

        # Resolve the config and check it before any data is read.
        config = resolve(cfg)
        options: TrainerOptions = build(cfg.trainer)
        checkpoints = RunCheckpoints(folder, options.keep_checkpoints)
        precision = choose_precision(cfg.precision, choose_device(ranks.local_device_name(cfg.device)))
        if saved is not None:
            check_same_settings(folder, saved, config)
            if saved["precision"] != precision.name:
                log.warning("the run was trained in %s and resumes in %s", saved["precision"], precision.name)
        elif ranks.is_rank_0:
            check_leftover_best(checkpoints, config)
        if initial is not None:
            initial.check_overrides(config)
        check_bleu_tokenizers(build(config["data"]))
        check_optimizers(config, options)
        check_objective(config, given=initial is not None)
        check_model(config)

        # Preprocess the data, and build the model and the trainer.
        if ranks.is_rank_0:
            checkpoints.check_folder()
            checkpoints.remove_leftovers()
        tokenizers = build(cfg.tokenizer) if initial is None else initial.tokenizer_source
        preprocessed = preprocess_on_rank_0(ranks, build(cfg.data), tokenizers)
        if saved is not None:
            check_same_data(folder, saved, preprocessed)
        torch.manual_seed(cfg.seed)
        model = build_model(config["model"], preprocessed.tokenizers, tuple(cfg.trusted_packages), "the config")
        check_learned_positions(model, preprocessed, given=initial is not None)
        if initial is not None and saved is None:
            load_weights(model, initial.contents, initial.origin)
            log.info("initial weights: update %d of %s", initial.contents["step"], cfg.initialize_from)
            if ranks.is_rank_0:
                initial.warn_of_other_languages(config)
        model.to(precision.device)
        return_freed_memory(sum(parameter.numel() for parameter in model.parameters()), precision.device)
        # From scratch, purge all curves: a run that was killed before its first checkpoint may have left some.
        purge_step = 0 if saved is None else saved["step"] + 1
        with ranks.process_group(precision.device), Reporter(folder, purge_step) as reporter:
            trainer = build_trainer(
                config=config,
                options=options,
                model=model,
                preprocessed=preprocessed,
                loader_state=LoaderState() if saved is None else LoaderState(*saved["loader_state"]),
                precision=precision,
                checkpoints=checkpoints,
                reporter=reporter,
                unused_target_ids=choose_unused_target_ids(
                    preprocessed, options, saved, None if initial is None else initial.contents
                ),
                ranks=ranks,
            )
            if saved is not None:
                restore(trainer, saved, folder)
                tell_of_changed_schedule(trainer, saved, config)
            elif initial is not None:
                trainer.state.evaluation_due = True  # the run keeps the initial weights if no update improves them
            if options.microbatch_tokens == "auto" and not trainer.finished():
                choose_microbatch_tokens(trainer)

            fit(trainer, preprocessed, folder, config, overrides)
            best, best_step = ranks.from_rank_0((trainer.state.best, trainer.state.best_step))
            result = TrainingResult(folder, trainer.state.step, best, best_step)
        del trainer  # frees the process group, whose threads must end before the barrier at exit
        return result


# Check the config before preprocessing, which may take hours


def check_bleu_tokenizers(corpus: Corpus) -> None:
    """Raise InputError if sacreBLEU cannot tokenize a target language of the corpus."""
    for name in bleu_tokenizers(corpus):
        check_tokenizer(name)


def bleu_tokenizers(corpus: Corpus) -> list[str]:
    """Return the different tokenizations of BLEU for the target languages of a corpus."""
    languages = corpus.target_languages or (corpus.target_language,)
    return sorted({bleu_tokenizer(corpus.bleu_tokenize, language) for language in languages})


def check_optimizers(config: dict[str, Any], options: TrainerOptions) -> None:
    """Raise InputError for values that only the optimizer's constructor checks, such as a negative momentum."""
    makers: dict[str, MakeOptimizer] = {"optimizer": partial(build, config["optimizer"])}
    for index, stage in enumerate(options.stages or ()):
        if stage.optimizer is not None:
            makers[f"trainer.stages.{index}.optimizer"] = stage.optimizer
    for key, make in makers.items():
        try:
            make(params=[torch.nn.Parameter(torch.zeros(1))])
        except (ValueError, RuntimeError, TypeError) as error:
            raise InputError(f"{key}: {error}") from None


def check_objective(config: Mapping[str, Any], *, given: bool) -> None:
    """Raise InputError if the objective does not fit the rest of the config.

    Args:
        config: The resolved config.
        given: Whether a checkpoint brings the weights.
    """
    objective: ObjectiveOptions = build(config["objective"])
    name = type(objective).__name__.removesuffix("Options")
    if objective.needs_trained_model and not given:
        raise InputError(
            f"objective: {name} refines a trained model, and initialize_from is null: train with "
            "objective=maximum_likelihood first, and give the checkpoint as initialize_from=runs/.../best.pt"
        )
    alpha = config["trainer"]["subword_regularization"]
    if alpha and isinstance(objective, ExpectedRewardOptions) and objective.reward == "subword_gleu":
        raise InputError(
            f"objective.reward is subword_gleu, and trainer.subword_regularization={alpha} splits the references "
            "into other subwords each time: set trainer.subword_regularization=0, or objective.reward=word_gleu"
        )
    tokenizations = bleu_tokenizers(build(config["data"]))
    if len(tokenizations) > 1 and isinstance(objective, ExpectedRewardOptions) and objective.reward in WORD_REWARDS:
        raise InputError(
            f"objective.reward is {objective.reward}, which splits text into words, and the target languages of data "
            f"need several tokenizations ({', '.join(tokenizations)}): set objective.reward=subword_gleu or chrf, or "
            "one data.bleu_tokenize for all"
        )


def check_model(config: Mapping[str, Any]) -> None:
    """Raise InputError if the parts of the model do not fit each other, the tokenizers or the search options."""
    # `build_model` repeats this check with the tokenizers themselves, which tokenizer=existing reads only later.
    check_shared_vocabulary(config["model"], joint=config["tokenizer"].get("joint") is not False)
    model = build_on_meta_device(config["model"], TRIAL_VOCABULARY_SIZE, TRIAL_VOCABULARY_SIZE)
    if model is not None:
        check_coverage(build(config["decoding"]), model.decoder.has_attention)


def build_on_meta_device(
    node: Mapping[str, Any], source_vocabulary_size: int, target_vocabulary_size: int
) -> Seq2Seq | None:
    """Build the model on the meta device, without memory for its weights.

    Returns:
        The model, or None if a component from outside gnmt cannot be built on the meta device. Such a model is checked
        only when it is built on the real device.
    """
    sizes = {"source_vocabulary_size": source_vocabulary_size, "target_vocabulary_size": target_vocabulary_size}
    try:
        with torch.device("meta"):
            model: Seq2Seq = build(node, **sizes)
    except InputError:
        raise
    except Exception:
        return None
    return model


# Resume, or start from the weights of another run


def find_saved_state(ranks: Ranks, checkpoints: RunCheckpoints, resume: str) -> dict[str, Any] | None:
    """Return the contents of the full checkpoint to resume from, or None to start from scratch.

    Rank 0 chooses the file and the other ranks read the same one. If each rank chose, they might choose differently.
    The entries `best` and `best_step` are those of the best.pt that exists, see `find_best`.

    Args:
        ranks: The processes of this job.
        checkpoints: The checkpoint files of the run folder.
        resume: `auto` or `never`; `never` refuses a folder that holds a run.
    """
    if not ranks.is_rank_0:
        chosen = ranks.wait_for_rank_0()
        if not chosen:
            return None
        step, best = json.loads(chosen)
        return {**read_checkpoint(checkpoints.path_of(step)), **best}
    folder = checkpoints.folder.parent
    if resume == "never" and (checkpoints.full() or checkpoints.best.exists()):
        raise InputError(f"{folder} already holds a run and resume=never: choose another name=..., or set resume=auto")
    saved = checkpoints.newest(check_full_checkpoint)
    if saved is None:
        ranks.wait_for_rank_0()
        return None
    best = find_best(checkpoints, saved)
    ranks.wait_for_rank_0(json.dumps([saved["step"], best]))
    return {**saved, **best}


def check_full_checkpoint(contents: Mapping[str, Any], origin: str) -> None:
    """Raise InputError if a run cannot resume from a checkpoint, because an entry is missing or malformed.

    The states of optimizer, metrics and random generators are checked when they are loaded, see `restore`.

    Args:
        contents: All entries of the checkpoint.
        origin: Its name in errors.
    """
    if missing := [entry for entry in (*REQUIRED_ENTRIES, *TRAINING_ENTRIES) if entry not in contents]:
        raise InputError(f"{origin} is no full checkpoint: it lacks {', '.join(missing)}")
    read_description(contents, origin)
    state = TrainState.from_checkpoint(contents)
    evaluations, loader_state = state.evaluations, contents["loader_state"]
    for entry, is_valid in (
        ("best_metric", state.best_metric in get_args(BestMetric)),
        ("evaluation_due", isinstance(state.evaluation_due, bool)),
        ("evaluations", isinstance(evaluations, list) and all(map(is_evaluation, evaluations))),
        ("tokens_seen", isinstance(state.tokens_seen, int)),
        ("tokens_at_evaluations", is_token_counts(state.tokens_at_evaluations, evaluations)),
        ("microbatch_tokens", is_microbatch_tokens(contents["microbatch_tokens"])),
        ("loader_state", isinstance(loader_state, tuple) and [*map(type, loader_state)] == [int] * len(LoaderState())),
    ):
        if not is_valid:
            raise InputError(f"{origin}: {entry} is malformed: {format_value(contents[entry])}")


def is_microbatch_tokens(value: object) -> bool:
    """Return whether a value is the entry `microbatch_tokens` of a checkpoint; only runs with auto have a number."""
    return value is None or (type(value) is int and value > 0)


def is_evaluation(value: object) -> bool:
    """Return whether a value is an entry of `TrainState.evaluations`: a step and the metrics by tag."""
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and isinstance(value[0], int)
        and isinstance(value[1], dict)
        and all(isinstance(value[1].get(tag), float) for tag in get_args(BestMetric))
    )


def is_token_counts(value: object, evaluations: Sequence[tuple[int, Any]]) -> bool:
    """Return whether a value is `TrainState.tokens_at_evaluations`: the number of tokens at each evaluation."""
    return (
        isinstance(value, dict)
        and all(isinstance(number, int) for item in value.items() for number in item)
        and all(step in value for step, _ in evaluations)
    )


def restore(trainer: Trainer, saved: Mapping[str, Any], folder: Path) -> None:
    """Restore the state of a full checkpoint; raises InputError if it does not fit the run."""
    try:
        trainer.restore(dict(saved))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        if isinstance(error, InputError) or is_out_of_memory(error):
            raise
        raise InputError(
            f"{folder}: the checkpoint of update {saved['step']} does not fit this run "
            f"({type(error).__name__}: {first_line(error)}): move it away, and the same command resumes from the one "
            "before"
        ) from error


def check_leftover_best(checkpoints: RunCheckpoints, config: dict[str, Any]) -> None:
    """Check best.pt of a run that was killed after its first evaluation and before its first full checkpoint.

    Such a run starts from scratch. Raises InputError if best.pt is of a run with other settings.
    """
    if not checkpoints.best.exists():
        return
    folder = checkpoints.best.parent
    contents = read_checkpoint(checkpoints.best, REQUIRED_ENTRIES)
    if changed_settings(read_description(contents, f"checkpoint {checkpoints.best}")[0], config):
        raise InputError(
            f"{folder} holds best.pt of a run with other settings and no checkpoint to resume from, so a new run "
            "would overwrite it: choose another name=..., or move best.pt away"
        )
    log.warning("%s holds no checkpoint to resume from: the run starts from scratch", folder)


def find_best(checkpoints: RunCheckpoints, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries `best` and `best_step` of best.pt; they are empty and 0 if best.pt is missing or damaged.

    best.pt may be newer than the full checkpoint: a run that was killed had evaluated after it. Without a usable
    best.pt, the next evaluation writes one.

    Raises UnreadableCheckpointError if best.pt cannot be read now but may be intact.
    """
    nothing: dict[str, Any] = {"best": {}, "best_step": 0}
    if not checkpoints.best.exists():
        if saved["best"]:
            log.warning(
                "%s is missing, which held the weights of update %d: the next evaluation writes it again, and later "
                "ones replace it if they are better",
                checkpoints.best,
                saved["best_step"],
            )
        return nothing
    try:
        contents = read_checkpoint(checkpoints.best, REQUIRED_ENTRIES)
        check_entries(contents, f"checkpoint {checkpoints.best}")
    except UnreadableCheckpointError as error:
        raise UnreadableCheckpointError(
            f"{error}; it may be intact, and this run would replace it: give the same command again when the file can "
            "be read, or move it away"
        ) from None
    except InputError as error:
        log.warning("%s; the next evaluation writes it again, and later ones replace it if they are better", error)
        return nothing
    return {entry: contents[entry] for entry in nothing}


def check_same_settings(folder: Path, saved: Mapping[str, Any], config: dict[str, Any]) -> None:
    """Raise InputError, with a diff, if the config changes a setting that a resumed run must keep."""
    changes = changed_settings(json.loads(saved["config"]), config)
    if changes:
        raise InputError(
            f"{folder} holds a run with other settings:\n  " + "\n  ".join(changes) + "\n"
            "Restore these settings to resume it, or start a new run under another name: name=..."
        )


def check_same_data(folder: Path, saved: Mapping[str, Any], preprocessed: PreprocessedData) -> None:
    """Raise InputError if the preprocessed data is not the data that the run was trained on."""
    if saved["data_fingerprint"] == preprocessed.fingerprint:
        return
    different = "text"
    if Tokenizers.from_checkpoint(saved["tokenizers"]).digest != preprocessed.tokenizers.digest:
        different = "text and tokenizers"
    raise InputError(
        f"{folder} was trained on other {different} than {preprocessed.folder} holds: set data.preprocessed=FOLDER to "
        "the data of this run, or start a new run under another name: name=..."
    )


def find_initial_checkpoint(cfg: Any, saved: Mapping[str, Any] | None, folder: Path) -> InitialCheckpoint | None:
    """Return the checkpoint that brings model and tokenizers, or None if the config says what they are.

    A run that started from another checkpoint and resumes takes them from its own: the other one may be gone.

    Args:
        cfg: The composed config.
        saved: Contents of the checkpoint from which the run resumes.
        folder: The run folder.
    """
    if saved is None:
        if cfg.initialize_from is None:
            return None
        return read_initial_checkpoint(cfg.initialize_from, cfg.trusted_packages)
    if cfg.initialize_from is None and json.loads(saved["config"]).get("initialize_from") is None:
        return None
    return InitialCheckpoint.of(saved, str(folder), cfg.trusted_packages)


# Build the data, the model and the trainer


def preprocess_on_rank_0(ranks: Ranks, corpus: Corpus, tokenizers: TokenizerSource) -> PreprocessedData:
    """Return the preprocessed data. Rank 0 preprocesses, and the other ranks open the finished folder."""
    if ranks.is_rank_0:
        preprocessed = preprocess(corpus, tokenizers)
    ranks.wait_for_rank_0()
    return preprocessed if ranks.is_rank_0 else preprocess(corpus, tokenizers)


def check_learned_positions(model: Seq2Seq, preprocessed: PreprocessedData, *, given: bool = False) -> None:
    """Raise InputError if a training pair has more tokens than the model has learned positions.

    Subword regularization may still make a sentence longer; `gnmt.model.layers.Positions` then raises InputError.

    Args:
        model: The model.
        preprocessed: The data.
        given: Whether a checkpoint brings the model, so that it cannot change.
    """
    for side, key, limit, lengths in (
        ("source", "model.encoder.learned_positions", model.encoder.max_tokens, preprocessed.store.source_lengths),
        ("target", "model.decoder.learned_positions", model.decoder.max_tokens, preprocessed.store.target_lengths),
    ):
        if limit is None:
            continue  # reading all lengths of a large corpus takes time
        longest = int(lengths.max(initial=0)) + 1
        if longest > limit:
            enlarge = "" if given else f"use {key}={longest} or more, or "
            raise InputError(
                f"{key} is {limit}, but the longest {side} of {preprocessed.folder} has {longest} tokens with EOS: "
                f"{enlarge}drop longer pairs (data.cleaning.max_length_tokens={limit})"
            )


def choose_unused_target_ids(
    preprocessed: PreprocessedData,
    options: TrainerOptions,
    saved: Mapping[str, Any] | None,
    initial: Mapping[str, Any] | None,
) -> list[int]:
    """Return the target ids that no training sentence holds, which search suppresses.

    A resumed run keeps the ids of its first start. A run that starts from other weights suppresses only ids that the
    other run had not seen either. With subword regularization every id can occur.

    Args:
        preprocessed: The data of this run.
        options: Options of the trainer.
        saved: Contents of the checkpoint from which the run resumes.
        initial: Contents of the checkpoint of initialize_from.
    """
    if saved is not None:
        return list(saved["unused_target_ids"])
    if options.subword_regularization:
        return []
    if initial is None:
        return preprocessed.unused_target_ids
    return sorted({*preprocessed.unused_target_ids} & {*initial["unused_target_ids"]})


def build_trainer(
    *,
    config: dict[str, Any],
    options: TrainerOptions,
    model: Seq2Seq,
    preprocessed: PreprocessedData,
    loader_state: LoaderState,
    precision: Precision,
    checkpoints: RunCheckpoints,
    reporter: Reporter,
    unused_target_ids: Sequence[int],
    ranks: Ranks,
) -> Trainer:
    """Build the loss, the batches, the dev evaluation and the optimizer stages, and the trainer that uses them.

    Args:
        config: The resolved config.
        options: Options of the trainer, built from the config.
        model: The model, on the device of `precision`.
        preprocessed: Training and dev data.
        loader_state: Where in the data training begins.
        precision: Device and number format of updates and translations.
        checkpoints: The checkpoint files of the run.
        reporter: Writes TensorBoard data.
        unused_target_ids: See `choose_unused_target_ids`.
        ranks: The processes that train together.
    """
    tokenizers = preprocessed.tokenizers
    loss = build(
        config["loss"],
        vocabulary_size=tokenizers.target.vocabulary_size,
        never_produced=tokenizers.target.never_produced,
    )
    objective_options: ObjectiveOptions = build(config["objective"])
    corpus: Corpus = build(config["data"])
    bleu_tokenize = bleu_tokenizers(corpus)[0]  # `check_objective` refuses rewards that need several
    objective = objective_options.make(model, loss.to(precision.device), tokenizers.target, bleu_tokenize)
    stream = BatchStream(
        preprocessed.store,
        batch_tokens=options.batch_tokens,
        microbatch_tokens=None if options.microbatch_tokens == "auto" else options.microbatch_tokens,
        pad_to_multiple_of=options.pad_to_multiple_of,
        subword_regularization=options.subword_regularization,
        subword_regularization_epochs=options.subword_regularization_epochs,
        tokenizers=tokenizers,
        corpus_spans=preprocessed.corpus_spans,
        seed=config["seed"],
        loader_state=loader_state,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    evaluator = DevEvaluator(
        objective,
        tokenizers,
        build(config["decoding"]),
        precision,
        pairs=preprocessed.dev,
        bleu_tokenize=corpus.bleu_tokenize if preprocessed.directions else corpus.bleu_tokenizer,
        batch_size=options.evaluation_batch_size,
        unused_target_ids=unused_target_ids,
        ranks=ranks,
        directions=preprocessed.directions,
    )
    check_dev_pairs(evaluator, options)
    return Trainer(
        options,
        objective,
        build_stages(options.stages, partial(build, config["optimizer"]), build(config["schedule"])),
        Prefetcher(stream, options.prefetch_batches, pin=precision.device.type == "cuda"),
        evaluator,
        checkpoints,
        reporter,
        precision,
        checkpoint_extras=checkpoint_extras(config, preprocessed, precision, unused_target_ids),
        parallel=DataParallel(ranks, precision.device, config["seed"]),
    )


def check_dev_pairs(evaluator: DevEvaluator, options: TrainerOptions) -> None:
    """Tell how many dev pairs are left out of the dev loss, on rank 0.

    Raises InputError if all of them are and the dev loss chooses best.pt.
    """
    num_pairs = len(evaluator.sources) - sum(direction.is_zero_shot for direction in evaluator.direction_of)
    num_left_out = num_pairs - len(evaluator.measured_pairs())
    reason = (
        f"{num_left_out} of {format_count(num_pairs, 'dev pair')} cannot be measured, because a side is empty, has "
        f"more than {MAX_PAIR_TOKENS:,} tokens, or has more than the model has learned positions"
    )
    if num_left_out == num_pairs and options.best_metric == "dev/loss":
        raise InputError(f"trainer.best_metric is dev/loss, but {reason}: use another metric or other dev pairs")
    if num_left_out and evaluator.ranks.is_rank_0:
        everything = num_left_out == num_pairs
        log.log(
            logging.WARNING if everything else logging.INFO, "dev loss%s: %s", " is nan" if everything else "", reason
        )


def tell_of_changed_schedule(trainer: Trainer, saved: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Log what a resumed run with another schedule.total_steps does to the learning rate."""
    before, after = (node["schedule"].get("total_steps") for node in (json.loads(saved["config"]), config))
    if before == after or trainer.finished() or not trainer.ranks.is_rank_0:
        return
    optimizer, step = trainer.staged_optimizer, trainer.state.step
    last_rate = optimizer.learning_rate
    optimizer.begin_update(step, trainer.state.qualities())
    log.warning(
        "schedule.total_steps was %s and is %s: the learning rate of update %d is %.2e, that of update %d was %.2e",
        before,
        after,
        step + 1,
        optimizer.learning_rate,
        step,
        last_rate,
    )


def checkpoint_extras(
    config: dict[str, Any], preprocessed: PreprocessedData, precision: Precision, unused_target_ids: Sequence[int]
) -> dict[str, Any]:
    """Return the entries of every checkpoint that stay the same during the run; arguments as for `build_trainer`."""
    return {
        "config": json.dumps(config),
        "tokenizers": preprocessed.tokenizers.to_checkpoint(),
        "data_fingerprint": preprocessed.fingerprint,
        "preprocessed_folder": str(preprocessed.folder.resolve()),
        "precision": precision.name,
        "git_revision": git_revision(),
        "torch_version": str(torch.__version__),
        "versions": software_versions(),
        "unused_target_ids": list(unused_target_ids),
    }


# Fit


def fit(
    trainer: Trainer,
    preprocessed: PreprocessedData,
    folder: Path,
    config: dict[str, Any],
    overrides: Sequence[str] | None,
) -> None:
    """Train until a limit is reached and report the result, or log that the run was finished before.

    Rank 0 also writes config.json and overrides.json, logs the start, and checks that the last files were written.

    Raises:
        InputError: The final checkpoint or best.pt could not be written.
    """
    is_rank_0, has_updates_left = trainer.ranks.is_rank_0, not trainer.finished()
    # Without updates left, new limits have no effect, so config.json keeps those of the training.
    if is_rank_0 and (has_updates_left or not (folder / CONFIG).exists()):
        write_json(folder / CONFIG, config)
        if overrides is not None:
            write_json(folder / OVERRIDES, list(overrides))
    if not has_updates_left and not trainer.state.needs_final_evaluation():
        log.info(
            "%s is finished after %s; to train further, raise the limit that stopped it: "
            "trainer.max_steps, trainer.max_epochs or trainer.patience_evaluations (or schedule.total_steps, which "
            "trainer.max_steps follows by default)",
            folder,
            format_count(trainer.state.step, "update"),
        )
        return
    if is_rank_0:
        log_run_start(trainer, preprocessed, folder)
        recommend(trainer, preprocessed, config)
        report_run(trainer.reporter, config, trainer.state.step)
    trainer.fit()
    if is_rank_0:
        check_final_writes(trainer)
        report_hyperparameters(trainer.reporter, config, trainer.state)


def write_json(path: Path, contents: Any) -> None:
    """Write the resolved config or the overrides of a run to its folder, for people to read.

    Checkpoints hold the config too, so a failure to write is only logged.
    """
    try:
        write_atomically(path, json_bytes(contents))
    except OSError as error:
        log.warning("%s cannot be written (%s); checkpoints hold the config too", path, error.strerror)


def log_run_start(trainer: Trainer, preprocessed: PreprocessedData, folder: Path) -> None:
    """Log the sizes of data and model, the memory needed, the updates to do, the device and the precision."""
    state, options, stream = trainer.state, trainer.options, trainer.stream
    if trainer.finished():
        log.info(
            "%s: all %d updates are done; only the final evaluation and checkpoint are missing", folder, state.step
        )
        return
    tokenizers, num_ranks = preprocessed.tokenizers, trainer.ranks.world_size
    num_updates = trainer.last_step - state.step
    num_parameters = sum(parameter.numel() for parameter in trainer.objective.model.parameters())
    log.info("run folder: %s", folder)
    log.info(
        "data: %s in %s, vocabularies of %d and %d subwords, about %s per epoch, at most %d tokens per update",
        format_count(len(preprocessed.store), "pair", comma=True),
        preprocessed.folder,
        tokenizers.source.vocabulary_size,
        tokenizers.target.vocabulary_size,
        format_count(len(stream), "update"),
        options.batch_tokens,
    )
    log.info(
        "model: %s parameters; memory: %s for weights, gradients and optimizer, %s more for the largest batch",
        f"{num_parameters:,}",
        in_megabytes(estimate_state_bytes(trainer)),
        in_megabytes(measure_activation_bytes(trainer, stream.largest_microbatch())),
    )
    log.info(
        "training: %s%s (%.1f epochs) on %s in %s%s",
        format_count(num_updates, "update", comma=True),
        f" from update {state.step:,}" if state.step else "",
        num_updates / len(stream),
        trainer.device,
        trainer.precision.name,
        f", by {num_ranks} processes of about {options.batch_tokens // num_ranks:,} tokens each"
        if num_ranks > 1
        else "",
    )
    warn_of_long_warmup(trainer)
    warn_of_unfinished_clipping(trainer)


def recommend(trainer: Trainer, preprocessed: PreprocessedData, config: Mapping[str, Any]) -> None:
    """Log the recommended settings for the size of the user's own corpus, at the start of a run from scratch."""
    is_own_corpus = isinstance(build(config["data"]), FilesCorpus)
    if not is_own_corpus or config["initialize_from"] is not None or trainer.state.step:
        return
    store = preprocessed.store
    num_tokens = int(store.source_lengths.sum() + store.target_lengths.sum()) + 2 * len(store)
    if overrides := recommended_overrides(len(store), num_tokens, config):
        log.info(
            "recommended for %s (docs/choosing-a-size.md): %s",
            format_count(len(store), "pair", comma=True),
            " ".join(overrides),
        )


CURVES = {
    "training": {
        "loss, nats per token (train with smoothing and dropout)": ["train/loss$", "dev/loss$"],
        "gradient norm, mean and largest": ["train/gradient_norm$", "train/gradient_norm_max$"],
        "norm of the update divided by the norm of the weights, by layer": [f"{UPDATE_RATIO_TAG}/"],
    },
    "dev": {
        "BLEU and chrF, over updates": ["dev/bleu$", "dev/chrf$"],
        "BLEU, over source and target tokens": ["dev_by_tokens/bleu$"],
    },
}
"""Categories, charts and patterns of the curves of TensorBoard's tab CUSTOM SCALARS."""


def report_run(reporter: Reporter, config: Mapping[str, Any], step: int) -> None:
    """Write the resolved config as a text, and the charts that overlay several curves, to TensorBoard."""
    # Four spaces before each line make it a block of code in Markdown.
    text = "".join(f"    {line}\n" for line in json.dumps(config, indent=2).splitlines())
    reporter.fact("about/config", text, step)
    reporter.overlay(CURVES)


def warn_of_long_warmup(trainer: Trainer) -> None:
    """Log a warning for each training stage that ends before the warm-up of its schedule."""
    stages = trainer.staged_optimizer.stages
    ends = [*(stage.start for stage in stages[1:]), trainer.last_step]
    for stage, end in zip(stages, ends, strict=True):
        warmup = getattr(stage.schedule, "warmup_steps", 0)  # a schedule of another package may have none
        num_updates = min(end, trainer.last_step) - stage.start
        if 0 < num_updates < warmup:
            log.warning(
                "the warm-up of %d updates is longer than %s of %d: the learning rate reaches only %.2g%% of its value",
                warmup,
                "the run" if len(stages) == 1 else "the training stage",
                num_updates,
                100 * stage.schedule.factor(num_updates - 1),
            )


def warn_of_unfinished_clipping(trainer: Trainer) -> None:
    """Log a warning if the run ends before the bound of activations has fallen to its last value."""
    clipping = trainer.objective.model.clipping
    if clipping is None or trainer.last_step == 0:
        return
    last_delta = clipping.delta(trainer.last_step - 1)
    if last_delta > clipping.end:
        log.warning(
            "activations are clipped to %.3g at the end of the run and not yet to model.clipping.end=%.3g, because "
            "model.clipping.steps=%d is not less than the run's %d updates",
            last_delta,
            clipping.end,
            clipping.steps,
            trainer.last_step,
        )


def in_megabytes(num_bytes: int) -> str:
    """Return a number of bytes as text in megabytes (2^20 bytes)."""
    return f"{num_bytes / 2**20:,.0f} MB"


# Check and report after the last update


def check_final_writes(trainer: Trainer) -> None:
    """Raise InputError if the last checkpoint, or the best.pt of the last evaluation, could not be written.

    The log already has the reason of each failed write. Call this on rank 0, when all writes have ended.
    """
    state, folder = trainer.state, trainer.checkpoints.folder.parent
    lost = []
    if trainer.last_saved_step != state.step:
        lost.append(f"the checkpoint of update {state.step}")
    if state.needs_final_evaluation():
        lost.append(f"best.pt of update {state.step}")
    if not lost:
        if not trainer.checkpoints.best.is_file():  # somebody has deleted it during the run
            raise InputError(f"{trainer.checkpoints.best} was removed during the run: the same command writes it again")
        return
    if trainer.last_saved_step is None and not state.best:
        raise InputError(
            f"{folder}: no checkpoint could be written, so nothing of this training is kept (the reason is logged "
            "above): make room on the disk, and the same command starts from scratch"
        )
    best = f"best.pt is of update {state.best_step}" if state.best else "there is no best.pt of this run"
    newest, then = "there is no checkpoint to resume from", "starts from scratch"
    if trainer.last_saved_step is not None:
        newest, then = f"the newest checkpoint is of update {trainer.last_saved_step}", "resumes from there"
    raise InputError(
        f"{folder}: {' and '.join(lost)} could not be written (the reason is logged above); {best}, and {newest}: "
        f"make room on the disk, and the same command {then}"
    )


FIRST_HYPERPARAMETERS = {
    "1 learning rate": "optimizer.lr",
    "2 batch tokens": "trainer.batch_tokens",
    "3 updates": "schedule.total_steps",
    "4 width": "model.embedding_size",
    "5 layers": "model.encoder.num_layers",
    "6 dropout": "model.encoder.dropout",
    "7 seed": "seed",
}
"""The first columns of the HPARAMS view, which TensorBoard sorts by name, with the key of each. A component without one
of them has no such column."""


def report_hyperparameters(reporter: Reporter, config: dict[str, Any], state: TrainState) -> None:
    """Write the settings and the best dev metrics for the HPARAMS view of TensorBoard."""
    nodes = ("model", "objective", "loss", "optimizer", "schedule", "trainer", "tokenizer", "seed")
    settings = flatten({node: config[node] for node in nodes})
    first = {name: settings.pop(key) for name, key in FIRST_HYPERPARAMETERS.items() if key in settings}
    metrics = {f"result/{tag.replace('/', '_')}": value for tag, value in state.best.items()}
    reporter.hyperparameters(first | settings, metrics, state.step)
