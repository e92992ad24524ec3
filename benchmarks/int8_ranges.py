"""Compare int8 with scales by row and int8 with the ranges of training, for one checkpoint with quantizable layers.

python -m benchmarks.int8_ranges CHECKPOINT SOURCE REFERENCES [OTHER]

Translates the lines of SOURCE in fp32 and both kinds of int8, three times in turns after a warm-up, with as many
threads as OMP_NUM_THREADS says and the checkpoint's search options. Prints BLEU and the median time. OTHER is a
checkpoint without quantizable layers, which translates in fp32 and int8 in the same turns.
"""

from __future__ import annotations

import sys
from functools import partial
from statistics import median

import torch

from benchmarks.measuring import timed_in_turns
from gnmt.decoding.engine.inference_copy import inference_copy
from gnmt.decoding.ensemble import load_members
from gnmt.decoding.translator import Translator
from gnmt.device import Precision, int8_obstacle
from gnmt.evaluation.metrics import score_translations
from gnmt.fileio import read_lines

CPU = torch.device("cpu")
REPETITIONS = 3


def main(checkpoint: str, source: str, references: str, other: str | None = None) -> None:
    lines, expected = list(read_lines(source)), list(read_lines(references))
    translators = translators_of(checkpoint)
    if other is not None:
        members = load_members(other, CPU, ())
        translators |= {f"{name}, {other}": Translator.from_loaded(members, name) for name in ("fp32", "int8")}
    translations: dict[str, list[str]] = {}

    def translate(name: str) -> None:
        translations[name] = [translation.text for translation in translators[name].translate(lines)]

    seconds = timed_in_turns({name: partial(translate, name) for name in translators}, REPETITIONS, "cpu")
    print("| products | BLEU | seconds |")
    print("|---|---|---|")
    for name in translators:
        bleu = score_translations(translations[name], expected).bleu
        print(f"| {name} | {bleu:.2f} | {median(seconds[name]):.1f} |")


def translators_of(checkpoint: str) -> dict[str, Translator]:
    """Return a translator for each kind of products. Exits where the processor has no fast int8 products."""
    if obstacle := int8_obstacle(CPU):
        raise SystemExit(f"nothing to measure: {obstacle}")
    members = load_members(checkpoint, CPU, ())
    translators = {"fp32": Translator.from_loaded(members, "fp32")}
    for name, fixed_ranges in (("int8, scales by row", False), ("int8, ranges of training", True)):
        translators[name] = Translator.from_loaded(members, "int8")
        translators[name].search_model = inference_copy(members[0].model, Precision("int8", CPU), fixed_ranges)
    return translators


if __name__ == "__main__":
    main(*sys.argv[1:])
