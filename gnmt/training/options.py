"""What `trainer:` of a config says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from gnmt.training.phases import Phase, check_phases
from gnmt.types import Range

Steps = Annotated[int, Range(1)]


@dataclass(frozen=True)
class TrainerOptions:
    """How long and in what portions to train.

    max_steps, max_epochs: whichever comes first; None for no limit on epochs.
    phases: optimisers and schedules that follow each other; None for the root keys' from start to end.
    batch_tokens: padded source and target tokens of one update, at most. microbatch_tokens: of one forward and
    backward; None for the whole batch at once. length_multiple: batches are padded to multiples of so many tokens a
    side, so that fewer shapes occur: a CPU's kernels, each made for one shape, are made less often.
    clip_norm: the largest global gradient norm; None for no clipping.
    max_nonfinite_updates: so many updates in a row that were skipped, because loss or gradient were not finite, end
    the run; it is looked at when the log is written.
    subword_sampling: 0 for none. Otherwise, with a BPE tokenizer, the probability that a merge is left out, and with a
    unigram tokenizer the exponent on the probability of a cut, less being more random.
    ema_decay: of the moving average of the weights, which then is what is evaluated and kept as best; None for none.
    gradient_norms_every_steps: updates between records of the gradient's norm in each layer, see
    gnmt.training.gradient_norms; None for none.
    prefetch_batches: made ahead by a thread; 0 for none.
    patience_evaluations: stop after so many evaluations without a better dev BLEU; None for never.
    """

    max_steps: Steps = 20_000
    max_epochs: Annotated[int, Range(1)] | None = None
    phases: Sequence[Phase] | None = None
    batch_tokens: Annotated[int, Range(4)] = 4096
    microbatch_tokens: Annotated[int, Range(4)] | None = None
    length_multiple: Annotated[int, Range(1)] = 1
    clip_norm: Annotated[float, Range(0, open_low=True)] | None = 5.0
    max_nonfinite_updates: Annotated[int, Range(1)] = 25
    subword_sampling: Annotated[float, Range(0, 1)] = 0.0
    ema_decay: Annotated[float, Range(0, 1, open_high=True)] | None = None
    prefetch_batches: Annotated[int, Range(0)] = 2
    log_every_steps: Steps = 50
    gradient_norms_every_steps: Steps | None = None
    evaluate_every_steps: Steps = 500
    save_every_steps: Steps = 500
    keep_checkpoints: Annotated[int, Range(1)] = 3
    patience_evaluations: Annotated[int, Range(1)] | None = None
    num_sample_translations: Annotated[int, Range(0)] = 5
    evaluation_batch_size: Annotated[int, Range(1)] = 64

    def __post_init__(self) -> None:
        if self.phases is not None:
            check_phases(self.phases)
