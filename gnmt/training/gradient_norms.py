"""How large the gradient is in each layer, update by update: whether it vanishes or explodes on its way down."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from gnmt.files import write_atomically
from gnmt.reporting.gradient_norms import FILE_NAME, place_of_layer
from gnmt.reporting.tensorboard import Reporter

log = logging.getLogger(__name__)

TAG = "train/gradient_norm_by_layer"

_NUMBER = re.compile(r"\.(\d+)(?:\.|$)")


def layer_of(name: str) -> str:
    """The layer of the model's parameter of that name.

    encoder.1, encoder.2 … from the bottom, and so decoder.1 …: a layer has all that repeats with it, its own attention
    to the source included (Transformer, convolutional). attention: the one that layers share. embeddings: all tables,
    also one that is the output layer's weight. output: the layer to the vocabulary. encoder.other, decoder.other: what
    no number in the name assigns to a layer, such as a projection or a last normalisation.
    """
    part, _, rest = name.partition(".")
    if part.endswith("embedding"):
        return "embeddings"
    if part == "output_layer":
        return "output"
    if rest.startswith("attention."):
        return "attention"
    if rest.startswith("bottom."):  # of GNMT's decoder, which keeps the layers above it apart
        return f"{part}.1"
    number = _NUMBER.search(name)
    if number is None:
        return f"{part}.other"
    return f"{part}.{int(number[1]) + (2 if rest.startswith('upper.') else 1)}"


def layers_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of each layer, from the embeddings up to the output; tied ones once."""
    layers: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        layers.setdefault(layer_of(name), []).append(parameter)
    return {name: layers[name] for name in sorted(layers, key=place_of_layer)}


class GradientNorms:
    """Records the norms of the whole batch's gradient, before clipping, and writes them when it is told to.

    Until then they stay on the device, so that no update waits for them. every_steps: updates between records; None for
    none, which costs nothing. folder: the run's, where `FILE_NAME` is appended to; TensorBoard gets `TAG`/<layer>.
    """

    def __init__(self, model: nn.Module, every_steps: int | None, folder: Path, reporter: Reporter) -> None:
        self.every_steps = every_steps
        self.path = folder / FILE_NAME
        self.reporter = reporter
        self.layers = {} if every_steps is None else layers_of(model)
        self._step = 0
        self._pending: list[tuple[int, Tensor]] = []

    def begin(self, step: int) -> None:
        """The next update is the one after that; what an interrupted run had written of later ones is dropped."""
        self._step = step
        if not self.path.exists():
            return
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if (update := _update_of(line)) is not None and update <= step]
            if kept != lines:
                write_atomically(self.path, b"".join(kept))
        except OSError as error:
            self._give_up(error)

    def take(self) -> None:
        """Once in every update, when its gradients are whole; keeps their norms where it is one to record."""
        self._step += 1
        if self.every_steps is not None and self._step % self.every_steps == 0:
            norms = [_norm_of(parameters) for parameters in self.layers.values()]
            self._pending.append((self._step, torch.stack(norms)))

    def write(self) -> None:
        """Writes what was taken since the last time. The one place where the host waits for it."""
        if not self._pending:
            return
        rows = torch.stack([norms for _, norms in self._pending]).tolist()
        updates = [update for update, _ in self._pending]
        self._pending.clear()
        lines = []
        for update, row in zip(updates, rows, strict=True):
            finite = {
                layer: norm if math.isfinite(norm) else None for layer, norm in zip(self.layers, row, strict=True)
            }
            lines.append(json.dumps({"update": update, "norms": finite}) + "\n")
            for layer, norm in finite.items():
                if norm is not None:
                    self.reporter.scalar(f"{TAG}/{layer}", norm, update)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """A full disk costs the records, and not the run."""
        log.error("%s cannot be written (%s): no more gradient norms are recorded", self.path, error)
        self.every_steps = None


def _norm_of(parameters: Sequence[nn.Parameter]) -> Tensor:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return nn.utils.get_total_norm(gradients).float() if gradients else parameters[0].new_zeros((), dtype=torch.float)


def _update_of(line: bytes) -> int | None:
    """The update that a line is of; None for one that was cut off."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record["update"] if isinstance(record, Mapping) and isinstance(record.get("update"), int) else None
