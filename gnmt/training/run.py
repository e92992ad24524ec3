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

from gnmt.checkpoint import build_model, git_revision, read_checkpoint, read_parts, software_versions, take_weights
from gnmt.config import build, changed_settings, resolve
from gnmt.data.batching import BatchStream, Position
from gnmt.data.prepare import prepare
from gnmt.data.prepared import Prepared
from gnmt.data.tokenizer import Tokenizers
from gnmt.distributed import Ranks, current_ranks
from gnmt.evaluation.metrics import check_tokenizer
from gnmt.files import write_atomically
from gnmt.model.seq2seq import Seq2Seq
from gnmt.reporting.tensorboard import Reporter
from gnmt.runtime import (
    Precision,
    choose_device,
    choose_precision,
    deterministic_kernels,
    keep_cpu_kernels,
    return_freed_memory,
)
from gnmt.training.announcement import announce
from gnmt.training.checkpoint import RunCheckpoints
from gnmt.training.ending import refuse_lost_end
from gnmt.training.evaluation import DevEvaluator
from gnmt.training.folder import CONFIG, occupied
from gnmt.training.interruption import saying_how_to_go_on
from gnmt.training.objective import Objective
from gnmt.training.options import TrainerOptions
from gnmt.training.parallel import Group, ending_together
from gnmt.training.phases import stages_of
from gnmt.training.prefetch import Prefetcher
from gnmt.training.progress import Progress
from gnmt.training.refusals import (
    read_start,
    refuse_other_data,
    refuse_other_settings,
    refuse_too_few_positions,
    try_model,
    try_optimizers,
)
from gnmt.training.trainer import Trainer
from gnmt.types import InputError, counted

log = logging.getLogger(__name__)


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
    with saying_how_to_go_on(lambda: bool(RunCheckpoints(folder, keep=1).whole())):
        keep_cpu_kernels(cfg.cpu_kernels)
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
    start = None if cfg.initialise_from is None or checkpoints.whole() else read_start(cfg.initialise_from, config)
    with occupied(folder) if ranks.is_first else nullcontext():
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
    elif cfg.initialise_from is not None and start is None:  # its checkpoints have gone since
        start = read_start(cfg.initialise_from, config)
    prepared = prepare_together(ranks, cfg, checkpoints)
    if saved is not None:
        refuse_other_data(folder, saved, prepared)

    torch.manual_seed(cfg.seed)
    model = build_model(config["model"], prepared.tokenizers, tuple(cfg.trusted_packages), "the config")
    refuse_too_few_positions(model, prepared)
    if start is not None:
        start_from(model, cfg.initialise_from, start, prepared.tokenizers)
    model.to(precision.device)
    return_freed_memory(sum(parameter.numel() for parameter in model.parameters()), precision.device)
    # 0 in a new run too: one that was killed before its first checkpoint has left points that would come twice.
    purge_step = 0 if saved is None else saved["step"] + 1
    with Group(ranks, precision.device, cfg.seed) as group, Reporter(folder, purge_step) as reporter:
        position = Position() if saved is None else Position(*saved["position"])
        unused = unused_target_ids(prepared, options, saved, start)
        trainer = build_trainer(
            *(config, options, model, prepared, position, precision, checkpoints, reporter, unused, group)
        )
        if saved is not None:
            trainer.restore(saved)
        trains = not trainer.finished()
        if ranks.is_first and (trains or not (folder / CONFIG).exists()):
            write_config(folder, config)  # a lower limit alone changes nothing of what the file says
        if not trains and not trainer.progress.end_is_due():
            log.info(
                "%s is done: %s; to train on, raise what stopped it: "
                "trainer.max_steps, max_epochs or patience_evaluations",
                *(folder, counted(trainer.progress.step, "update")),
            )
        else:
            if ranks.is_first and trains:
                announce(trainer, prepared, folder)
            elif ranks.is_first:
                log.info("%s has all its %d updates: their end is evaluated and saved", folder, trainer.progress.step)
            trainer.fit()
            if ranks.is_first:
                refuse_lost_end(trainer)
                report_hyperparameters(reporter, config, trainer.progress)
        best, best_step = group.from_first((trainer.progress.best, trainer.progress.best_step))
    return TrainingResult(folder, trainer.progress.step, best, best_step)


def build_trainer(
    config: dict[str, Any],
    options: TrainerOptions,
    model: Seq2Seq,
    prepared: Prepared,
    position: Position,
    precision: Precision,
    checkpoints: RunCheckpoints,
    reporter: Reporter,
    unused_target_ids: Sequence[int] = (),
    group: Group | None = None,
) -> Trainer:
    """Puts loss, optimiser, schedule, batches and dev evaluation around the model.

    unused_target_ids: what translations never hold, in this run's evaluations and with its checkpoints. group: see
    `Trainer`.
    """
    group = group or Group.alone(precision.device)
    tokenizers = prepared.tokenizers
    loss = build(
        config["loss"],
        vocabulary_size=tokenizers.target.vocabulary_size,
        never_produced=tokenizers.target.never_produced,
    )
    objective = Objective(model, loss.to(precision.device))
    stream = BatchStream(
        prepared.store,
        batch_tokens=options.batch_tokens,
        microbatch_tokens=options.microbatch_tokens,
        length_multiple=options.length_multiple,
        subword_sampling=options.subword_sampling,
        tokenizers=tokenizers,
        segments=prepared.segments,
        seed=config["seed"],
        position=position,
        rank=group.rank,
        world_size=group.size,
    )
    evaluator = DevEvaluator(
        objective,
        tokenizers,
        build(config["decoding"]),
        precision,
        prepared.dev,
        config["data"]["bleu_tokenize"],
        options.evaluation_batch_size,
        unused_target_ids,
        group,
    )
    extras = {
        "config": json.dumps(config),
        "tokenizers": tokenizers.to_checkpoint(),
        "data_identity": prepared.identity,
        "prepared_folder": str(prepared.folder.resolve()),
        "precision": precision.name,
        "git_revision": git_revision(),
        "torch_version": str(torch.__version__),
        "versions": software_versions(),
        "unused_target_ids": list(unused_target_ids),
    }
    stages = stages_of(options.phases, partial(build, config["optimizer"]), build(config["schedule"]))
    batches = Prefetcher(stream, options.prefetch_batches, pin=precision.device.type == "cuda")
    return Trainer(options, objective, stages, batches, evaluator, checkpoints, reporter, precision, extras, group)


def unused_target_ids(
    prepared: Prepared, options: TrainerOptions, saved: Mapping[str, Any] | None, start: Mapping[str, Any] | None
) -> list[int]:
    """Target ids that the model never learns to say, so that search leaves them out.

    A run goes on with those that it began with. Weights of another run may know more than this data, and sampled
    subwords may hold any piece.
    """
    if saved is not None:
        return list(saved.get("unused_target_ids", []))  # a checkpoint from before they were counted has none
    if options.subword_sampling:
        return []
    unused_before = None if start is None else set(start.get("unused_target_ids", []))
    return [id for id in prepared.unused_target_ids if unused_before is None or id in unused_before]


def prepare_together(ranks: Ranks, cfg: Any, checkpoints: RunCheckpoints) -> Prepared:
    """The prepared data: the first process makes it, and the others wait as long as it takes."""
    if ranks.is_first:
        checkpoints.remove_leftovers()
        prepared = prepare(build(cfg.data), build(cfg.tokenizer))
    ranks.wait_for_first()
    return prepared if ranks.is_first else prepare(build(cfg.data), build(cfg.tokenizer))


def find_saved_together(
    ranks: Ranks, checkpoints: RunCheckpoints, resume: str, config: dict[str, Any]
) -> dict[str, Any] | None:
    """The state to continue from, as the first process finds it; the others read the same file."""
    saved = find_saved(checkpoints, resume, config) if ranks.is_first else None
    step = ranks.wait_for_first("" if saved is None else str(saved["step"]))
    return read_checkpoint(checkpoints.path_of(int(step))) if step and not ranks.is_first else saved


def find_saved(checkpoints: RunCheckpoints, resume: str, config: dict[str, Any]) -> dict[str, Any] | None:
    """The state to continue from, or None for a fresh start."""
    folder = checkpoints.folder.parent
    if resume == "never" and (checkpoints.whole() or checkpoints.best.exists()):
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
        if not contents["prepared_folder"]:
            raise InputError(
                f"initialise_from={path}: an imported checkpoint, which reads pieces that training does not prepare"
            )
        folder = Path(contents["prepared_folder"]) / "tokenizer"
        raise InputError(
            f"initialise_from={path}: its tokenizers differ from those of the prepared data, so its weights would go "
            "to other pieces. Prepare this data with its tokenizers: tokenizer=existing "
            f"tokenizer.source={folder / 'source.model'} tokenizer.target={folder / 'target.model'}"
        )
    take_weights(model, contents, f"initialise_from={path}")
    log.info("weights from %s, update %d", path, contents["step"])


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """The resolved config beside the run, for people; the checkpoint has its own, so no run ends for want of this."""
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    try:
        write_atomically(folder / CONFIG, text.encode())
    except OSError as error:
        log.warning("%s cannot be written (%s); checkpoints hold the config too", folder / CONFIG, error.strerror)


def report_hyperparameters(reporter: Reporter, config: dict[str, Any], progress: Progress) -> None:
    """The settings and the best dev figures, for TensorBoard's comparison of runs."""
    parts = ("model", "loss", "optimizer", "schedule", "trainer", "tokenizer", "seed")
    metrics = {f"best/{tag.removeprefix('dev/')}": value for tag, value in progress.best.items()}
    reporter.hyperparameters({part: config[part] for part in parts}, metrics, progress.step)
