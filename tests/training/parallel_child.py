"""One of two processes that train together, for test_data_parallel_two_processes.py.

Usage: python parallel_child.py FOLDER OVERRIDE...

RANK, WORLD_SIZE and so on are set as torchrun sets them. All work that needs two processes is done by this one pair,
because their start takes seconds.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from gnmt.checkpoint.load import build_model
from gnmt.config.build import build, resolve
from gnmt.config.cli import CONFIG_FOLDER
from gnmt.data.batching import LoaderState
from gnmt.data.preprocess import preprocess
from gnmt.device import choose_device, choose_precision
from gnmt.distributed import Ranks, current_ranks
from gnmt.errors import Interrupted
from gnmt.logs import configure_logging
from gnmt.reporting.tensorboard import Reporter
from gnmt.training.data_parallel import DataParallel
from gnmt.training.dev_evaluation import DevEvaluator
from gnmt.training.run_checkpoints import RunCheckpoints
from gnmt.training.train import build_trainer, train
from gnmt.training.trainer import Trainer

NO_DROPOUT = ("model.encoder.dropout=0",)
# name: overrides and number of updates. A batch of 50 tokens holds few pairs: a process often has none.
GRADIENTS: dict[str, tuple[tuple[str, ...], int]] = {
    "whole batches": (NO_DROPOUT, 5),
    "microbatches": ((*NO_DROPOUT, "trainer.microbatch_tokens=60"), 4),
    "fewer pairs than processes": ((*NO_DROPOUT, "trainer.batch_tokens=50"), 12),
    "bf16": ((*NO_DROPOUT, "precision=bf16"), 2),
    "attention": ((*NO_DROPOUT, "model=attention", "model.encoder.hidden_size=4"), 2),
    "seq2seq": ((*NO_DROPOUT, "model=seq2seq", "decoding.coverage_beta=0"), 2),
    "rnmt_plus_small": ((*NO_DROPOUT, "model=rnmt_plus_small"), 2),
    "transformer_tiny": ((*NO_DROPOUT, "model=transformer_tiny"), 2),
    "convolutional_small": ((*NO_DROPOUT, "model=convolutional_small"), 2),
    "expected reward": ((*NO_DROPOUT, "objective=expected_reward", "objective.num_samples=3"), 3),
    "expected reward, fewer pairs than processes": (
        (*NO_DROPOUT, "objective=expected_reward", "objective.num_samples=3", "trainer.batch_tokens=50"),
        12,
    ),
    "hybrid": ((*NO_DROPOUT, "model=hybrid", "model.encoder.num_layers=2"), 2),
}
EVERY_2 = ("trainer.ema_decay=0.5", "trainer.evaluate_every_steps=2", "trainer.save_every_steps=2", *NO_DROPOUT)
SPLIT_EVALUATION = ("trainer.evaluation_batch_size=1",)


def composed(overrides: tuple[str, ...]) -> Any:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("train", list(overrides))


def make_trainer(overrides: tuple[str, ...], folder: Path, ranks: Ranks) -> Trainer:
    """Return the trainer of a new run, as train() builds it."""
    cfg = composed(overrides)
    config = resolve(cfg)
    preprocessed = preprocess(build(cfg.data), build(cfg.tokenizer))
    torch.manual_seed(cfg.seed)
    model = build_model(config["model"], preprocessed.tokenizers, (), "the config")
    precision = choose_precision(cfg.precision, choose_device(cfg.device))
    return build_trainer(
        config=config,
        options=build(cfg.trainer),
        model=model,
        preprocessed=preprocessed,
        loader_state=LoaderState(),
        precision=precision,
        checkpoints=RunCheckpoints(folder, 1),
        reporter=Reporter(folder),
        unused_target_ids=(),
        ranks=ranks,
    )


def gradients(trainer: Trainer, num_updates: int) -> dict[str, Any]:
    """Return the gradients, losses, local pairs and token counts of updates that leave the weights unchanged."""
    found: dict[str, Any] = {"gradients": [], "losses": [], "own_pairs": [], "tokens": [], "statistics": []}
    parameters = list(trainer.objective.parameters())

    def take(loss_sum: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found["gradients"].append(torch.cat([parameter.grad.detach().flatten() for parameter in parameters]))
        found["losses"].append(float(loss_sum))
        for parameter in parameters:
            parameter.grad = None
        return torch.tensor(1.0), torch.tensor(True)

    trainer.staged_optimizer.apply = take  # type: ignore[method-assign]
    for _ in range(num_updates):
        metrics = trainer.empty_metrics()
        metrics.loader_states.append(trainer.stream.loader_state)
        local_batch = next(trainer.stream)
        found["own_pairs"].append([pair for batch in local_batch for pair in batch.pairs_B.tolist()])
        found["tokens"].append((local_batch.source_tokens, local_batch.target_tokens, metrics.real_tokens))
        trainer.update(local_batch, metrics)
        found["statistics"].append(metrics.statistics_M)
    trainer.stream.close()
    return found


def evaluation(trainer: Trainer) -> dict[str, Any]:
    """Return the dev scores and texts, and the number of sentences that this process translated."""
    result = trainer.evaluate()
    own = trainer.evaluate.own_sentences()  # type: ignore[attr-defined]
    return {
        "scalars": result.scalars(),
        "texts": [translation.text for translation in result.translations],
        "attention": result.translations[0].attention_TS,
        "own_sentences": own.stop - own.start,
    }


def draws(parallel: DataParallel) -> list[torch.Tensor]:
    """Return random numbers of two updates, and of the first one again."""
    numbers = []
    for step in (0, 1, 0):
        parallel.begin_update(step)
        numbers.append(torch.rand(3))
    return numbers


def interrupted(overrides: tuple[str, ...], folder: Path, rank: int, stage: str) -> tuple[str, int]:
    """Train with a SIGTERM to rank 1 in an update or an evaluation; return this process's message and exit code."""
    update, translations = Trainer.update, DevEvaluator.translations

    def send() -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def signalled_update(trainer: Trainer, *arguments: Any) -> None:
        if stage == "update" and trainer.state.step == 2:
            send()
        update(trainer, *arguments)

    def signalled_translations(evaluator: DevEvaluator) -> Any:
        if stage == "evaluation":
            send()
        return translations(evaluator)

    Trainer.update, DevEvaluator.translations = signalled_update, signalled_translations  # type: ignore[method-assign]
    try:
        train(composed(overrides), folder)
    except Interrupted as stop:
        return str(stop), stop.exit_code
    finally:
        Trainer.update, DevEvaluator.translations = update, translations  # type: ignore[method-assign]
    return "not stopped", 0


def fail_in_the_second_update(trainer: Trainer, *arguments: Any) -> None:
    if trainer.ranks.rank == 1 and trainer.state.step == 1:
        raise RuntimeError("this process has no memory left")
    original_update(trainer, *arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    configure_logging()
    folder, *rest = sys.argv[1:]
    home, settings = Path(folder), tuple(rest)
    ranks = current_ranks()
    found: dict[str, Any] = {}
    cpu = torch.device("cpu")
    with ranks.process_group(cpu):
        for name, (overrides, num_updates) in GRADIENTS.items():
            trainer = make_trainer((*settings, *overrides), home / f"scratch-{ranks.rank}", ranks)
            found[name] = gradients(trainer, num_updates)
        trainer = make_trainer((*settings, *SPLIT_EVALUATION), home / f"scratch-{ranks.rank}", ranks)
        found["evaluation"] = evaluation(trainer)
        found["draws"] = draws(DataParallel(ranks, cpu, seed=1))
    original_update, fit = Trainer.update, Trainer.fit
    trainers: list[Trainer] = []
    Trainer.fit = lambda trainer: (trainers.append(trainer), fit(trainer))[1]  # type: ignore[method-assign,func-returns-value]
    result = train(composed((*settings, *EVERY_2, "trainer.max_steps=4")), home / "run")
    found["result"] = (result.steps, result.best_step, result.best)
    found["weights"] = trainers[-1].objective.state_dict()
    found["average"] = trainers[-1].average.state_dict()  # type: ignore[union-attr]
    for stage in ("update", "evaluation"):
        found[f"stopped in {stage}"] = interrupted(
            (*settings, *EVERY_2, "trainer.evaluate_every_steps=4", "trainer.max_steps=8"),
            home / stage,
            ranks.rank,
            stage,
        )
    torch.save(found, home / f"found-{ranks.rank}.pt")
    Trainer.update = fail_in_the_second_update  # type: ignore[method-assign]
    train(composed((*settings, "trainer.max_steps=4")), home / "failed")
