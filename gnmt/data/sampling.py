"""Random samples of the training pairs, as `data.max_pairs` takes them.

Each pair of a corpus has a random key, and a sample of N pairs holds the pairs with the N smallest keys, in their order
in the corpus. All sets of N pairs are equally probable, and a larger sample of a corpus contains every smaller one. The
keys depend only on the number of the pair, so the sample is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnmt.data.parallel_text import ParallelText
from gnmt.fileio import FileFingerprint

SEED = 1
"""The seed of the keys. It is fixed, so that two samples of one corpus are nested."""


@dataclass(frozen=True)
class SampledText:
    """The pairs of a text that are in a sample.

    Args:
        text: The text.
        is_sampled_N: bool [N], for each pair of the text whether the sample has it.
    """

    text: ParallelText
    is_sampled_N: NDArray[np.bool_]

    def iterate(self) -> Iterator[tuple[str, str]]:
        yield from compress(self.text.iterate(), self.is_sampled_N)

    def fingerprint(self, known: Mapping[str, FileFingerprint]) -> dict[str, Any]:
        """Return the fingerprint of the text; the settings of the corpus hold the size of the sample."""
        return self.text.fingerprint(known)

    def numbers(self) -> Iterator[int]:
        """Yield the number of each sampled pair in the text, from 1."""
        yield from (int(index) + 1 for index in np.flatnonzero(self.is_sampled_N))


def sample(num_pairs: Sequence[int], size: int) -> list[NDArray[np.bool_]]:
    """Draw a sample from several texts, each of whose pairs has the same probability.

    While it is drawn, this needs 17 bytes of memory per pair; the result has one byte per pair.

    Args:
        num_pairs: Number of pairs of each text.
        size: Size of the sample, at most the sum of `num_pairs`.

    Returns:
        bool [N] for each text: whether the sample has the pair.
    """
    # The stream of a bit generator, unlike the methods of np.random.Generator, is the same in all versions of NumPy.
    keys_N = np.random.PCG64(SEED).random_raw(sum(num_pairs))
    is_sampled_N = np.zeros(len(keys_N), dtype=np.bool_)
    is_sampled_N[np.argpartition(keys_N, size - 1)[:size]] = True
    return np.split(is_sampled_N, np.cumsum(num_pairs)[:-1])
