"""Rewards of sampled translations: similarity to the reference, between 0 and 1.

`make_reward` returns the reward with a name. GLEU on subwords is computed on the device (`gleu_of_ids`). The others
compare texts on the host: GLEU on words by gnmt.evaluation.metrics, BLEU and chrF of sentences by sacreBLEU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Literal

import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from torch import Tensor

from gnmt.batch import Tokens, padded
from gnmt.data.tokenizer import AnyTokenizer
from gnmt.evaluation.metrics import GLEU_ORDER, sentence_gleu, word_splitter

RewardName = Literal["subword_gleu", "word_gleu", "bleu", "chrf"]

WORD_REWARDS = ("word_gleu", "bleu")
"""The rewards that need a tokenization of text into words."""

Ids = Sequence[int]
"""Target ids of a sentence, without BOS and EOS."""

Reward = Callable[[Sequence[Sequence[Ids]], Sequence[Ids], torch.device], Tensor]
"""A function of K samples of each of B sentences and of the B references. It returns fp32 [B, K] on the device, without
waiting for it."""


def make_reward(name: RewardName, tokenizer: AnyTokenizer, bleu_tokenize: str) -> Reward:
    """Return the reward with a name.

    Args:
        name: subword_gleu or word_gleu (Wu et al. 2016, section 5), or bleu or chrf, sacreBLEU's of one sentence; BLEU
            has exponential smoothing and effective order.
        tokenizer: The target tokenizer, which turns ids into text.
        bleu_tokenize: Tokenization of BLEU, which also splits text into the words of word_gleu.
    """
    if name == "subword_gleu":
        return subword_gleu
    if name == "word_gleu":
        split = word_splitter(bleu_tokenize)
        return text_reward(lambda text, reference: sentence_gleu(split(text), split(reference)), tokenizer)
    metric = BLEU(tokenize=bleu_tokenize, effective_order=True) if name == "bleu" else CHRF()
    return text_reward(lambda text, reference: metric.sentence_score(text, [reference]).score / 100, tokenizer)


def text_reward(similarity: Callable[[str, str], float], tokenizer: AnyTokenizer) -> Reward:
    """Return a reward that compares the text of each sample with that of its reference."""

    def reward(samples: Sequence[Sequence[Ids]], references: Sequence[Ids], device: torch.device) -> Tensor:
        rows = []
        for of_sentence, reference in zip(samples, references, strict=True):
            reference_text = tokenizer.decode(reference)
            rows.append([similarity(tokenizer.decode(ids), reference_text) for ids in of_sentence])
        return torch.tensor(rows, dtype=torch.float32).to(device, non_blocking=True)

    return reward


def subword_gleu(samples: Sequence[Sequence[Ids]], references: Sequence[Ids], device: torch.device) -> Tensor:
    """Return the sentence GLEU of each sample, with subwords as tokens; it is a `Reward`."""
    num_samples = len(samples[0])
    reference = padded(references, device)
    repeated = Tokens(*(tensor.repeat_interleave(num_samples, dim=0) for tensor in reference))
    return gleu_of_ids(padded(list(chain.from_iterable(samples)), device), repeated).view(-1, num_samples)


def gleu_of_ids(hypothesis: Tokens, reference: Tokens) -> Tensor:
    """Return `gnmt.evaluation.metrics.sentence_gleu` of each row of ids, fp32 [N].

    All pairs of positions are compared, and n-grams are equal where (n-1)-grams and the next ids are equal. The j-th
    copy of an n-gram in the hypothesis matches if the reference has at least j copies of it.

    Args:
        hypothesis: Ids of N translations, without BOS and EOS.
        reference: Ids of their references. Shapes: T positions of the translation, R positions of the reference.
    """
    ids_NT, ids_NR = hypothesis.ids_BT, reference.ids_BT
    same_NTT = ids_NT[:, :, None] == ids_NT[:, None, :]
    same_NTR = (ids_NT[:, :, None] == ids_NR[:, None, :]) & reference.mask_BT[:, None, :]
    equal_NTT, equal_NTR = same_NTT, same_NTR
    lengths_2N = torch.stack((hypothesis.lengths_B, reference.lengths_B))
    num_matches_N, num_ngrams_2N = torch.zeros_like(lengths_2N[0]), torch.zeros_like(lengths_2N)
    for size in range(1, GLEU_ORDER + 1):
        if size > 1:  # a position stands for the n-gram that begins there
            equal_NTT = equal_NTT[:, :-1, :-1] & same_NTT[:, size - 1 :, size - 1 :]
            equal_NTR = equal_NTR[:, :-1, :-1] & same_NTR[:, size - 1 :, size - 1 :]
        of_size_2N = (lengths_2N - (size - 1)).clamp(min=0)
        is_ngram_NT = torch.arange(equal_NTT.shape[1], device=ids_NT.device) < of_size_2N[0, :, None]
        copy_NT = equal_NTT.tril().sum(2)
        num_matches_N += ((copy_NT <= equal_NTR.sum(2)) & is_ngram_NT).sum(1)
        num_ngrams_2N += of_size_2N
    gleu_N: Tensor = num_matches_N / num_ngrams_2N.amax(0).clamp(min=1)
    return gleu_N
