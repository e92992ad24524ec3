"""Every model of configs/model/ has the properties that training and search rely on.

A new model needs an entry in TINY, the overrides that make it small.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from check_architecture import (
    check_bf16_is_near,
    check_padding_and_neighbors_change_nothing,
    check_steps_equal_decode,
)
from hydra import compose, initialize_config_dir
from tiny_gnmt import SOURCE, TARGET, padded

from gnmt.batch import BOS_ID, EOS_ID, Tokens
from gnmt.config.build import build, resolve
from gnmt.config.cli import CONFIG_FOLDER
from gnmt.decoding.engine.inference_copy import inference_copy
from gnmt.decoding.ensemble import Ensemble
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.scoring import force_decode
from gnmt.decoding.search import search
from gnmt.device import Precision, int8_obstacle, onednn_dtypes
from gnmt.model import convolutional
from gnmt.model.seq2seq import Seq2Seq

CPU = torch.device("cpu")
VOCABULARY_SIZE = 12

SMALL = ("model.embedding_size=16",)
SMALL_TRANSFORMER = (
    *SMALL,
    "model.encoder.num_layers=2",
    "model.encoder.num_heads=2",
    "model.encoder.feed_forward_size=24",
)
# The longest target needs three layers: each layer sees two more earlier positions.
SMALL_CONVOLUTIONAL = (*SMALL, "model.encoder.num_layers=3", "model.decoder.num_layers=3")
TINY: dict[str, tuple[str, ...]] = {
    "attention": (*SMALL, "model.encoder.hidden_size=8"),
    "convolutional": SMALL_CONVOLUTIONAL,
    "convolutional_small": SMALL_CONVOLUTIONAL,
    "gnmt": SMALL,
    "gnmt_8": (*SMALL, "model.encoder.num_layers=3"),
    "gnmt_readout": (*SMALL, "model.output_dropout=0", "model.word_dropout=0"),
    "gnmt_small": SMALL,
    "gnmt_tiny": SMALL,
    "hybrid": SMALL_TRANSFORMER,
    "hybrid_reverse": (*SMALL, "model.decoder.num_heads=2", "model.decoder.feed_forward_size=24"),
    "hybrid_rnmt_plus": SMALL_TRANSFORMER,
    "hybrid_rnmt_plus_reverse": (
        *SMALL,
        "model.encoder.num_layers=3",
        "model.decoder.num_layers=2",
        "model.decoder.num_heads=2",
        "model.decoder.feed_forward_size=24",
    ),
    "rnmt_plus": (*SMALL, "model.encoder.num_layers=3", "model.decoder.num_layers=3"),
    "rnmt_plus_small": SMALL,
    "seq2seq": SMALL,
    "transformer": SMALL_TRANSFORMER,
    "transformer_big": SMALL_TRANSFORMER,
    "transformer_tiny": SMALL_TRANSFORMER,
}
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bahdanau": ("attention", ("model.decoder.query=previous", "model.encoder.cell=gru")),
    "luong_without_feeding": ("attention", ("model.decoder.input_feeding=false", "model.encoder.num_layers=3")),
    "previous_without_feeding": ("attention", ("model.decoder.input_feeding=false", "model.decoder.query=previous")),
    "residual_feeding": (
        "attention",
        ("model.encoder.num_layers=2", "model.decoder.residual_from=2", "model.encoder.residual_from=2"),
    ),
    "dot": ("attention", ("model/attention=dot",)),
    "scaled_dot": ("attention", ("model/attention=scaled_dot",)),
    "general": ("attention", ("model/attention=general", "model.decoder.bridge=none")),
    "seq2seq_of_one_gru": ("seq2seq", ("model.encoder.num_layers=1", "model.encoder.cell=gru")),
    "seq2seq_normalized": ("seq2seq", ("model.encoder.layer_norm=true", "model.decoder.residual_from=2")),
    "gnmt_gru": ("gnmt_small", ("model.encoder.cell=gru", "model.decoder.residual_from=2")),
    "gnmt_min_lstm": ("gnmt_small", ("model.encoder.cell=min_lstm", "model.decoder.residual_from=2")),
    "gnmt_rg_lru": ("gnmt_small", ("model.encoder.cell=rg_lru", "model.decoder.query=previous")),
    "seq2seq_min_lstm": ("seq2seq", ("model.encoder.cell=min_lstm",)),
    "attention_rg_lru": ("attention", ("model.encoder.cell=rg_lru",)),
    "gnmt_quantizable": (
        "gnmt_8",
        (
            *("model.encoder.cell=quantizable_lstm", "model/clipping=annealed"),
            *("model.clipping.start=0.9", "model.clipping.end=0.5"),
        ),
    ),
    "gnmt_shortcuts": (
        "gnmt_small",
        ("model.encoder.attend_to_embeddings=true", "model.decoder.context_to_output=added"),
    ),
    "gnmt_wide_readout": (
        "gnmt_small",
        ("model.decoder.context_to_output=readout", "model.decoder.hidden_size=24", "model.encoder.weight_dropout=0.1"),
    ),
    "gnmt_one_layer": (
        "gnmt",
        (
            "model.encoder.num_layers=1",
            "model.decoder.context_to_output=concatenated",
            "model.decoder.attention.memory_size=32",
        ),
    ),
    "gnmt_bridged": (
        "gnmt_8",
        (
            "model.encoder.num_bidirectional_layers=0",
            "model.encoder.final_states=true",
            "model.encoder.reverse_source=true",
            "model.decoder.bridge=final",
        ),
    ),
    "transformer_positions": ("transformer_tiny", ("model.encoder.learned_positions=10",)),
    "transformer_one_layer": ("transformer_tiny", ("model.encoder.num_layers=1",)),
    "transformer_last_aligns": ("transformer", ("model.decoder.alignment_layer=2",)),
    "convolutional_kernels": (
        "convolutional",
        ("model.encoder.kernel_size=5", "model.decoder.kernel_size=2", "model.decoder.num_layers=5"),
    ),
    "convolutional_over_lstm": (
        "gnmt_small",
        ("model/decoder=convolutional", "model.decoder.num_layers=3", "~model/attention"),
    ),
}
SAME = {"gnmt_tiny": "gnmt_small", "transformer_big": "transformer"}
"""Models that differ from another one only in sizes, dropout and initialization, which all of TINY share."""
MODELS = [name for name in (*TINY, *VARIANTS) if name not in SAME]
every_model = pytest.mark.parametrize("name", MODELS)
PRECISIONS = [
    ("fp32", 1e-5),
    ("bf16", 0.15),
    pytest.param("int8", 0.3, marks=pytest.mark.skipif(int8_obstacle(CPU) is not None, reason="no fast int8 here")),
]


@cache
def node(name: str) -> dict[str, Any]:
    model, overrides = VARIANTS.get(name, (name, ()))
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = compose(f"model/{model}", [*TINY[model], *overrides, "model.encoder.dropout=0"])
    node: dict[str, Any] = resolve(cfg)["model"]
    return node


def initialized(name: str, init_range: float, embedding_init_range: float | None) -> dict[str, Any]:
    return {**node(name), "init_range": init_range, "embedding_init_range": embedding_init_range}


def make(name: str, init_range: float = 0.6) -> Seq2Seq:
    """Return the tiny model in fp64 and evaluation mode, with weights so large that no part is nearly linear."""
    torch.manual_seed(4)
    given = initialized(name, init_range, None)
    model = build(given, source_vocabulary_size=VOCABULARY_SIZE, target_vocabulary_size=VOCABULARY_SIZE)
    assert isinstance(model, Seq2Seq)
    return model.double().eval()


def test_every_config_of_a_model_is_tested() -> None:
    assert sorted(TINY) == sorted(path.stem for path in CONFIG_FOLDER.glob("model/*.yaml"))
    for name, tested in SAME.items():
        assert initialized(name, 0.6, None) == initialized(tested, 0.6, None)


@every_model
def test_padding_and_neighbors_change_nothing(name: str) -> None:
    check_padding_and_neighbors_change_nothing(make(name))


@every_model
def test_hidden_states_depend_on_the_whole_source_and_on_earlier_tokens_only(name: str) -> None:
    model = make(name)
    first_BTH, _ = model.decode(padded([TARGET[1]]), model.encode(padded([SOURCE[2]])))
    for index in range(len(SOURCE[2]) - 1):
        other = [*SOURCE[2][:index], 10, *SOURCE[2][index + 1 :]]
        hidden_BTH, _ = model.decode(padded([TARGET[1]]), model.encode(padded([other])))
        assert (hidden_BTH - first_BTH)[0].abs().amax(1).min() > 1e-9
    for index in range(len(TARGET[1])):
        other = [*TARGET[1][:index], 9, *TARGET[1][index + 1 :]]
        hidden_BTH, _ = model.decode(padded([other]), model.encode(padded([SOURCE[2]])))
        difference_T = (hidden_BTH - first_BTH)[0].abs().amax(1)
        assert (difference_T[:index] == 0).all()
        assert difference_T[-1] > 1e-9


@every_model
@pytest.mark.parametrize("beam", [1, 3])
def test_steps_equal_decode_while_sentences_enter_and_leave(name: str, beam: int) -> None:
    check_steps_equal_decode(make(name), beam)


@every_model
def test_memory_has_one_row_for_each_sentence_and_the_state_one_for_each_hypothesis(name: str) -> None:
    """The beam is an axis of the state, and a step with an old state gives the old result."""
    model = make(name)
    memory = model.encode(padded(SOURCE))
    start = model.start(memory, 3)
    tokens_BK = torch.full((4, 3), BOS_ID)
    first, _, after = model.step(tokens_BK, start, memory)
    assert {len(tensor) for tensor in (*memory.extras.values(), *memory.by_sentence.values())} <= {4}
    assert all(tensor.shape[:2] == (4, 7) for tensor in memory.extras.values())
    assert {tuple(tensor.shape[:2]) for state in (start, after) for tensor in state.tensors.values()} == {(4, 3)}
    assert start.tensors.keys() == after.tensors.keys()
    model.step(tokens_BK + 5, start, memory)
    assert torch.equal(model.step(tokens_BK, start, memory)[0], first)


@every_model
def test_every_parameter_influences_the_result(name: str) -> None:
    model = make(name)
    hidden_BTH, _ = model.decode(padded(TARGET), model.encode(padded(SOURCE)))
    generator = torch.Generator().manual_seed(6)
    logits_BTV = model.output(hidden_BTH)
    (logits_BTV * torch.rand(logits_BTV.shape, generator=generator)).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 1e-8, parameter_name


@every_model
def test_the_gradient_equals_a_finite_difference_of_the_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The derivative along a random direction of all weights is compared.

    Other tests passed when the context that enters the upper layers or the query was detached: every weight still had
    some gradient. The convolutional decoder's scaling of the encoder's gradients (Gehring et al. 2017, section 3.5) is
    disabled.
    """
    monkeypatch.setattr(convolutional, "scale_gradient", lambda tensor, factor: tensor)
    model = make(name, init_range=0.3)
    generator = torch.Generator().manual_seed(8)
    weights_BTV = torch.rand(*padded(TARGET).ids_BT.shape, VOCABULARY_SIZE, dtype=torch.float64, generator=generator)

    def loss() -> torch.Tensor:
        logits_BTV = model.output(model.decode(padded(TARGET), model.encode(padded(SOURCE)))[0])
        real_BT1 = padded(TARGET).mask_BT[..., None]
        return (torch.log_softmax(logits_BTV, -1) * weights_BTV * real_BT1).sum()

    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss(), parameters)
    directions = [torch.randn(p.shape, dtype=torch.float64, generator=generator) for p in parameters]
    expected = sum(float((gradient * way).sum()) for gradient, way in zip(gradients, directions, strict=True))
    step = 1e-6
    losses = []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, way in zip(parameters, directions, strict=True):
                parameter += sign * step * way
            losses.append(float(loss()))
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(expected, rel=1e-5)


def log_probs(model: Any, source: Tokens) -> torch.Tensor:
    """Return log-probabilities [steps, B, K, V] of random tokens, with reordered beams."""
    generator = torch.Generator().manual_seed(3)
    memory = model.encode(source)
    state = model.start(memory, 3)
    size = (len(source.lengths_B), 3)
    found = []
    for _ in range(5):
        tokens_BK = torch.randint(2, VOCABULARY_SIZE, size, generator=generator)
        log_probs_BKV, _, state = model.step(tokens_BK, state, memory)
        found.append(log_probs_BKV)
        state = state.reorder(torch.randint(0, 3, size, generator=generator))
    return torch.stack(found)


@pytest.mark.parametrize(("precision", "tolerance"), PRECISIONS)
@every_model
@torch.inference_mode()
def test_the_inference_copy_computes_the_same(name: str, precision: str, tolerance: float) -> None:
    model = make(name).float()
    fast = inference_copy(model, Precision(precision, CPU))
    difference = (log_probs(fast, padded(SOURCE)) - log_probs(model, padded(SOURCE))).abs()
    if (name, precision) == ("attention_rg_lru", "int8"):
        # The RMSNorm of RG-LRU divides by the size of a state. A state near zero makes its rounding errors large.
        assert difference.mean() < 0.05
        assert difference.max() < 1
    else:
        assert difference.max() <= tolerance


needs_bf16 = pytest.mark.skipif(torch.bfloat16 not in onednn_dtypes(), reason="no bf16 products in oneDNN here")


@needs_bf16
@every_model
def test_bf16_is_close_to_fp32(name: str) -> None:
    check_bf16_is_near(make(name), 0.15)


@needs_bf16
@every_model
def test_training_in_bf16_stays_close_to_fp32(name: str) -> None:
    """Forward and backward run under autocast, as in the trainer."""
    model = make(name, init_range=0.2).float()
    gradients = []
    for narrow in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
            logits_BTV = model.output(model.decode(padded(TARGET), model.encode(padded(SOURCE)))[0])
            loss = F.cross_entropy(logits_BTV[:, 0].float(), torch.tensor([4, 5, 6, 7]))
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@every_model
@torch.inference_mode()
def test_search_scores_equal_force_decoding_and_do_not_depend_on_the_batch(name: str) -> None:
    """With a batch size of 2, the four sentences enter and leave. An ensemble of one model twice equals the model."""
    model = make(name).float()
    beta = 0.1 if model.decoder.has_attention else 0.0
    options = SearchOptions(beam_size=3, n_best=2, coverage_beta=beta, max_length_offset=3, max_length_factor=1.0)
    fast = inference_copy(model, Precision("fp32", CPU))
    together = search(fast, SOURCE, options, batch_size=4, device=CPU)
    for found in (
        search(fast, SOURCE, options, batch_size=2, device=CPU),
        search(Ensemble([fast, fast]), SOURCE, options, batch_size=4, device=CPU),
    ):
        for one, other in zip(found, together, strict=True):
            assert [hypothesis.tokens for hypothesis in one.hypotheses] == [h.tokens for h in other.hypotheses]
            assert one.hypotheses[0].score == pytest.approx(other.hypotheses[0].score, abs=1e-5)
    best = [result.hypotheses[0] for result in together]
    forced = force_decode(fast, padded(SOURCE), padded([[BOS_ID, *one.tokens] for one in best]), options)
    torch.testing.assert_close(forced.score_B, torch.tensor([one.score for one in best]), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TINY if name not in SAME])
def test_a_tiny_copy_task_is_learned(name: str) -> None:
    torch.manual_seed(1)
    model = build(
        initialized(name, 0.4, 1.0), source_vocabulary_size=VOCABULARY_SIZE, target_vocabulary_size=VOCABULARY_SIZE
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(2)

    def sentences(number: int) -> list[list[int]]:
        lengths = torch.randint(1, 4, (number,), generator=generator).tolist()
        return [torch.randint(4, VOCABULARY_SIZE, (length,), generator=generator).tolist() for length in lengths]

    for _ in range(1000):  # most models need 200 to 400; rounding differs between processors
        rows = sentences(48)
        source, target = padded([[*row, EOS_ID] for row in rows]), padded([[BOS_ID, *row] for row in rows])
        hidden_BTH, _ = model.decode(target, model.encode(source))
        # The target has EOS at the same position as the source.
        loss = F.cross_entropy(model.output(hidden_BTH[target.mask_BT]), source.ids_BT[source.mask_BT])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        if loss < 0.01:
            break
    rows = [[*row, EOS_ID] for row in sentences(50)]
    options = SearchOptions(beam_size=1, coverage_beta=0.0)
    results = search(inference_copy(model, Precision("fp32", CPU)), rows, options, batch_size=50, device=CPU)
    copied = [list(result.hypotheses[0].tokens) == row for result, row in zip(results, rows, strict=True)]
    assert sum(copied) >= 45, f"{sum(copied)} of 50 were copied, loss {loss.item():.3f}"
