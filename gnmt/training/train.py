"""One training run, from its checked config to its best checkpoint."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gnmt.batch import Batch
from gnmt.checkpoint.file import git_revision, read_checkpoint, read_parts, software_versions
from gnmt.checkpoint.load import build_model, misfit, take_weights
from gnmt.config.build import build, resolve
from gnmt.config.run_folder import CONFIG, changed_settings, occupied
from gnmt.data.batching import BatchStream, LoaderState, Prefetcher
from gnmt.data.preprocess import prepare
from gnmt.data.store import Preprocessed
from gnmt.data.tokenizer import Tokenizers
from gnmt.decoding.scoring import check_coverage
from gnmt.device import (
    Precision,
    choose_device,
    choose_precision,
    deterministic_kernels,
    return_freed_memory,
    set_onednn_cache_capacity,
)
from gnmt.distributed import Ranks, current_ranks
from gnmt.errors import InputError, counted, first_line
from gnmt.evaluation.metrics import check_tokenizer
from gnmt.fileio import write_atomically
from gnmt.model.seq2seq import Seq2Seq
from gnmt.model.validate import SIDES_SHARE
from gnmt.reporting.tensorboard import Reporter
from gnmt.signals import explain_interrupts
from gnmt.training.data_parallel import Group, ending_together
from gnmt.training.dev_evaluation import DevEvaluator
from gnmt.training.objective import Objective
from gnmt.training.optimizer import MakeOptimizer, build_stages
from gnmt.training.run_checkpoints import RunCheckpoints
from gnmt.training.train_metrics import TrainState
from gnmt.training.trainer import Trainer, TrainerOptions

_STAND_IN_VOCABULARY = 1000


def try_optimizers(config: dict[str, Any], options: TrainerOptions) -> None:
    """Finds values that only the optimizers themselves can judge."""
    makers: dict[str, MakeOptimizer] = {"optimizer": partial(build, config["optimizer"])}
    for place, stage in enumerate(options.stages or ()):
        if stage.optimizer is not None:
            makers[f"trainer.stages.{place}.optimizer"] = stage.optimizer
    for key, make in makers.items():
        try:
            make(params=[torch.nn.Parameter(torch.zeros(1))])
        except (ValueError, RuntimeError, TypeError) as error:
            raise InputError(f"{key}: {error}") from None


def try_model(config: Mapping[str, Any]) -> None:
    """Finds parts of a model that do not fit together, or not with the tokenizers or the search of its training."""
    tied = config["model"].get("tie_embeddings", "none")
    if tied in SIDES_SHARE and config["tokenizer"].get("joint") is False:
        raise InputError(
            f"model.tie_embeddings={tied} shares one table between the sides, but with tokenizer.joint=false they have "
            "different pieces: use tokenizer.joint=true, or model.tie_embeddings=none or target_output"
        )
    model = _without_weights(config["model"], _STAND_IN_VOCABULARY, _STAND_IN_VOCABULARY)
    if model is not None:
        check_coverage(build(config["decoding"]), model.decoder.has_attention)


def _without_weights(node: Mapping[str, Any], source_vocabulary_size: int, target_vocabulary_size: int) -> Any:
    """The model without memory for its weights. None where only a real device can build it, as may be somebody's own:
    the real building is still to come."""
    sizes = {"source_vocabulary_size": source_vocabulary_size, "target_vocabulary_size": target_vocabulary_size}
    try:
        with torch.device("meta"):
            return build(node, **sizes)
    except InputError:
        raise
    except Exception:
        return None


def read_start(path: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of the checkpoint of initialize_from, whose weights have the names and shapes of the run's model.

    Raises InputError where they have not, with the settings that differ. Whether it reads the same pieces, only the
    preprocessed data can tell.
    """
    try:
        contents = read_parts(path)
    except InputError as error:
        raise InputError(f"initialize_from: {error}") from None
    if not contents["preprocessed_folder"]:
        return contents  # imported: whether it has pieces that training can prepare, comes first
    try:
        recorded = {"model": json.loads(contents["config"])["model"]}
        tokenizers = Tokenizers.from_checkpoint(contents["tokenizers"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"initialize_from={path} garbles a part of a checkpoint: {first_line(error)}") from None
    vocabulary_sizes = [side.vocabulary_size for side in (tokenizers.source, tokenizers.target)]
    try:
        model = _without_weights(config["model"], *vocabulary_sizes)
        wrong = None if model is None else misfit(model, contents["model"])
    except InputError as error:  # one table for its two vocabularies
        wrong = str(error)
    if wrong is None:
        return contents
    changes = changed_settings(recorded, {"model": config["model"]})
    if not changes:
        raise InputError(f"initialize_from={path}: its weights do not fit the model: {wrong}")
    raise InputError(
        f"initialize_from={path}: its weights do not fit the model, which is another one:\n  "
        + "\n  ".join(changes)
        + "\nSet what gives the weights their shapes to what it was there, or begin without initialize_from="
    )


def refuse_other_settings(folder: Path, saved: dict[str, Any], config: dict[str, Any]) -> None:
    """A run goes on with the model, the data and the recipe that it began with."""
    changes = changed_settings(json.loads(saved["config"]), config)
    if changes:
        raise InputError(
            f"{folder} holds a run with other settings:\n  " + "\n  ".join(changes) + "\n"
            "Set them back to continue it, or give the new run a name of its own: name=..."
        )


def refuse_other_data(folder: Path, saved: dict[str, Any], preprocessed: Preprocessed) -> None:
    """The same settings may meet other text: files change."""
    if saved["data_fingerprint"] == preprocessed.identity:
        return
    what = "text"
    if Tokenizers.from_checkpoint(saved["tokenizers"]).digest != preprocessed.tokenizers.digest:
        what = "text and tokenizers"
    raise InputError(
        f"{folder} was trained on other {what} than {preprocessed.folder} holds: name the data that it began with "
        "(data.preprocessed=FOLDER), or give the new run a name of its own: name=..."
    )


def refuse_too_few_positions(model: Seq2Seq, preprocessed: Preprocessed) -> None:
    """A model with learned positions must have one for each token of the longest training pair.

    Subwords that are sampled may still come to more; see gnmt.model.layers.
    """
    for side, key, limit, lengths in (
        ("source", "model.encoder.learned_positions", model.encoder.max_tokens, preprocessed.store.source_lengths),
        ("target", "model.decoder.learned_positions", model.decoder.max_tokens, preprocessed.store.target_lengths),
    ):
        if limit is None:
            continue  # without a look at the lengths, of which there may be millions on the disk
        longest = int(lengths.max(initial=0)) + 1
        if longest > limit:
            raise InputError(
                f"{key} is {limit}, but the longest {side} of {preprocessed.folder} has {longest} tokens with EOS: use "
                f"{key}={longest} or more, or leave longer pairs out (data.cleaning.max_length_tokens={limit})"
            )


log = logging.getLogger(__name__)


def announce(trainer: Trainer, preprocessed: Preprocessed, folder: Path) -> None:
    """Logs what the run is about to do: size, memory, data, updates, device, precision."""
    model, options, stream = trainer.objective.model, trainer.options, trainer.stream
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    size = trainer.group.size
    updates = trainer.last_step - trainer.state.step
    log.info("run folder: %s", folder)
    log.info(
        "data: %s in %s, %d and %d pieces, about %s an epoch of at most %d tokens",
        *(counted(len(preprocessed.store), "pair", comma=True), preprocessed.folder),
        *(preprocessed.tokenizers.source.vocabulary_size, preprocessed.tokenizers.target.vocabulary_size),
        *(counted(len(stream), "update"), options.batch_tokens),
    )
    log.info(
        "model: %s parameters; memory: %s for weights, gradients and optimizer, %s more for the largest batch",
        f"{num_parameters:,}",
        in_megabytes(state_bytes(trainer)),
        in_megabytes(activation_bytes(trainer, stream.largest_microbatch())),
    )
    log.info(
        "training: %s%s (%.1f epochs) on %s in %s%s",
        counted(updates, "update", comma=True),
        f" from update {trainer.state.step:,}" if trainer.state.step else "",
        updates / len(stream),
        trainer.device,
        trainer.precision.name,
        f", by {size} processes of about {options.batch_tokens // size:,} tokens each" if size > 1 else "",
    )


def state_bytes(trainer: Trainer) -> int:
    """Weights and gradients, what the optimizer keeps for each weight, and the averaged weights."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in trainer.objective.parameters())
    group = trainer.staged_optimizer.optimizer.param_groups[0]
    moments = 2 if "betas" in group else int(bool(group.get("momentum")))
    return weights * (2 + moments + (trainer.average is not None))


def activation_bytes(trainer: Trainer, batch: Batch) -> int:
    """What one forward pass keeps for its backward pass, found by running it; the random state stays as it was."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    trainer.objective.train()
    devices = [trainer.device] if trainer.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        trainer.precision.autocast(),
    ):
        loss_sum, _ = trainer.objective(batch.to(trainer.device))
    del loss_sum
    weights = {parameter.untyped_storage().data_ptr() for parameter in trainer.objective.parameters()}
    return sum(size for pointer, size in sizes.items() if pointer not in weights)


def in_megabytes(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 2**20:,.0f} MB"


def refuse_lost_end(trainer: Trainer) -> None:
    """Raises InputError where the last update, or the best.pt that it earned, could not be written: says what exists.

    Why each write failed, the log has said. To be asked in the process that writes, when all writes have ended.
    """
    state, checkpoints = trainer.state, trainer.checkpoints
    lost = [
        name
        for name, is_lost in (
            (f"the checkpoint of update {state.step}", trainer.last_saved_step != state.step),
            (f"best.pt of update {state.step}", state.end_is_due()),
        )
        if is_lost
    ]
    if not lost:
        return
    newest, best = trainer.last_saved_step, state.best_step if state.best else None
    folder = checkpoints.folder.parent
    if not newest and best is None:
        raise InputError(
            f"{folder}: no checkpoint could be written, so nothing of this training is kept (see above): make room on "
            "the disk, and the same command begins again"
        )
    there = [
        f"best.pt is of update {best}" if best is not None else "there is no best.pt of this run",
        f"the newest checkpoint is of update {newest}" if newest else "there is no checkpoint to go on from",
    ]
    raise InputError(
        f"{folder}: {' and '.join(lost)} could not be written (see above); {', and '.join(there)}: make room on the "
        f"disk, and the same command {'goes on from there' if newest else 'begins again'}"
    )


@dataclass(frozen=True)
class TrainingResult:
    """folder: the run's. steps: updates done in all. best, best_step: the best dev figures and their update."""

    folder: Path
    steps: int
    best: dict[str, float]
    best_step: int


def train(cfg: Any, folder: Path) -> TrainingResult:
    """Trains as the checked config says, in that run folder; continues what lies there.

    Raises InputError for whatever a user can mend, Interrupted after a signal, when the state is saved. Processes
    of torchrun train one model together and all get the result; an error of one ends all, see `ending_together`.
    """
    with explain_interrupts(lambda: bool(RunCheckpoints(folder, keep=1).full())):
        set_onednn_cache_capacity(cfg.onednn_cache_capacity)
        ranks = current_ranks()
        with deterministic_kernels(cfg.deterministic), ending_together(ranks):
            return train_in(folder, cfg, ranks)


def train_in(folder: Path, cfg: Any, ranks: Ranks) -> TrainingResult:
    """The work of `train`; all that is written, the first process writes."""
    config = resolve(cfg)
    check_tokenizer(config["data"]["bleu_tokenize"])
    precision = choose_precision(cfg.precision, choose_device(ranks.device_name(cfg.device)))
    options: TrainerOptions = build(cfg.trainer)
    try_optimizers(config, options)
    try_model(config)
    checkpoints = RunCheckpoints(folder, options.keep_checkpoints)
    # A run that goes on does not look at it again; it may be gone by then.
    start = None if cfg.initialize_from is None or checkpoints.full() else read_start(cfg.initialize_from, config)
    with occupied(folder) if ranks.is_rank_0 else nullcontext():
        return train_there(checkpoints, cfg, config, options, precision, ranks, start)


def train_there(
    checkpoints: RunCheckpoints,
    cfg: Any,
    config: dict[str, Any],
    options: TrainerOptions,
    precision: Precision,
    ranks: Ranks,
    start: dict[str, Any] | None,
) -> TrainingResult:
    """Trains in a folder that is the run's own by now; config: cfg, resolved; start: the contents to begin with."""
    folder = checkpoints.folder.parent
    saved = find_saved_together(ranks, checkpoints, cfg.resume, config)
    if saved is not None:
        refuse_other_settings(folder, saved, config)
        if saved["precision"] != precision.name:
            log.warning("the run began in %s and goes on in %s", saved["precision"], precision.name)
        start = None
    elif cfg.initialize_from is not None and start is None:  # its checkpoints have gone since
        start = read_start(cfg.initialize_from, config)
    preprocessed = prepare_together(ranks, cfg, checkpoints)
    if saved is not None:
        refuse_other_data(folder, saved, preprocessed)

    torch.manual_seed(cfg.seed)
    model = build_model(config["model"], preprocessed.tokenizers, tuple(cfg.trusted_packages), "the config")
    refuse_too_few_positions(model, preprocessed)
    if start is not None:
        start_from(model, cfg.initialize_from, start, preprocessed.tokenizers)
    model.to(precision.device)
    return_freed_memory(sum(parameter.numel() for parameter in model.parameters()), precision.device)
    # 0 in a new run too: one that was killed before its first checkpoint has left points that would come twice.
    purge_step = 0 if saved is None else saved["step"] + 1
    with Group(ranks, precision.device, cfg.seed) as group, Reporter(folder, purge_step) as reporter:
        loader_state = LoaderState() if saved is None else LoaderState(*saved["loader_state"])
        unused = unused_target_ids(preprocessed, options, saved, start)
        trainer = build_trainer(
            *(config, options, model, preprocessed, loader_state, precision, checkpoints, reporter, unused, group)
        )
        if saved is not None:
            trainer.restore(saved)
        trains = not trainer.finished()
        if ranks.is_rank_0 and (trains or not (folder / CONFIG).exists()):
            write_config(folder, config)  # a lower limit alone changes nothing of what the file says
        if not trains and not trainer.state.end_is_due():
            log.info(
                "%s is done: %s; to train on, raise what stopped it: "
                "trainer.max_steps, max_epochs or patience_evaluations",
                *(folder, counted(trainer.state.step, "update")),
            )
        else:
            if ranks.is_rank_0 and trains:
                announce(trainer, preprocessed, folder)
            elif ranks.is_rank_0:
                log.info("%s has all its %d updates: their end is evaluated and saved", folder, trainer.state.step)
            trainer.fit()
            if ranks.is_rank_0:
                refuse_lost_end(trainer)
                report_hyperparameters(reporter, config, trainer.state)
        best, best_step = group.from_rank_0((trainer.state.best, trainer.state.best_step))
    return TrainingResult(folder, trainer.state.step, best, best_step)


def build_trainer(
    config: dict[str, Any],
    options: TrainerOptions,
    model: Seq2Seq,
    preprocessed: Preprocessed,
    loader_state: LoaderState,
    precision: Precision,
    checkpoints: RunCheckpoints,
    reporter: Reporter,
    unused_target_ids: Sequence[int] = (),
    group: Group | None = None,
) -> Trainer:
    """Puts loss, optimizer, schedule, batches and dev evaluation around the model.

    unused_target_ids: what translations never hold, in this run's evaluations and with its checkpoints. group: see
    `Trainer`.
    """
    group = group or Group.alone(precision.device)
    tokenizers = preprocessed.tokenizers
    loss = build(
        config["loss"],
        vocabulary_size=tokenizers.target.vocabulary_size,
        never_produced=tokenizers.target.never_produced,
    )
    objective = Objective(model, loss.to(precision.device))
    stream = BatchStream(
        preprocessed.store,
        batch_tokens=options.batch_tokens,
        microbatch_tokens=options.microbatch_tokens,
        pad_to_multiple_of=options.pad_to_multiple_of,
        subword_regularization=options.subword_regularization,
        tokenizers=tokenizers,
        segments=preprocessed.segments,
        seed=config["seed"],
        loader_state=loader_state,
        rank=group.rank,
        world_size=group.size,
    )
    evaluator = DevEvaluator(
        objective,
        tokenizers,
        build(config["decoding"]),
        precision,
        preprocessed.dev,
        config["data"]["bleu_tokenize"],
        options.evaluation_batch_size,
        unused_target_ids,
        group,
    )
    extras = {
        "config": json.dumps(config),
        "tokenizers": tokenizers.to_checkpoint(),
        "data_fingerprint": preprocessed.identity,
        "preprocessed_folder": str(preprocessed.folder.resolve()),
        "precision": precision.name,
        "git_revision": git_revision(),
        "torch_version": str(torch.__version__),
        "versions": software_versions(),
        "unused_target_ids": list(unused_target_ids),
    }
    stages = build_stages(options.stages, partial(build, config["optimizer"]), build(config["schedule"]))
    batches = Prefetcher(stream, options.prefetch_batches, pin=precision.device.type == "cuda")
    return Trainer(options, objective, stages, batches, evaluator, checkpoints, reporter, precision, extras, group)


def unused_target_ids(
    preprocessed: Preprocessed,
    options: TrainerOptions,
    saved: Mapping[str, Any] | None,
    start: Mapping[str, Any] | None,
) -> list[int]:
    """Target ids that the model never learns to say, so that search leaves them out.

    A run goes on with those that it began with. Weights of another run may know more than this data, and sampled
    subwords may hold any piece.
    """
    if saved is not None:
        return list(saved.get("unused_target_ids", []))  # a checkpoint from before they were counted has none
    if options.subword_regularization:
        return []
    unused_before = None if start is None else set(start.get("unused_target_ids", []))
    return [id for id in preprocessed.unused_target_ids if unused_before is None or id in unused_before]


def prepare_together(ranks: Ranks, cfg: Any, checkpoints: RunCheckpoints) -> Preprocessed:
    """The preprocessed data: the first process makes it, and the others wait as long as it takes."""
    if ranks.is_rank_0:
        checkpoints.remove_leftovers()
        preprocessed = prepare(build(cfg.data), build(cfg.tokenizer))
    ranks.wait_for_rank_0()
    return preprocessed if ranks.is_rank_0 else prepare(build(cfg.data), build(cfg.tokenizer))


def find_saved_together(
    ranks: Ranks, checkpoints: RunCheckpoints, resume: str, config: dict[str, Any]
) -> dict[str, Any] | None:
    """The state to continue from, as the first process finds it; the others read the same file."""
    saved = find_saved(checkpoints, resume, config) if ranks.is_rank_0 else None
    step = ranks.wait_for_rank_0("" if saved is None else str(saved["step"]))
    return read_checkpoint(checkpoints.path_of(int(step))) if step and not ranks.is_rank_0 else saved


def find_saved(checkpoints: RunCheckpoints, resume: str, config: dict[str, Any]) -> dict[str, Any] | None:
    """The state to continue from, or None for a fresh start."""
    folder = checkpoints.folder.parent
    if resume == "never" and (checkpoints.full() or checkpoints.best.exists()):
        raise InputError(f"{folder} holds a run already and resume=never: choose another name=, or resume=auto")
    saved = checkpoints.newest()
    if saved is None and checkpoints.best.exists():
        # A run that was killed after its first evaluation and before its first checkpoint simply begins anew.
        if changed_settings(json.loads(read_parts(checkpoints.best)["config"]), config):
            raise InputError(
                f"{folder} holds best.pt of a run with other settings but no checkpoint to continue, and a new run "
                "there would overwrite it: choose another name=, or move best.pt away"
            )
        log.warning("%s holds no checkpoint to continue from: the run begins anew", folder)
    return saved


def start_from(model: Seq2Seq, path: str, contents: dict[str, Any], tokenizers: Tokenizers) -> None:
    """Starts from another run's weights; its tokenizers must be the same, or the tables' rows mean other pieces."""
    if Tokenizers.from_checkpoint(contents["tokenizers"]).digest != tokenizers.digest:
        if not contents["preprocessed_folder"]:
            raise InputError(
                f"initialize_from={path}: an imported checkpoint, which reads pieces that training does not prepare"
            )
        folder = Path(contents["preprocessed_folder"]) / "tokenizer"
        raise InputError(
            f"initialize_from={path}: its tokenizers differ from those of the preprocessed data, so its weights would go "
            "to other pieces. Prepare this data with its tokenizers: tokenizer=existing "
            f"tokenizer.source={folder / 'source.model'} tokenizer.target={folder / 'target.model'}"
        )
    take_weights(model, contents, f"initialize_from={path}")
    log.info("weights from %s, update %d", path, contents["step"])


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """The resolved config beside the run, for people; the checkpoint has its own, so no run ends for want of this."""
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    try:
        write_atomically(folder / CONFIG, text.encode())
    except OSError as error:
        log.warning("%s cannot be written (%s); checkpoints hold the config too", folder / CONFIG, error.strerror)


def report_hyperparameters(reporter: Reporter, config: dict[str, Any], state: TrainState) -> None:
    """The settings and the best dev figures, for TensorBoard's comparison of runs."""
    parts = ("model", "loss", "optimizer", "schedule", "trainer", "tokenizer", "seed")
    metrics = {f"best/{tag.removeprefix('dev/')}": value for tag, value in state.best.items()}
    reporter.hyperparameters({part: config[part] for part in parts}, metrics, state.step)
