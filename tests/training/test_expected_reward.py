"""The expected reward: its gradient by enumeration, its samples, its parts, and whole runs with it."""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from run_outcome import differences, outcome
from torch import Tensor

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, Batch, padded
from gnmt.checkpoint.file import read_checkpoint
from gnmt.config.build import resolve
from gnmt.config.cli import CONFIG_FOLDER
from gnmt.data.batching import batch_of
from gnmt.errors import InputError
from gnmt.model.attention import AdditiveAttention
from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.recurrent.gnmt_decoder import GNMTDecoder
from gnmt.model.seq2seq import Seq2Seq
from gnmt.training.expected_reward import ExpectedReward, ExpectedRewardOptions, Samples
from gnmt.training.objective import LabelSmoothedCrossEntropy, Objective
from gnmt.training.rewards import subword_gleu
from gnmt.training.train import check_objective

CPU = torch.device("cpu")
VOCABULARY_SIZE = 5  # the four special ids, all of which can be drawn, and one subword
SOURCE = (4, 4, EOS_ID)
AT_MOST_2 = [(EOS_ID,), *product((0, 1, 2, 4), range(VOCABULARY_SIZE))]
"""All outcomes of drawing up to two tokens."""


def tiny_model(dropout: float = 0.5, cell: str = "lstm") -> Seq2Seq:
    """Return a model in fp64 with dropout everywhere, in training mode."""
    torch.manual_seed(3)
    encoder = LSTMEncoder(4, 4, 1, 1, dropout=dropout, cell=cell)
    attention = AdditiveAttention(4, encoder.output_size, 3)
    decoder = GNMTDecoder(4, 4, 2, attention, dropout=dropout, cell=cell)
    sizes = (VOCABULARY_SIZE, VOCABULARY_SIZE, 4)
    dropouts = {"output_dropout": dropout, "word_dropout": dropout, "memory_dropout": dropout}
    return Seq2Seq(encoder, decoder, *sizes, init_range=1.0, **dropouts).double().train()


def expected_reward(model: Seq2Seq, reward=subword_gleu, **options) -> ExpectedReward:
    loss = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, (0, 2)).double()
    defaults = {"max_length_factor": 0.0, "max_length_offset": 2}
    return ExpectedReward(model, loss, ExpectedRewardOptions(**defaults | options), reward).train()


def log_prob(model: Seq2Seq, tokens: tuple[int, ...]) -> Tensor:
    """Return log P(tokens | SOURCE) without dropout: the plain chain rule, from all logits."""
    model.eval()
    hidden_BTH, _ = model.decode(padded([(BOS_ID, *tokens[:-1])], CPU), model.encode(padded([SOURCE], CPU)))
    log_probs_TV = model.output(hidden_BTH)[0].log_softmax(1)
    model.train()
    return sum((log_probs_TV[step, token] for step, token in enumerate(tokens)), torch.zeros(()))


def gradient(loss: Tensor, model: Seq2Seq) -> Tensor:
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    pairs = zip(gradients, model.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(weight) if found is None else found).flatten() for found, weight in pairs])


def reward_of(tokens: tuple[int, ...]) -> float:
    """Return an arbitrary reward, different for each outcome."""
    return math.sin(1.0 + sum((index + 1) * (token + 1) ** 2 for index, token in enumerate(tokens)))


@pytest.mark.parametrize("num_samples", [2, 3])
def test_the_expectation_over_all_samples_is_1_minus_1_over_m_times_the_exact_gradient(num_samples):
    model = tiny_model()
    log_probs = [log_prob(model, tokens) for tokens in AT_MOST_2]
    assert sum(map(torch.exp, log_probs)).item() == pytest.approx(1)
    risk = -sum(one.exp() * reward_of(tokens) for one, tokens in zip(log_probs, AT_MOST_2, strict=True))
    exact = gradient(risk, model)

    # Each tuple of samples is a sentence. The estimate is linear in the rewards, so they carry the tuple's probability.
    tuples = list(product(range(len(AT_MOST_2)), repeat=num_samples))
    outcomes = torch.tensor(tuples)
    probabilities = torch.stack(log_probs).detach().exp()[outcomes].prod(1, keepdim=True)
    rewards = torch.tensor([reward_of(tokens) for tokens in AT_MOST_2], dtype=torch.float64)[outcomes]
    objective = expected_reward(model, lambda *_: probabilities * rewards, num_samples=num_samples)
    samples = Samples([[AT_MOST_2[one] for one in some] for some in tuples], torch.zeros(len(tuples), num_samples))
    loss = objective.reward_loss(padded([SOURCE] * len(tuples), CPU), samples, [()] * len(tuples))
    torch.testing.assert_close(loss, risk, rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient(loss, model), (1 - 1 / num_samples) * exact, rtol=1e-7, atol=1e-12)
    assert exact.norm() > 0.01


def test_samples_have_the_probabilities_of_the_model_and_none_is_suppressed():
    model = tiny_model()
    objective = expected_reward(model, num_samples=4000)
    objective.begin_update(1, 7)
    state = torch.get_rng_state()
    samples = objective.draw([SOURCE], [5])
    assert torch.equal(torch.get_rng_state(), state), "dropout of the likelihood term must not depend on the samples"
    assert model.training
    counts = Counter(samples.tokens[0])
    assert set(counts) <= set(AT_MOST_2)
    for tokens in AT_MOST_2:
        probability = log_prob(model, tokens).exp().item()
        assert abs(counts[tokens] / 4000 - probability) <= 4.5 * math.sqrt(probability * (1 - probability) / 4000)
    assert any(PAD_ID in tokens for tokens in counts)
    expected = [log_prob(model, tokens).item() for tokens in samples.tokens[0][:50]]
    assert samples.log_prob_BK[0, :50].tolist() == pytest.approx(expected, abs=1e-5)


def test_samples_depend_on_seed_update_and_pair_alone():
    objective = expected_reward(tiny_model(), num_samples=20)
    sources = [SOURCE, (4, EOS_ID), (4, 4, 4, 4, EOS_ID)]

    def drawn(seed: int, step: int, order: list[int]) -> dict[int, list[tuple[int, ...]]]:
        objective.begin_update(seed, step)
        samples = objective.draw([sources[index] for index in order], [10 + index for index in order])
        return dict(zip(order, samples.tokens, strict=True))

    first = drawn(1, 7, [0, 1, 2])
    assert drawn(1, 7, [2, 0]) == {index: first[index] for index in (2, 0)}
    assert drawn(1, 8, [0])[0] != first[0]
    assert drawn(2, 7, [0])[0] != first[0]
    objective.begin_update(1, 7)
    assert objective.draw([SOURCE], [11]).tokens[0] != first[0]


def test_minimum_risk_training_is_the_gradient_of_the_renormalized_risk():
    """The probabilities are renormalized over the different samples: a repeated one counts once."""
    model, sharpness = tiny_model(), 0.7
    of_both = [[(4, 4), (EOS_ID,), (4, EOS_ID), (4, 4)], [(1, 4), (1, 4), (1, 4), (1, 4)]]
    risk = torch.zeros(())
    for some in of_both:
        distinct = list(dict.fromkeys(some))
        scaled = torch.stack([sharpness * log_prob(model, tokens) for tokens in distinct])
        rewards = torch.tensor([reward_of(tokens) for tokens in distinct], dtype=torch.float64)
        risk = risk - (scaled.softmax(0) * rewards).sum()
    reward_BK = torch.tensor([[reward_of(tokens) for tokens in some] for some in of_both], dtype=torch.float64)
    objective = expected_reward(model, lambda *_: reward_BK, num_samples=4, sharpness=sharpness)
    log_probs = torch.stack([torch.stack([log_prob(model, tokens) for tokens in some]) for some in of_both]).detach()
    loss = objective.reward_loss(padded([SOURCE] * 2, CPU), Samples(of_both, log_probs), [()] * 2)
    torch.testing.assert_close(loss, risk.double(), rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient(loss, model), gradient(risk, model), rtol=1e-7, atol=1e-12)


def three_pairs() -> Batch:
    return batch_of([[4, 4], [4], [4, 4, 4]], [[4], [4, 4, 4], [4, 1]], np.arange(3))


def test_the_loss_is_the_weighted_sum_of_both_terms_and_only_the_likelihood_has_dropout():
    model, batch = tiny_model(), three_pairs()
    objective = expected_reward(model, num_samples=6, likelihood_weight=0.3)
    objective.begin_update(1, 0)
    torch.manual_seed(5)
    loss, num_tokens = objective(batch)
    found = gradient(loss, model)
    assert num_tokens == batch.num_labels

    objective.begin_update(1, 0)
    samples = objective.draw([[4, 4, EOS_ID], [4, EOS_ID], [4, 4, 4, EOS_ID]], [0, 1, 2])
    reward_term = objective.reward_loss(batch.source, samples, [[4], [4, 4, 4], [4, 1]])
    torch.manual_seed(5)
    cross_entropy, _ = Objective(model, objective.loss)(batch)
    torch.testing.assert_close(loss, 0.3 * cross_entropy + reward_term, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, gradient(0.3 * cross_entropy + reward_term, model), rtol=1e-9, atol=1e-12)
    again = objective.reward_loss(batch.source, samples, [[4], [4, 4, 4], [4, 1]])
    reward_term = objective.reward_loss(batch.source, samples, [[4], [4, 4, 4], [4, 1]])
    assert torch.equal(gradient(again, model), gradient(reward_term, model)), "the reward term has no dropout"
    assert objective(batch)[0] != loss, "the likelihood term has dropout"


def test_without_weight_the_likelihood_is_left_out():
    model = tiny_model()
    objective = expected_reward(model, num_samples=6, likelihood_weight=0.0)
    objective.begin_update(1, 0)
    losses = [objective(three_pairs()) for _ in range(2)]
    assert torch.equal(*(loss for loss, _ in losses))
    assert losses[0][1] == three_pairs().num_labels
    assert -3 <= losses[0][0] <= 0


def test_in_evaluation_mode_the_loss_is_the_cross_entropy():
    model, batch = tiny_model(), three_pairs()
    objective = expected_reward(model).eval()
    plain = Objective(model, LabelSmoothedCrossEntropy(VOCABULARY_SIZE, (0, 2)).double()).eval()
    assert torch.equal(objective(batch)[0], plain(batch)[0])


def test_statistics_are_those_of_the_samples():
    objective = expected_reward(tiny_model(), num_samples=3)
    tokens = [[(4, EOS_ID), (4, 4), (EOS_ID,)], [(1, EOS_ID), (1, EOS_ID), (4, 1)]]
    log_probs = torch.tensor([[-1.0, -2.0, -0.5], [-1.5, -1.5, -3.0]])
    references = [[4, EOS_ID], [1, EOS_ID]]
    objective.begin_update(1, 0)
    objective.reward_loss(padded([SOURCE] * 2, CPU), Samples(tokens, log_probs), references)
    rewards = [[1.0, 1 / 3, 0.0], [1.0, 1.0, 1 / 3]]
    spreads = [np.std(row, ddof=1) for row in rewards]
    assert objective.scalars(objective.statistics_M.tolist()) == {
        "train/reward": pytest.approx(np.mean(rewards)),
        "train/reward_spread": pytest.approx(np.mean(spreads)),
        "train/sample_entropy": pytest.approx(9.5 / 11),
        "train/sample_length": pytest.approx(11 / 6),
    }
    assert objective.scalars([0.0] * 5) == {}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_draws_samples_and_agrees_with_the_cpu_on_their_loss():
    found = []
    for device in (CPU, torch.device("cuda")):
        model = tiny_model(dropout=0.0).to(device)
        objective = expected_reward(model, num_samples=3, likelihood_weight=0.3).to(device)
        objective.begin_update(1, 0)
        drawn = objective.draw([SOURCE, (4, EOS_ID)], [0, 1])
        assert [len(tokens) for tokens in drawn.tokens] == [3, 3]
        assert drawn.log_prob_BK.device.type == device.type
        tokens = [[(4, EOS_ID), (4, 4), (EOS_ID,)], [(1, EOS_ID), (1, EOS_ID), (4, 1)]]
        samples = Samples(tokens, torch.full((2, 3), -1.0, device=device))
        loss = objective.reward_loss(padded([SOURCE] * 2, device), samples, [[4, EOS_ID], [1, EOS_ID]])
        whole, _ = objective(three_pairs().to(device))
        assert whole.isfinite()
        found.append((loss.cpu(), gradient(loss, model).cpu()))
    torch.testing.assert_close(found[1], found[0])


def test_sampling_under_autocast_leaves_no_weights_without_gradients_behind():
    """Autocast caches the bf16 copies of the weights, and the search makes them without gradients."""
    model = tiny_model(dropout=0.0, cell="gru").float()  # not every CPU has a bf16 kernel for LSTMs
    objective = expected_reward(model, num_samples=8)
    objective.loss.float()
    exact = gradient(objective(three_pairs())[0], model)
    objective.begin_update(0, 0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = objective(three_pairs())
    found = torch.autograd.grad(loss, list(model.parameters()))
    assert all(part.isfinite().all() for part in found)
    similarity = torch.cosine_similarity(torch.cat([part.flatten() for part in found]), exact, dim=0)
    assert similarity > 0.9


def test_samples_are_cut_at_the_learned_positions_of_the_decoder(make_trainer):
    """Learned positions of a decoder have no vector for a longer target."""
    overrides = ("model=transformer_tiny", "model.encoder.learned_positions=40", "model.decoder.learned_positions=9")
    trainer = make_trainer(*overrides, "objective=expected_reward", "objective.max_length_offset=40")
    objective, sources = trainer.objective.train(), [[5, 6, EOS_ID]] * 2
    samples = objective.draw(sources, [0, 1])
    assert max(len(tokens) for some in samples.tokens for tokens in some) == 9
    assert objective.reward_loss(padded(sources, CPU), samples, [[5], [6]]).isfinite()


# Whole runs

REFINE = ("objective=expected_reward", "objective.num_samples=4", "trainer.batch_tokens=120", "optimizer.lr=0.002")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A list that holds best.pt of a run by maximum likelihood, once `start` has trained it."""
    return []


@pytest.fixture
def start(run, trained, tmp_path_factory) -> str:
    """The override that names a checkpoint."""
    if not trained:
        folder = tmp_path_factory.mktemp("trained")
        run(folder, "trainer.max_steps=30", "trainer.evaluate_every_steps=30")
        trained.append(folder / "best.pt")
    return f"initialize_from={trained[0]}"


def test_a_stopped_and_resumed_run_is_bitwise_that_of_one_run(run, start, tmp_path):
    """With microbatches, averaged weights, dropout, and a log line that covers updates before and after the stop."""
    command = (start, *REFINE, "trainer.microbatch_tokens=60", "trainer.ema_decay=0.9", "trainer.log_every_steps=5")
    command = (*command, "trainer.save_every_steps=3", "trainer.max_steps=5")
    run(tmp_path / "whole", *command)
    run(tmp_path / "split", *command)
    (tmp_path / "split" / "checkpoints" / "step_00000005.pt").unlink()
    run(tmp_path / "split", *command)
    expected = outcome(tmp_path / "whole")
    assert differences(outcome(tmp_path / "split"), expected) == []
    assert [step for step, _ in expected["train/reward"]] == [5]
    log = (tmp_path / "whole" / "train.log").read_text(encoding="utf-8")
    assert re.search(r"update 5/5, .*: loss -?\d.*, reward 0\.\d+, reward spread 0\.\d+, sample entropy \d", log)


def test_microbatches_give_the_gradient_of_the_whole_batch(make_trainer):
    found = []
    for microbatch_tokens in ("null", "60"):
        trainer = make_trainer(
            *REFINE, "model.encoder.dropout=0", "optimizer=sgd", "optimizer.lr=1.0", "trainer.clip_norm=null",
            f"trainer.microbatch_tokens={microbatch_tokens}",
        )  # fmt: skip
        before = copy.deepcopy(trainer.objective.model.state_dict())
        local_batch, metrics = next(trainer.stream), trainer.empty_metrics()
        assert (len(local_batch) > 1) is (microbatch_tokens != "null")
        trainer.update(local_batch, metrics)
        change = [before[name] - weight for name, weight in trainer.objective.model.state_dict().items()]
        found.append((torch.cat([part.flatten() for part in change]), metrics.statistics_M))
    (whole, statistics), (split, split_statistics) = found
    assert (whole - split).norm() <= 1e-5 * whole.norm()
    torch.testing.assert_close(split_statistics, statistics, rtol=1e-5, atol=1e-6)


def test_the_reward_of_samples_rises(run, start, tmp_path):
    settings = ("optimizer.lr=0.02", "trainer.max_steps=25", "trainer.log_every_steps=5")
    run(tmp_path, start, *REFINE, *settings, "objective.likelihood_weight=0")
    rewards = [reward for _, reward in outcome(tmp_path)["train/reward"]]
    assert rewards[-1] > 1.1 * rewards[0], rewards


def test_refusals_name_the_keys(run, start, tmp_path):
    for overrides, message in (
        (REFINE, r"objective: ExpectedReward refines a trained model, and initialize_from is null: train with"),
        (
            (start, *REFINE, "trainer.subword_regularization=0.1"),
            r"objective\.reward is subword_gleu, and trainer\.subword_regularization=0\.1 splits the references",
        ),
    ):
        with pytest.raises(InputError, match=message):
            run(tmp_path / "refused", *overrides, "data.train.source=nowhere", "data.preprocessed=nowhere")
    run(tmp_path / "allowed", start, *REFINE, "trainer.subword_regularization=0.1", "objective.reward=word_gleu",
        "trainer.max_steps=1")  # fmt: skip
    assert read_checkpoint(tmp_path / "allowed" / "last.pt")["step"] == 1


def test_minimum_risk_training_runs(run, start, tmp_path):
    settings = ("objective=minimum_risk", "objective.num_samples=4", "trainer.batch_tokens=120")
    run(tmp_path, start, *settings, "objective.reward=chrf", "trainer.max_steps=2")
    assert 0 < outcome(tmp_path)["train/reward"][0][1] < 1


def test_the_length_limit_of_samples_is_that_of_translations(make_trainer):
    options = make_trainer(*REFINE, "decoding.max_length_factor=1.5").objective.sampling
    assert (options.max_length_factor, options.max_length_offset, options.n_best) == (1.5, 2, 4)


def test_rewards_of_words_are_refused_for_target_languages_with_different_words():
    overrides = ["data=multilingual", "objective=expected_reward"]
    for language in ("de", "zh"):
        corpus = f"data.corpora.{language}"
        overrides += [f"+data@{corpus}=files", f"{corpus}.source_language=en", f"{corpus}.target_language={language}"]
        overrides += [f"{corpus}.{split}.{side}=a" for split in ("train", "dev") for side in ("source", "target")]

    def check(*further: str) -> None:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            check_objective(resolve(compose("train", [*overrides, *further])), given=True)

    for reward in ("word_gleu", "bleu"):
        with pytest.raises(
            InputError, match=rf"objective\.reward is {reward}, .* need several tokenizations \(13a, zh\)"
        ):
            check(f"objective.reward={reward}")
        check(f"objective.reward={reward}", "data.bleu_tokenize=char")
    check("objective.reward=chrf")
    check()
