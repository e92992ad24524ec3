"""Compare the search of a trained checkpoint with the plain oracle, and with itself in other batches.

  python tests/by_hand/search_on_real_sentences.py runs/x/best.pt dev.en 500 20

The script prints how many of the first N lines (here 500) agree, in fp32 with the recorded search options. Two results
agree if their token ids are equal or their scores differ by less than 1e-5. The oracle searches the best 2K tokens of
each hypothesis, which are all that search can select, and for the first lines (here 20) the whole vocabulary, which
takes far longer. The script is run by hand, because it needs a trained checkpoint and real text.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from gnmt.logs import progress_bar

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "decoding"))
from oracle_search import oracle_search

import gnmt.decoding.translator as translator_module
from gnmt.batch import EOS_ID
from gnmt.checkpoint.load import load_model
from gnmt.decoding.search import Hypothesis, search
from gnmt.decoding.translator import Translator
from gnmt.fileio import read_lines
from gnmt.model.interfaces import DecoderState, Memory
from gnmt.model.seq2seq import Seq2Seq

TOLERANCE = 1e-5
# Token ids and score of one result, and those of the result that it is compared with.
Pair = tuple[tuple[int, ...], float, tuple[int, ...], float]


class BestTokens:
    """A model in which all but the best `count` possible tokens of each hypothesis have probability 0.

    With 2K tokens, search cannot select any other. The oracle makes an object of every candidate, so this makes it
    about a thousand times as fast.
    """

    def __init__(self, model: Seq2Seq, count: int, suppressed: Sequence[int]) -> None:
        self.encode, self.start, self.model, self.count = model.encode, model.start, model, count
        self.suppressed_N = torch.tensor(list(suppressed))

    def step(
        self, tokens_BK: Tensor, state: DecoderState, memory: Memory
    ) -> tuple[Tensor, Tensor | None, DecoderState]:
        """Step the model, and set the log-probabilities of all but the best tokens to -inf."""
        log_probs_BKV, attention_BKS, state = self.model.step(tokens_BK, state, memory)
        log_probs_BKV = log_probs_BKV.index_fill(2, self.suppressed_N, -torch.inf)
        lowest_BK1 = log_probs_BKV.topk(self.count, dim=2).values[:, :, -1:]
        return log_probs_BKV.masked_fill(log_probs_BKV < lowest_BK1, -torch.inf), attention_BKS, state


def main(checkpoint: str, text: str, count: int, num_with_vocabulary: int) -> None:
    loaded = load_model(checkpoint, torch.device("cpu"))
    model, translator = loaded.model.eval(), Translator.from_loaded([loaded], "fp32", batch_size=8)
    translator_module.CHUNK_BATCHES, translator_module.SMALLEST_CHUNK = 3, 1
    options, suppressed = translator.options, translator.suppressed
    encode = translator.tokenizers.source.encode
    lines = [line for line in islice(read_lines(text), count) if line.strip()]
    sources = [[*encode(line), EOS_ID] for line in lines]

    def found_by(some: list[list[int]], batch_size: int, with_model=model) -> list[Hypothesis]:
        results = search(
            with_model, some, options, device=torch.device("cpu"), suppressed=suppressed, batch_size=batch_size
        )
        return [result.hypotheses[0] for result in results]

    reference = found_by(sources, 32)
    others = {
        "batch size 1": found_by(sources, 1),
        "batch size 3": found_by(sources, 3),
        "inference copy": found_by(sources, 32, translator.search_model),
    }
    for name, hypotheses in others.items():
        pairs = zip(reference, hypotheses, strict=True)
        report(name, [(one.tokens, one.score, other.tokens, other.score) for one, other in pairs])
    report(f"shuffled, in chunks of {translator.chunk_lines} lines", in_both_orders(translator, lines))

    best_tokens = BestTokens(model, 2 * options.beam_size, suppressed)
    for name, searched, number in (
        ("best tokens", best_tokens, count),
        ("the whole vocabulary", model, num_with_vocabulary),
    ):
        start, compared = time.monotonic(), []
        for source, hypothesis in zip(progress_bar(sources[:number], unit=" lines"), reference, strict=False):
            with torch.inference_mode():
                paths, _ = oracle_search(searched, source[:-1], options, suppressed)  # it adds EOS itself
            compared.append((hypothesis.tokens, hypothesis.score, tuple(paths[0].tokens), paths[0].score(options)))
        report(f"the oracle over {name}, {time.monotonic() - start:.0f} s", compared)


def in_both_orders(translator: Translator, lines: list[str]) -> list[Pair]:
    """Translate the lines in their order and in a random order, and return both results in the order of `lines`.

    There must be many chunks. A chunk is sorted by length, so the order of lines within a chunk has no effect, but it
    decides which lines share a chunk.
    """
    assert len(lines) > 4 * translator.chunk_lines, "too few lines for an order to matter"
    shuffled = random.Random(1).sample(range(len(lines)), len(lines))
    straight = list(translator.stream(lines))
    in_other_order = dict(zip(shuffled, translator.stream(lines[index] for index in shuffled), strict=True))
    others = [in_other_order[index] for index in range(len(lines))]
    return [(one.tokens, one.score, other.tokens, other.score) for one, other in zip(straight, others, strict=True)]


def report(name: str, compared: list[Pair]) -> None:
    """Print how many pairs of results are equal or agree, and each pair that does not agree."""
    equal = sum(tokens == other for tokens, _, other, _ in compared)
    apart = [abs(score - other) for _, score, _, other in compared]
    agreeing = sum(one[0] == one[2] or gap < TOLERANCE for one, gap in zip(compared, apart, strict=True))
    print(f"{name}: {len(compared)} sentences, {equal} with equal tokens, {agreeing} agree, gap {max(apart):.1e}")
    for number, (tokens, score, other_tokens, other_score) in enumerate(compared, start=1):
        if tokens != other_tokens and abs(score - other_score) >= TOLERANCE:
            print(f"  sentence {number}: {score:.6f} {tokens}\n  against {other_score:.6f} {other_tokens}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
