"""The chunked loss equals its plain formula, in values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import gnmt.training.objective as loss_module
from gnmt.training.objective import LabelSmoothedCrossEntropy

NUM_TOKENS, HIDDEN_SIZE, VOCABULARY_SIZE = 11, 5, 7
NEVER = (0, 1, 2)
LABELS_N = torch.tensor([3, 4, 5, 6, 3, 3, 6, 5, 4, 4, 3])


@pytest.fixture(autouse=True, params=[1, 2], ids=["as they come", "in twos"])
def small_chunks(monkeypatch, request):
    """Three chunks of four tokens; the last one is not full, or is padded with a row."""
    monkeypatch.setattr(loss_module, "CHUNK_ROWS", 4)
    monkeypatch.setattr(loss_module, "ROW_MULTIPLE", {"cpu": request.param})


def parts(dtype: torch.dtype = torch.float32) -> tuple[Tensor, nn.Linear]:
    torch.manual_seed(1)
    hidden_NH = torch.randn(NUM_TOKENS, HIDDEN_SIZE, dtype=dtype, requires_grad=True)
    return hidden_NH, nn.Linear(HIDDEN_SIZE, VOCABULARY_SIZE, dtype=dtype)


def plain_loss(hidden_NH: Tensor, layer: nn.Linear, smoothing: float, logit_bound: float = 1e9) -> Tensor:
    """Return -sum of q log p, where q gives 1 - s to the label and spreads s over all ids that can occur."""
    allowed = [id for id in range(VOCABULARY_SIZE) if id not in NEVER]
    total = torch.zeros((), dtype=hidden_NH.dtype)
    for hidden_H, label in zip(hidden_NH, LABELS_N.tolist(), strict=True):
        logits_V = (layer.weight @ hidden_H + layer.bias).clamp(-logit_bound, logit_bound)
        log_probs_V = torch.log_softmax(logits_V, dim=0)
        for id in allowed:
            probability = smoothing / len(allowed) + (1 - smoothing if id == label else 0)
            total = total - probability * log_probs_V[id]
    return total


def gradients(loss: Tensor, hidden_NH: Tensor, layer: nn.Linear) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, (hidden_NH, layer.weight, layer.bias))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_the_loss_equals_the_plain_formula(smoothing):
    hidden_NH, layer = parts()
    loss = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER, smoothing)(hidden_NH, layer, LABELS_N)
    expected = plain_loss(hidden_NH, layer, smoothing)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    # The factor stands for what follows: division by the number of tokens, loss scaling.
    found = gradients(loss * 0.37, hidden_NH, layer)
    torch.testing.assert_close(found, gradients(expected * 0.37, hidden_NH, layer), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("logit_bound", [0.3, 25.0])
def test_the_loss_of_clipped_logits_equals_the_plain_formula(smoothing, logit_bound):
    hidden_NH, layer = parts(torch.float64)
    module = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER, smoothing).double()
    loss, expected = (
        module(hidden_NH, layer, LABELS_N, logit_bound=logit_bound),
        plain_loss(hidden_NH, layer, smoothing, logit_bound),
    )
    torch.testing.assert_close(loss, expected)
    found = gradients(loss * 0.37, hidden_NH, layer)
    torch.testing.assert_close(found, gradients(expected * 0.37, hidden_NH, layer))
    with torch.no_grad():
        torch.testing.assert_close(module(hidden_NH, layer, LABELS_N, logit_bound=logit_bound), expected)


def test_r_drop_of_clipped_logits_has_the_gradient_of_a_finite_difference(twins):
    hidden_NH, layer, labels_N = twins
    module = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER, 0.1, r_drop=2.0).double()
    assert torch.autograd.gradcheck(lambda hidden: module(hidden, layer, labels_N, logit_bound=0.3), hidden_NH)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradcheck_over_several_chunks(smoothing):
    hidden_NH, layer = parts(torch.float64)
    module = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER, smoothing).double()

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return module(hidden, with_parameters(weight, bias), LABELS_N) * 0.3

    assert torch.autograd.gradcheck(loss, (hidden_NH, layer.weight, layer.bias))


def plain_r_drop(hidden_NH: Tensor, layer: nn.Linear, smoothing: float, r_drop: float) -> Tensor:
    """Return the mean of both cross-entropies and the divergence of Liang et al. 2021; neighboring rows are twins."""
    total = torch.zeros((), dtype=hidden_NH.dtype)
    for first_H, second_H, label in zip(hidden_NH[0::2], hidden_NH[1::2], LABELS_N[: len(hidden_NH) // 2], strict=True):
        first, second = (torch.distributions.Categorical(logits=layer(row_H)) for row_H in (first_H, second_H))
        for distribution in (first, second):
            smooth = distribution.logits[len(NEVER) :].mean()
            total = total - ((1 - smoothing) * distribution.logits[label] + smoothing * smooth) / 2
        divergence = torch.distributions.kl_divergence
        total = total + r_drop * (divergence(first, second) + divergence(second, first)) / 2
    return total


@pytest.fixture
def twins(monkeypatch) -> tuple[Tensor, nn.Linear, Tensor]:
    """Two rows for each of seven tokens, in chunks of four rows, the last one padded."""
    monkeypatch.setattr(loss_module, "ROW_MULTIPLE", {"cpu": 4})
    torch.manual_seed(1)
    hidden_NH = torch.randn(14, HIDDEN_SIZE, dtype=torch.float64, requires_grad=True)
    return hidden_NH, nn.Linear(HIDDEN_SIZE, VOCABULARY_SIZE).double(), LABELS_N[:7].repeat_interleave(2)


@pytest.mark.parametrize(("smoothing", "r_drop"), [(0.0, 5.0), (0.1, 1.0)])
def test_r_drop_equals_the_plain_formula_in_value_and_gradients(twins, smoothing, r_drop):
    hidden_NH, layer, labels_N = twins
    module = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER, smoothing, r_drop).double()
    loss = module(hidden_NH, layer, labels_N)
    expected = plain_r_drop(hidden_NH, layer, smoothing, r_drop)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    found = gradients(loss * 0.37, hidden_NH, layer)
    torch.testing.assert_close(found, gradients(expected * 0.37, hidden_NH, layer), rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(module(hidden_NH, layer, labels_N), expected, rtol=1e-6, atol=1e-6)


def test_gradcheck_of_r_drop(twins):
    hidden_NH, layer, labels_N = twins
    module = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER, 0.1, r_drop=2.0).double()

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return module(hidden, with_parameters(weight, bias), labels_N)

    assert torch.autograd.gradcheck(loss, (hidden_NH, layer.weight, layer.bias))


def test_r_drop_of_confident_distributions_is_finite():
    """A probability that rounds to zero has no logarithm."""
    layer = nn.Linear(HIDDEN_SIZE, VOCABULARY_SIZE)
    hidden_NH = (200 * torch.randn(4, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))).requires_grad_()
    loss = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER, 0.1, r_drop=1.0)(hidden_NH, layer, LABELS_N[:4])
    assert (torch.softmax(layer(hidden_NH), -1) == 0).any()
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(loss, hidden_NH, layer))


def test_r_drop_in_bf16_stays_close_to_fp64(twins):
    hidden_NH, layer, labels_N = twins
    module = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER, 0.1, r_drop=1.0)
    narrow_NH, narrow_layer = hidden_NH.detach().float().requires_grad_(), layer.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(narrow_NH, narrow_layer, labels_N)
    expected = plain_r_drop(narrow_NH, narrow_layer, 0.1, 1.0)
    torch.testing.assert_close(loss, expected, rtol=5e-3, atol=0)
    found = gradients(loss, narrow_NH, narrow_layer)
    torch.testing.assert_close(found, gradients(expected, narrow_NH, narrow_layer), rtol=0.05, atol=0.05)


def with_parameters(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a layer whose weight and bias are the given tensors."""
    layer = nn.Linear(HIDDEN_SIZE, VOCABULARY_SIZE)
    del layer.weight, layer.bias
    layer.weight, layer.bias = weight, bias
    return layer


def test_the_size_of_chunks_does_not_change_the_loss(monkeypatch):
    results = []
    for num_tokens in (1, 2, 512):
        monkeypatch.setattr(loss_module, "CHUNK_ROWS", num_tokens)
        hidden_NH, layer = parts(torch.float64)
        loss = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER)(hidden_NH, layer, LABELS_N)
        results.append((loss, *gradients(loss, hidden_NH, layer)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


def test_ids_that_never_occur_get_no_mass():
    """Smoothing over all ids would make the model produce PAD, BOS and UNK now and then.

    The gradient of such a logit is its probability alone.
    """
    hidden_NH, layer = parts(torch.float64)
    loss = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER, 0.3).double()(hidden_NH, layer, LABELS_N)
    grad_bias_V = gradients(loss, hidden_NH, layer)[2]
    probs_V = torch.softmax(layer(hidden_NH), dim=-1).sum(0)
    torch.testing.assert_close(grad_bias_V[:3], probs_V[:3].detach())
    counts_V = torch.bincount(LABELS_N, minlength=VOCABULARY_SIZE)
    torch.testing.assert_close(
        grad_bias_V[3:], (probs_V[3:] - 0.7 * counts_V[3:] - 0.3 * NUM_TOKENS / 4).detach(), rtol=1e-6, atol=1e-6
    )


def test_in_eval_mode_the_loss_is_the_plain_cross_entropy():
    """Otherwise its exponential would not be the perplexity."""
    hidden_NH, layer = parts()
    module = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER, 0.3).eval()
    expected = F.cross_entropy(layer(hidden_NH), LABELS_N, reduction="sum")
    torch.testing.assert_close(module(hidden_NH, layer, LABELS_N), expected)


def test_bf16_stays_close_to_fp32():
    hidden_NH, layer = parts()
    module = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER)
    expected = module(hidden_NH, layer, LABELS_N)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(hidden_NH, layer, LABELS_N)
    assert loss.dtype == torch.float32
    assert not torch.equal(loss, expected), "autocast had no effect"
    torch.testing.assert_close(loss, expected, rtol=5e-3, atol=0)
    found = gradients(loss, hidden_NH, layer)
    torch.testing.assert_close(found, gradients(expected, hidden_NH, layer), rtol=0.05, atol=0.05)


def test_the_number_of_tokens_is_not_rounded_to_bf16():
    """1/2991 in bf16 is 0.3% off. Once, so was the gradient of all layers below the output layer."""
    hidden_NH, layer = parts()
    hidden_NH = hidden_NH.detach().bfloat16().requires_grad_()
    module = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        undivided = torch.autograd.grad(module(hidden_NH, layer, LABELS_N), hidden_NH)[0]
        divided = torch.autograd.grad(module(hidden_NH, layer, LABELS_N) / 2991, hidden_NH)[0]
    assert torch.equal(divided, (undivided.float() * (torch.tensor(1.0) / 2991)).bfloat16())


def test_a_tied_output_weight_gets_the_gradients_of_both_its_uses():
    table = nn.Embedding(VOCABULARY_SIZE, HIDDEN_SIZE, dtype=torch.float64)
    layer = with_parameters(table.weight, nn.Parameter(torch.zeros(VOCABULARY_SIZE, dtype=torch.float64)))
    inputs_N = LABELS_N.roll(1)
    module = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER).double()
    found = torch.autograd.grad(module(table(inputs_N).tanh(), layer, LABELS_N), table.weight)[0]
    expected = torch.autograd.grad(plain_loss(table(inputs_N).tanh(), layer, 0.1), table.weight)[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    as_output = table.weight.detach().requires_grad_()
    untied = with_parameters(as_output, layer.bias)
    alone = torch.autograd.grad(module(table(inputs_N).tanh().detach(), untied, LABELS_N), as_output)[0]
    assert not torch.allclose(found, alone)


class Watch(TorchDispatchMode):
    """Record the names of operations and the size of the largest result."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.append(func.__name__)
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def test_the_logits_of_all_tokens_are_never_in_memory():
    hidden_NH, layer = parts()
    with Watch() as watch:
        LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER)(hidden_NH, layer, LABELS_N).backward()
    assert watch.largest <= (NUM_TOKENS + 1) * HIDDEN_SIZE  # the hidden states, their gradient
    assert watch.largest < NUM_TOKENS * VOCABULARY_SIZE


def test_without_a_gradient_none_is_computed():
    """Inside an autograd function, needs_input_grad is true for a parameter even under no_grad."""
    hidden_NH, layer = parts()
    module = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER).eval()
    with torch.no_grad(), Watch() as watch:
        module(hidden_NH.detach(), layer, LABELS_N)
    products = [name for name in watch.names if name.startswith(("mm", "addmm", "bmm", "_linear_pointwise"))]
    assert len(products) == 3, watch.names  # the logits of three chunks


def test_backward_returns_the_gradient_that_forward_computed():
    """A second table of the size of the output weight would double the memory and cost a pass over it."""
    hidden_NH, layer = parts()
    loss = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER)(hidden_NH, layer, LABELS_N)
    computed = loss.grad_fn.gradients.weight_VH.data_ptr()
    (loss / 3).backward()
    assert layer.weight.grad.data_ptr() == computed


@pytest.mark.parametrize("autocast", [False, True])
def test_a_second_backward_gives_the_same(autocast):
    """The first backward pass scales the gradient in place; a second one must not scale it again."""
    hidden_NH, layer = parts()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER)(hidden_NH, layer, LABELS_N) * 0.37
    inputs = (hidden_NH, layer.weight, layer.bias)
    first, second = (torch.autograd.grad(loss, inputs, retain_graph=True) for _ in range(2))
    torch.testing.assert_close(second, first, rtol=0, atol=0)


def test_chunks_are_few_and_about_equal():
    """A last chunk of one token would cost as many passes over the output weight as a full one."""
    numbers = (0, 3, 4, 5, 9)
    sizes = {number: [len(range(number)[chunk]) for chunk in loss_module.chunks(number, 1)] for number in numbers}
    assert sizes == {0: [0], 3: [3], 4: [4], 5: [3, 2], 9: [3, 3, 3]}
    assert [(chunk.start, chunk.stop) for chunk in loss_module.chunks(9, 2)] == [(0, 4), (4, 8), (8, 12)]


def test_no_tokens_give_zero_and_zero_gradients():
    hidden_NH, layer = parts()
    loss = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER)(hidden_NH[:0], layer, LABELS_N[:0])
    assert loss == 0
    for gradient in torch.autograd.grad(loss, (layer.weight, layer.bias)):
        assert gradient.eq(0).all()


@pytest.mark.parametrize("block", [1, 2 * HIDDEN_SIZE, 1000])
def test_the_size_of_blocks_does_not_change_the_weight_gradient(monkeypatch, block):
    """Under bf16 the weight gradient is computed and added in blocks of rows."""
    found = []
    for elements in (2**20, block):
        monkeypatch.setattr(loss_module, "BLOCK_ELEMENTS", {"cpu": elements})
        hidden_NH, layer = parts()
        with torch.autocast("cpu", torch.bfloat16):
            loss = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER)(hidden_NH, layer, LABELS_N)
        found.append(gradients(loss, hidden_NH, layer))
    torch.testing.assert_close(found[1], found[0], rtol=1e-2, atol=1e-2)


def test_the_bias_gradient_of_many_tokens_is_summed_in_fp32(monkeypatch):
    """A running sum in bf16 stops growing at 256 times its summands; a chunk here has 1,024."""
    monkeypatch.setattr(loss_module, "CHUNK_ROWS", 1024)
    layer = nn.Linear(HIDDEN_SIZE, VOCABULARY_SIZE)
    hidden_NH = torch.zeros(2000, HIDDEN_SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        loss = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER, 0.0)(hidden_NH, layer, torch.full((2000,), 3))
    [found_V] = torch.autograd.grad(loss, layer.bias)
    expected_V = 2000 * (torch.softmax(layer.bias, 0) - F.one_hot(torch.tensor(3), VOCABULARY_SIZE)).detach()
    torch.testing.assert_close(found_V, expected_V, rtol=0.02, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_weights_of_tokens_multiply_their_cross_entropy_without_smoothing_and_r_drop(training):
    hidden_NH, layer = parts()
    weights_N = torch.randn(NUM_TOKENS, generator=torch.Generator().manual_seed(2))
    loss = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER, smoothing=0.3, r_drop=2.0).train(training)
    found = loss(hidden_NH, layer, LABELS_N, weights_N)
    expected = F.cross_entropy(layer(hidden_NH), LABELS_N, reduction="none") @ weights_N
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    expected_gradients = gradients(expected * 0.37, hidden_NH, layer)
    torch.testing.assert_close(gradients(found * 0.37, hidden_NH, layer), expected_gradients, rtol=1e-5, atol=1e-5)


def test_gradcheck_with_weights_of_tokens():
    hidden_NH, layer = parts(torch.float64)
    module = LabelSmoothedCrossEntropy(VOCABULARY_SIZE, NEVER).double()
    weights_N = torch.linspace(-1, 1, NUM_TOKENS, dtype=torch.float64)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return module(hidden, with_parameters(weight, bias), LABELS_N, weights_N)

    assert torch.autograd.gradcheck(loss, (hidden_NH, layer.weight, layer.bias))
