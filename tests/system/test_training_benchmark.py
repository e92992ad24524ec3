"""scripts/benchmark.py task=training on a tiny model, and its baseline in plain PyTorch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import recurrent_layers
from benchmarks.measuring import header, in_own_process, row
from benchmarks.profiling import group_table, grouped
from benchmarks.training import (
    COLUMNS,
    SIZES,
    TrainingFigure,
    TrainingWorkload,
    differences,
    memory_mib,
    workload_flops,
)
from benchmarks.training_baseline import PlainTranslator, plain_name
from gnmt.device import onednn_dtypes

TINY = TrainingWorkload("tiny", "mixed", dropout=0.0, num_batches=2, seed=1, device="cpu")


def test_the_baseline_has_our_loss_and_gradients():
    """Otherwise the benchmark would compare different computations."""
    of_loss, of_gradients = differences(TINY)
    assert of_loss < 1e-6
    assert of_gradients < 1e-5


def test_the_baseline_has_the_same_weights_as_the_model():
    model = TINY.model()
    plain = dict(PlainTranslator(model).named_parameters())
    assert plain.keys() == {plain_name(name) for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, plain[plain_name(name)])


@pytest.mark.parametrize("system", ["baseline", "fp32", "bf16"])
def test_an_update_lowers_the_loss_of_its_batch(system):
    step = TrainingWorkload("tiny", "equal", 0.0, 1, 1, "cpu").step(system, TINY.model())
    batch = TINY.batches()[0]
    losses = [float(step(batch)) for _ in range(4)]
    assert losses == sorted(losses, reverse=True)


def test_the_baseline_has_the_same_dropout_rate():
    model = TrainingWorkload("tiny", "equal", 0.3, 1, 1, "cpu").model()
    plain = PlainTranslator(model)
    for stack, ours in (("encoder", model.encoder), ("decoder", model.decoder)):
        assert plain.dropout[stack].p == ours.dropout.p == 0.3
        assert plain.train().dropout[stack].training
        assert not plain.eval().dropout[stack].training


def test_operations_are_counted_from_the_sizes_of_matrices():
    """Each matrix element is multiplied with each token of its side, and attention multiplies each token pair twice."""
    workload = TrainingWorkload("tiny", "equal", 0.0, 1, 1, "cpu")
    model, [batch] = workload.model(), workload.batches()
    _, width, _, rows, tokens = SIZES["tiny"]
    tables = {model.source_embedding.weight, model.target_embedding.weight}
    matrices = sum(weight.numel() for weight in model.parameters() if weight.dim() == 2 and weight not in tables)
    assert workload_flops(workload)(batch) == 6 * rows * (tokens * matrices + tokens**2 * 2 * width)


def test_a_row_is_aligned_with_its_header():
    figure = TrainingFigure("middle", "equal", "bf16", [0.5], 250.0, 10240.0, 2.25, 0.4567, None)
    assert " ".join(header(COLUMNS).split()) == "size lengths system step ms tokens/s ratio utilization memory MiB"
    assert row(COLUMNS, figure).split() == ["middle", "equal", "bf16", "250.0", "10240", "2.25", "45.7%", "-"]
    assert len(row(COLUMNS, figure)) == len(header(COLUMNS))


def test_operators_are_grouped_by_kind():
    names = {
        "aten::addmm": "matrix products",
        "mkldnn::_linear_pointwise": "matrix products",
        "aten::mkldnn_rnn_layer_backward": "LSTM kernels",
        "aten::_fused_adam_": "optimizer",
        "aten::copy_": "copies and fills",
        "aten::embedding_dense_backward": "indexing",
        "aten::_softmax": "softmax, sigmoid, tanh",
        "aten::linalg_vector_norm": "sums and norms",
        "aten::mul_": "elementwise",
        "aten::random_": "random numbers",
        "aten::view": "other",
    }
    groups = grouped([(name, 1.0, 2) for name in names])
    found = {operator: label for label, group in groups.items() for operator in group.operators}
    assert found == names
    rows = group_table(groups).splitlines()
    assert len(rows) == len(groups) + 2
    assert rows[1].split() == [
        "matrix",
        "products",
        "2000.0",
        "18.2%",
        "4",
        "aten::addmm,",
        "mkldnn::_linear_pointwise",
    ]


def test_cuda_kernels_are_grouped_by_kind():
    names = {
        "nvjet_tst_128x64_64x8_2x1_v_bz_TNT": "matrix products",
        "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_bf16_128x64_64x4_tn_align8>(...)": "matrix products",
        "void RNN_blockPersist_fp_LSTM<__half, __half, float, 256>(...)": "LSTM kernels",
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor<...>>": "optimizer",
        "gradient_kernel": "attention kernels",
        "best_kernel": "search kernels",
        "Memcpy DtoD (Device -> Device)": "copies and fills",
        "void (anonymous namespace)::cunn_SoftMaxForward<8, float, float>(...)": "softmax, sigmoid, tanh",
        "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<...>>(...)": "sums and norms",
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>(...)": "elementwise",
    }
    groups = grouped([(name, 1.0, 1) for name in names])
    assert {operator: label for label, group in groups.items() for operator in group.operators} == names


def test_training_benchmark_writes_finite_figures_and_profiles(
    run_command: Callable[..., object], tmp_path: Path
) -> None:
    finished = run_command(
        "benchmark", "task=training", "sizes=[tiny]", "repetitions=2", "device=cpu", "memory=false", "profile=traces",
        "precisions=[fp32,bf16]", "output=training.json", cwd=tmp_path,
    )  # fmt: skip
    assert finished.code == 0, finished.err
    assert "tiny: fp32 without dropout differs from the baseline by" in finished.out
    written = json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))
    # bf16 runs as fp32, which is then measured once, where oneDNN has no bf16 kernels.
    precisions = ["fp32", *(["bf16"] if torch.bfloat16 in onednn_dtypes() else [])]
    assert [figure["system"] for figure in written["figures"]] == ["baseline", *precisions]
    for figure in written["figures"]:
        assert len(figure["seconds"]) == 2
        for key in ("step_milliseconds", "tokens_per_second", "ratio", "utilization"):
            assert 0 < figure[key] < math.inf
        assert figure["memory_mib"] is None
    assert written["figures"][0]["ratio"] == 1
    assert (written["setting"]["task"], written["setting"]["dropout"]) == ("training", 0.2)
    for precision in precisions:
        assert json.loads((tmp_path / "traces" / f"tiny_equal_{precision}.trace.json").read_bytes())["traceEvents"]
    assert "optimizer" in (tmp_path / "training.profile.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "sizes=[multi30k]",
            "sizes: found multi30k, allowed are gnmt, gnmt_128, gnmt_256, gnmt_512, gnmt_8, middle",
        ),
        ("precisions=[int8]", "precisions: found int8, allowed are auto, fp32, bf16, fp16"),
        (
            "sizes=[]",
            "there is nothing to measure: give sizes= (of gnmt, gnmt_128, gnmt_256, gnmt_512, gnmt_8, ",
        ),
        ("checkpoint=best.pt", "checkpoint=best.pt is for task=decoding"),
        ("dropout=1", "dropout"),
    ],
)
def test_wrong_values_are_refused_with_their_key(
    run_command: Callable[..., object], tmp_path: Path, override: str, message: str
) -> None:
    finished = run_command("benchmark", "task=training", "sizes=[tiny]", override, cwd=tmp_path)
    assert finished.code == 2
    assert message in finished.err


@pytest.mark.slow
def test_memory_is_above_weights_gradients_and_optimizer_state() -> None:
    """The baseline holds the logits of the batch several times."""
    workload = TrainingWorkload("small", "equal", 0.0, 1, 1, "cpu")
    logits_mib = 4 * 32 * 15 * 10_000 / 2**20
    assert in_own_process(memory_mib, workload, "baseline") > logits_mib  # this process holds memory of other tests


def test_recurrent_layers_are_timed_in_a_table(monkeypatch, capsys) -> None:
    monkeypatch.setattr(recurrent_layers, "REPETITIONS", 2)
    recurrent_layers.main([(2, 8), (3, 4)])
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("| batch | units | products | LSTM | LayerNormLSTM | recorded loop |")
    cells = [row.strip("| ").split(" | ") for row in rows]
    assert [row[:2] for row in cells] == [["2", "8"], ["3", "4"]]
    assert all(len(row) == 8 and all(float(cell) >= 0 for cell in row) for row in cells)
