"""Evaluation on the dev set: loss, translations, and refused options."""

from __future__ import annotations

import math
from functools import wraps

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical

from gnmt.batch import EOS_ID
from gnmt.data.batching import batch_of
from gnmt.decoding.translator import Translator
from gnmt.errors import InputError
from gnmt.evaluation.metrics import Scores
from gnmt.training.dev_evaluation import (
    MAX_PAIR_TOKENS,
    DevEvaluator,
    DevResult,
    max_measured_subwords,
    mean_attention_entropy,
    mean_loss,
    sum_entropy,
)


@pytest.fixture
def evaluator(make_trainer) -> DevEvaluator:
    evaluator = make_trainer().evaluate
    evaluator.objective.train()  # as training leaves it
    return evaluator


@torch.no_grad()
def plain_loss(evaluator: DevEvaluator) -> float:
    """Return the unsmoothed nats per target token with EOS, computed one sentence at a time without dropout."""
    model, tokenizers = evaluator.objective.model.eval(), evaluator.tokenizers
    total, count = 0.0, 0
    for source, target in zip(evaluator.sources, evaluator.references, strict=True):
        batch = batch_of([tokenizers.source.encode(source)], [tokenizers.target.encode(target)], np.array([0]))
        hidden_BTH, _ = model.decode(batch.target_input, model.encode(batch.source))
        total += F.cross_entropy(model.output(hidden_BTH)[0], batch.labels.ids_BT[0], reduction="sum").item()
        count += batch.labels.ids_BT.numel()
    return total / count


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_loss_is_the_unsmoothed_mean_over_tokens(evaluator, batch_size):
    """A mean over batches would depend on their size."""
    evaluator.batch_size = batch_size
    assert mean_loss(evaluator.losses()) == pytest.approx(plain_loss(evaluator), rel=1e-5)


ARCHITECTURES = {
    "gnmt_tiny": (),
    "attention": ("model.encoder.hidden_size=16",),
    "transformer_tiny": ("model.tie_embeddings=none",),
    "convolutional_small": (),
    "rnmt_plus_small": ("model.tie_embeddings=none",),
    "hybrid": ("model.encoder.feed_forward_size=32",),
    "hybrid_reverse": (),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_the_entropy_of_the_attention_is_the_mean_over_target_tokens(make_trainer, name):
    """It is computed here from single sentences, which have no padding."""
    evaluator = make_trainer(f"model={name}", "model.embedding_size=32", *ARCHITECTURES[name]).evaluate
    evaluator.batch_size = 3
    found = mean_attention_entropy(evaluator.losses())
    model, tokenizers = evaluator.objective.model.eval(), evaluator.tokenizers
    entropies = []
    for source, target in zip(evaluator.sources, evaluator.references, strict=True):
        batch = batch_of([tokenizers.source.encode(source)], [tokenizers.target.encode(target)], np.array([0]))
        _, attention_BTS = model.decode(batch.target_input, model.encode(batch.source), attention=True)
        entropies += [Categorical(probs=weights_S).entropy().item() for weights_S in attention_BTS[0]]
    assert found == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)
    longest = max(len(tokenizers.source.encode(source)) + 1 for source in evaluator.sources)
    assert 0 < found <= math.log(longest)


def test_attention_without_weight_on_a_token_has_finite_entropy():
    attention_BTS = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [math.nan, math.nan, math.nan]]])
    mask_BT = torch.tensor([[True, True, False]])
    assert sum_entropy(attention_BTS, mask_BT).item() == pytest.approx(math.log(2))


def test_pairs_with_a_blank_side_have_no_loss_but_their_translations_count(evaluator):
    expected = mean_loss(evaluator.losses())
    evaluator.sources, evaluator.references = ["", *evaluator.sources], ["ein Haus.", *evaluator.references]
    assert mean_loss(evaluator.losses()) == expected
    assert len(evaluator().translations) == len(evaluator.sources)


def test_pairs_with_more_tokens_than_learned_positions_have_no_loss(evaluator):
    """Once, one such dev sentence ended the run at its first evaluation."""
    lengths = sorted(len(evaluator.tokenizers.target.encode(text)) for text in evaluator.references)
    assert lengths[0] < lengths[-1]
    num_tokens = sum(length + 1 for length in lengths)
    assert sum(batch.num_tokens for batch in evaluator.losses().values()) == num_tokens
    evaluator.objective.model.decoder.max_tokens = lengths[-1] + 1  # BOS and all subwords
    assert sum(batch.num_tokens for batch in evaluator.losses().values()) == num_tokens
    evaluator.objective.model.decoder.max_tokens = lengths[-1]
    left = [length for length in lengths if length < lengths[-1]]
    assert sum(batch.num_tokens for batch in evaluator.losses().values()) == sum(length + 1 for length in left)
    assert max_measured_subwords(None) == MAX_PAIR_TOKENS  # once, it was one fewer


def test_the_first_translation_has_its_attention_for_the_figure(evaluator):
    result = evaluator()
    first, *others = result.translations
    width = len(evaluator.tokenizers.source.encode(result.sources[0])) + 1
    assert first.attention_TS.shape == (len(first.tokens), width)
    assert {translation.attention_TS for translation in others} == {None}
    translator = Translator(evaluator.objective.model, evaluator.tokenizers, evaluator.options, evaluator.precision)
    assert first.text == translator.translate(result.sources[:1])[0].text


def test_every_sentence_is_translated_once(evaluator, monkeypatch):
    """Once, the first sentence was translated again alone for its attention, which could change its translation."""
    read, stream = [], Translator.stream

    @wraps(stream)
    def recorded(self, lines, **how):
        read.extend(lines)
        return stream(self, lines, **how)

    monkeypatch.setattr(Translator, "stream", recorded)
    evaluator()
    assert read == evaluator.sources


def test_each_evaluation_uses_the_current_weights(evaluator):
    """A translator copies the weights, so one kept between evaluations would translate with old weights."""
    before = [translation.score for translation in evaluator().translations]
    with torch.no_grad():
        evaluator.objective.model.output_layer.bias[EOS_ID] += 5.0
    after = [translation.score for translation in evaluator().translations]
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_evaluation_suppresses_the_unused_ids(evaluator):
    produced = {token for translation in evaluator().translations for token in translation.tokens} - {EOS_ID}
    evaluator.unused_target_ids = sorted(produced)
    assert not produced & {token for translation in evaluator().translations for token in translation.tokens}


def test_perplexity_is_the_exponential_of_the_loss_and_may_be_infinite():
    scores = Scores(10.0, 20.0, 25.0, None, 30.0, {}, 1)
    assert DevResult(math.log(7), scores, [], [], [], None).perplexity == pytest.approx(7)
    assert DevResult(1e4, scores, [], [], [], None).perplexity == math.inf
    assert DevResult(2.0, scores, [], [], [], None).scalars() == {
        "dev/loss": 2.0,
        "dev/perplexity": math.exp(2.0),
        "dev/bleu": 10.0,
        "dev/chrf": 20.0,
        "dev/chrfpp": 25.0,
        "dev/gleu": 30.0,
    }


def test_coverage_without_attention_is_refused_before_training_starts(make_trainer):
    """A refusal at the first evaluation would lose an hour of training."""
    with pytest.raises(InputError, match=r"decoding.coverage_beta is 0\.1, but this model has no attention"):
        make_trainer("model=seq2seq", "model.embedding_size=8", "decoding.coverage_beta=0.1")


def test_a_model_without_attention_is_evaluated_without_a_figure(make_trainer):
    result = make_trainer("model=seq2seq", "model.embedding_size=8", "decoding.coverage_beta=0").evaluate()
    assert math.isfinite(result.loss)
    assert result.translations[0].attention_TS is None
    assert result.attention_entropy is None
    assert "dev/attention_entropy" not in result.scalars()
