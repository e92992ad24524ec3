"""Device, precision, deterministic kernels, and settings of oneDNN and glibc."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import gnmt.device
from gnmt.device import (
    LARGE_MODEL_PARAMETERS,
    choose_device,
    choose_precision,
    deterministic_kernels,
    keep_freed_memory,
    return_freed_memory,
    set_onednn_cache_capacity,
)
from gnmt.errors import InputError

CPU = torch.device("cpu")


def test_auto_is_cuda_if_it_is_available(monkeypatch):
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert choose_device("auto") == torch.device(expected)


def test_a_cuda_device_must_exist(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="device=cuda:2: torch sees 2 CUDA devices; use device=auto or cpu"):
        choose_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="torch sees 0 CUDA devices"):
        choose_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "cuda:-1", "mps", "meta"])
def test_other_devices_are_refused(name):
    with pytest.raises(InputError, match=rf"device={name} is .*: choose auto, cpu, cuda or cuda:N"):
        choose_device(name)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx512_f": True, "avx512_bf16": False}, "fp32")],
)
def test_auto_is_bf16_only_if_the_cpu_multiplies_in_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(gnmt.device, "onednn_dtypes", lambda: (torch.float32, torch.bfloat16))
    assert choose_precision("auto", CPU).name == expected


def test_bf16_on_a_processor_without_bf16_kernels_is_fp32_with_a_warning(monkeypatch, caplog):
    """The first update ended in oneDNN's "could not create a primitive descriptor for the LSTM"."""
    monkeypatch.setattr(gnmt.device, "onednn_dtypes", lambda: (torch.float32,))
    assert choose_precision("bf16", CPU).name == "fp32"
    assert caplog.messages == ["precision=bf16 runs as fp32 here: oneDNN has no bf16 kernels for this processor"]
    caplog.clear()
    monkeypatch.setattr(gnmt.device, "onednn_dtypes", lambda: (torch.float32, torch.bfloat16))
    assert choose_precision("bf16", CPU).name == "bf16"
    assert caplog.messages == []


def test_autocast_multiplies_in_the_chosen_precision(monkeypatch):
    monkeypatch.setattr(gnmt.device, "onednn_dtypes", lambda: (torch.float32, torch.bfloat16))
    matrix = torch.ones(2, 2)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with choose_precision(name, CPU).autocast():
            assert (matrix @ matrix).dtype == dtype


@pytest.mark.parametrize("name", ["tf32", "fp16"])
def test_precisions_of_cuda_are_refused_on_a_cpu(name):
    with pytest.raises(InputError, match=f"precision={name} needs a CUDA device, this run is on cpu: use precision="):
        choose_precision(name, CPU)


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match="precision=fb16 is unknown: choose one of auto, fp32, tf32, bf16, fp16"):
        choose_precision("fb16", CPU)


def test_a_run_does_not_inherit_the_precision_of_an_earlier_one():
    torch.set_float32_matmul_precision("medium")
    choose_precision("fp32", CPU)
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_cache_capacity_in_the_environment_takes_precedence(monkeypatch):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.delenv(name, raising=False)
    set_onednn_cache_capacity(None)
    assert name not in os.environ
    monkeypatch.setenv(name, "17")
    set_onednn_cache_capacity(4096)
    assert os.environ[name] == "17"
    monkeypatch.delenv(name)
    set_onednn_cache_capacity(4096)
    assert os.environ[name] == "4096"


def printed(program: str, num_parameters: int) -> tuple[str, float]:
    """Return the two values that a program prints: whether glibc was set for a model of this size, and a number."""
    command = [sys.executable, "-c", program, str(num_parameters)]
    is_set, number = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return is_set, float(number)


KEPT_AFTER_FREEING = """
import sys
import torch
from gnmt.device import return_freed_memory

def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

print(return_freed_memory(int(sys.argv[1]), torch.device("cpu")))
torch.ones(6_000_000)  # glibc raises its mmap threshold to the size of a freed block
before = resident_mib()
activations = [torch.ones(1_000_000) for _ in range(100)]
last = torch.ones(200_000)  # above them on the heap
del activations
print(resident_mib() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_a_large_model_returns_freed_memory_and_a_small_one_keeps_it(monkeypatch):
    """With 4+4 layers of 1024 units, updates held half as much memory again as the target, all of it freed memory."""
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)

    is_set, kept_mib = printed(KEPT_AFTER_FREEING, LARGE_MODEL_PARAMETERS)
    assert is_set == "True"
    assert kept_mib < 40
    is_set, kept_mib = printed(KEPT_AFTER_FREEING, LARGE_MODEL_PARAMETERS - 1)
    assert is_set == "False"
    assert kept_mib > 350
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "33554432")
    assert printed(KEPT_AFTER_FREEING, LARGE_MODEL_PARAMETERS)[0] == "False"


FAULTS_OF_STEPS = """
import resource
import sys
import torch
from gnmt.device import keep_freed_memory

print(keep_freed_memory(int(sys.argv[1]), torch.device("cpu")))
for step in range(30):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    logits = torch.ones(3_200_000)  # 64 sentences, beam 5, 10,000 subwords
    log_probs = logits + 1
    scores = log_probs + 1
    del logits, log_probs, scores
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_a_small_model_keeps_the_memory_of_a_step_for_the_next_one(monkeypatch):
    """Search once mapped the memory of its log-probabilities anew in each step."""
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)

    is_set, count = printed(FAULTS_OF_STEPS, LARGE_MODEL_PARAMETERS - 1)
    assert is_set == "True"
    assert count < 40_000  # the three tensors of a step have 9,400 pages
    assert printed(FAULTS_OF_STEPS, LARGE_MODEL_PARAMETERS)[0] == "False"
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")  # every tensor is mapped anew
    is_set, count = printed(FAULTS_OF_STEPS, LARGE_MODEL_PARAMETERS - 1)
    assert is_set == "False"
    assert count > 150_000


def test_on_cuda_glibc_is_left_alone():
    assert not return_freed_memory(LARGE_MODEL_PARAMETERS, torch.device("cuda"))
    assert not keep_freed_memory(1, torch.device("cuda"))


def test_deterministic_kernels_are_set_inside_the_context_only(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with deterministic_kernels(False):
        assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with deterministic_kernels(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic


def test_an_operation_without_a_deterministic_kernel_is_named(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    message = r"^deterministic=true: torch has no deterministic kernel here for \S*put.*: set deterministic=false"
    with pytest.raises(InputError, match=message), deterministic_kernels(True):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
    with pytest.raises(RuntimeError, match="another error"), deterministic_kernels(True):
        raise RuntimeError("another error")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    message = r"found CUBLAS_WORKSPACE_CONFIG=:4096:8 .*, allowed is :16:8 or :4096:2"
    with pytest.raises(InputError, match=message), deterministic_kernels(True):
        pass
    assert not torch.are_deterministic_algorithms_enabled()
