"""Device, precision, deterministic kernels, and the settings of oneDNN and of the memory allocator."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from gnmt.errors import InputError

log = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
"""The choices of `precision` in training."""

SEARCH_PRECISIONS = (*PRECISIONS, "int8")
"""The choices of `precision` in translation and scoring, where weights may be quantized."""


# Device


def choose_device(name: str) -> torch.device:
    """Return the device with this name; "auto" is CUDA if it is available, else the CPU.

    Raises InputError for a name or a device that does not exist.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device={name} is not a device: choose auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device={name} is not supported: choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device={name}: torch sees {torch.cuda.device_count()} CUDA devices; use device=auto or cpu")
    return device


def device_name(device: torch.device) -> str:
    """Return the product name of the GPU or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(torch.cpu.get_capabilities()["cpu_name"])


# Precision


@dataclass(frozen=True)
class Precision:
    """The number format of matrix products: fp32, tf32, bf16, fp16 or int8.

    In training, weights stay in fp32 and products run in this format by autocast. For search,
    gnmt.decoding.engine.inference_copy copies the model with weights in this format; int8 exists only there.
    """

    name: str
    device: torch.device

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which forward passes run."""
        if self.name in ("fp32", "tf32", "int8"):
            return nullcontext()
        dtype = torch.bfloat16 if self.name == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the precision with this name; "auto" is bf16 if the hardware multiplies in it, else fp32.

    If torch or the processor lacks fast int8 products, int8 becomes fp32 with a warning. Also sets the process's TF32
    switches. Raises InputError for an unknown name, and for a precision that the device does not have.
    """
    if name not in SEARCH_PRECISIONS:
        raise InputError(f"precision={name} is unknown: choose one of {', '.join(SEARCH_PRECISIONS)}")
    if name == "auto":
        name = "bf16" if has_fast_bf16(device) else "fp32"
    if name in ("tf32", "fp16") and device.type != "cuda":
        raise InputError(f"precision={name} needs a CUDA device, this run is on {device}: use precision=bf16 or fp32")
    if name == "int8" and (missing := missing_for_int8(device)):
        log.warning("precision=int8 runs as fp32 here: %s", missing)
        name = "fp32"
    # Set for every precision: a second run in the same process must not inherit the setting of the first.
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = name == "tf32"
    return Precision(name, device)


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the hardware multiplies in bf16. Elsewhere bf16 is emulated and slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def missing_for_int8(device: torch.device) -> str | None:
    """Return what the device lacks for fast and exact int8 products; None if it lacks nothing."""
    if device.type != "cpu":
        return f"int8 is for CPUs, this run is on {device}; precision=bf16 is the fast one there"
    if not onednn_dtypes():
        return "this build of torch has no oneDNN, which multiplies the integers"
    # Without VNNI instructions, products of 8-bit integers are accumulated in 16 bits, which overflow.
    capabilities = torch.cpu.get_capabilities()
    if not (capabilities.get("avx512_vnni") or capabilities.get("avx_vnni")):
        return "the processor has no VNNI instructions"
    return None


# oneDNN


def onednn_dtypes() -> tuple[torch.dtype, ...]:
    """Return the types that oneDNN multiplies on this processor, emulated ones included; none without oneDNN."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return ()
    return (torch.float32, torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)


def set_onednn_cache_capacity(number: int | None) -> None:
    """Set how many compiled kernels oneDNN keeps; None keeps its default of 1,024.

    oneDNN compiles a kernel for each shape of an LSTM or a matrix product on a CPU, which takes about a millisecond. A
    corpus in batches of more shapes than the cache holds compiles them again in every epoch. A kernel takes memory:
    about 0.6 MB for an LSTM with 256 units. Call this before the first matrix product of the process. A value in the
    environment (ONEDNN_PRIMITIVE_CACHE_CAPACITY) takes precedence.
    """
    if number is not None:
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(number))


# Memory

# Messages of plain RuntimeErrors (and of OSErrors) about memory that torch's own OutOfMemoryError does not cover.
_OUT_OF_MEMORY_MESSAGES = (
    "not enough memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "DefaultCPUAllocator",
    "out of memory",
    "ALLOC_FAILED",  # cuBLAS, cuDNN
    "std::bad_alloc",
    "could not create a memory object",  # oneDNN
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, torch or a library under it has failed to allocate memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(message in str(error) for message in _OUT_OF_MEMORY_MESSAGES)


# Updates of smaller models are so short that returning memory to the system would double their time.
LARGE_MODEL_PARAMETERS = 100_000_000
_MMAP_THRESHOLD = "MALLOC_MMAP_THRESHOLD_"
_M_MMAP_THRESHOLD = -3  # constant of glibc's malloc.h
_RETURNED_BYTES = 1 << 20


def return_freed_memory(num_parameters: int, device: torch.device) -> bool:
    """Make glibc return tensors of a megabyte or more to the system when they are freed; return whether it does.

    By default glibc keeps the memory of activations for later use. An update of 193 million parameters then holds
    twice as much memory above weights, gradients and optimizer state, and is no faster. This applies only to models
    of LARGE_MODEL_PARAMETERS or more, on a CPU, with glibc, and without MALLOC_MMAP_THRESHOLD_ in the environment. It
    holds for the rest of the process.
    """
    if num_parameters < LARGE_MODEL_PARAMETERS or device.type != "cpu" or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None or _MMAP_THRESHOLD in os.environ:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _RETURNED_BYTES))


# Deterministic kernels

# cuBLAS workspaces with which cuDNN's LSTM accumulates in the same order each time.
DETERMINISTIC_WORKSPACES = (":16:8", ":4096:2")


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Make operations inside this context return the same bits each time, on CUDA too; do nothing unless `wanted`.

    Raises InputError for an operation without a deterministic kernel, and for a contradicting
    CUBLAS_WORKSPACE_CONFIG in the environment.
    """
    if not wanted:
        yield
        return
    workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", DETERMINISTIC_WORKSPACES[0])
    if workspace not in DETERMINISTIC_WORKSPACES:
        raise InputError(
            f"deterministic=true: found CUBLAS_WORKSPACE_CONFIG={workspace} in the environment, allowed is "
            f"{' or '.join(DETERMINISTIC_WORKSPACES)}: remove it, or set deterministic=false"
        )
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        operation = str(error).split(" does not have")[0]
        raise InputError(
            f"deterministic=true: torch has no deterministic kernel here for {operation}: set deterministic=false, or "
            "use model components that do not need it"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.deterministic = before[1]
