"""Choice of device and precision, and process-wide settings of oneDNN, the memory allocator and deterministic kernels.

`choose_device` and `choose_precision` turn the config values `device` and `precision` into objects. The other functions
are independent of each other and stand in sections of their own.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from gnmt.errors import InputError

log = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
"""Values of `precision` in training."""

SEARCH_PRECISIONS = (*PRECISIONS, "int8")
"""Values of `precision` in translation and scoring, where weights may be quantized."""


# Device


def choose_device(name: str) -> torch.device:
    """Return the device with this name; "auto" is CUDA if available, otherwise the CPU.

    Raises InputError if the name or the device does not exist.
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
    """Return the product name of the GPU or the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(torch.cpu.get_capabilities()["cpu_name"])


def copied_to(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor from the CPU to a device. On CUDA, the host does not wait for earlier work of the device."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


# Precision


@dataclass(frozen=True)
class Precision:
    """Number format of matrix products on a device: fp32, tf32, bf16, fp16 or int8.

    In training, the weights stay in fp32 and autocast runs the products in this format. For search,
    gnmt.decoding.engine.inference_copy makes a copy of the model with weights in this format. Only search supports
    int8.
    """

    name: str
    device: torch.device

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context manager in which forward passes run."""
        if self.name in ("fp32", "tf32", "int8"):
            return nullcontext()
        dtype = torch.bfloat16 if self.name == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the precision with this name; "auto" is bf16 if the hardware multiplies in bf16, otherwise fp32.

    Where int8 products are not fast and exact, int8 becomes fp32 with a warning, and so does bf16 where oneDNN has no
    bf16 kernels. The call also sets the TF32 switches of the process. Raises InputError if the name is unknown or the
    device does not support the precision.
    """
    if name not in SEARCH_PRECISIONS:
        raise InputError(f"precision={name} is unknown: choose one of {', '.join(SEARCH_PRECISIONS)}")
    if name == "auto":
        name = "bf16" if has_fast_bf16(device) else "fp32"
    if name in ("tf32", "fp16") and device.type != "cuda":
        raise InputError(f"precision={name} needs a CUDA device, this run is on {device}: use precision=bf16 or fp32")
    if name == "int8" and (obstacle := int8_obstacle(device)):
        log.warning("precision=int8 runs as fp32 here: %s", obstacle)
        name = "fp32"
    if name == "bf16" and device.type == "cpu" and onednn_dtypes() == (torch.float32,):
        # An LSTM under autocast would end in a RuntimeError of oneDNN.
        log.warning("precision=bf16 runs as fp32 here: oneDNN has no bf16 kernels for this processor")
        name = "fp32"
    # Set for every precision: a second run in the same process must not inherit the setting of the first.
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = name == "tf32"
    return Precision(name, device)


def has_fast_bf16(device: torch.device) -> bool:
    """Return True if the hardware multiplies in bf16. Emulated bf16 is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def int8_obstacle(device: torch.device) -> str | None:
    """Return the reason why this device has no fast and exact int8 products; None if it has them."""
    if device.type != "cpu":
        return f"int8 is for CPUs, this run is on {device}; use precision=bf16 there"
    if not onednn_dtypes():
        return "this build of torch has no oneDNN, whose int8 kernels are needed"
    # Without VNNI instructions, products of 8-bit integers are accumulated in 16 bits, which overflow.
    capabilities = torch.cpu.get_capabilities()
    if not (capabilities.get("avx512_vnni") or capabilities.get("avx_vnni")):
        return "the processor has no VNNI instructions"
    return None


# oneDNN


def onednn_dtypes() -> tuple[torch.dtype, ...]:
    """Return the dtypes that oneDNN multiplies on this CPU, including emulated ones; () without oneDNN."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return ()
    return (torch.float32, torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)


def set_onednn_cache_capacity(capacity: int | None) -> None:
    """Set the number of compiled kernels that oneDNN keeps; None leaves its default of 1,024.

    On a CPU, oneDNN compiles a kernel for each shape of an LSTM or a matrix product, in about a millisecond. If the
    batches of a corpus have more shapes than the cache holds, kernels are compiled again in every epoch. Each kernel
    takes memory: about 0.6 MB for an LSTM with 256 units. Call this before the first matrix product of the process. The
    environment variable ONEDNN_PRIMITIVE_CACHE_CAPACITY takes precedence.
    """
    if capacity is not None:
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(capacity))


# Memory

# Parts of the messages of RuntimeErrors and OSErrors that mean out-of-memory but are no torch.OutOfMemoryError.
_OUT_OF_MEMORY_MESSAGES = (
    "Storage size calculation overflowed",  # of torch: more bytes than 64 bits can count
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
    """Return True if the error means that Python, torch or one of its libraries could not allocate memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(message in str(error) for message in _OUT_OF_MEMORY_MESSAGES)


LARGE_MODEL_PARAMETERS = 100_000_000
"""`return_freed_memory` applies from this size, `keep_freed_memory` below it. Updates of smaller models are so short
that returning memory would double their time."""

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # constants of glibc's malloc.h
_RETURNED_BYTES = 1 << 20  # glibc maps each larger block separately, and returns it when it is freed
_LARGEST_KEPT_BYTES = (1 << 28, 1 << 25)  # old versions of glibc refuse the first
_KEPT_BYTES = 1 << 30  # freed memory at the end of the heap that glibc keeps


def return_freed_memory(num_parameters: int, device: torch.device) -> bool:
    """Make glibc return the memory of tensors of 1 MiB or more to the system when they are freed.

    By default glibc keeps the memory of activations for later use. With 193 million parameters, an update then holds
    twice as much memory on top of weights, gradients and optimizer state, and is no faster.

    The setting is made only for models of at least LARGE_MODEL_PARAMETERS, on a CPU, with glibc, and if
    MALLOC_MMAP_THRESHOLD_ is not in the environment. It holds for the rest of the process. Returns True if it was made.
    """
    mallopt = _mallopt(device)
    if num_parameters < LARGE_MODEL_PARAMETERS or mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _RETURNED_BYTES))


def keep_freed_memory(num_parameters: int, device: torch.device) -> bool:
    """Make glibc keep the memory of freed tensors for the next ones.

    By default glibc returns freed memory at the end of its heap to the system. In search, that is the memory of a
    step's log-probabilities, which the next step asks for again: with 10,000 subwords, beam 5 and 64 sentences, this
    took a quarter of the processor's time.

    The setting is made only for models of fewer than LARGE_MODEL_PARAMETERS, on a CPU, with glibc, and if
    MALLOC_MMAP_THRESHOLD_ is not in the environment. It holds for the rest of the process. Returns True if it was made.
    """
    mallopt = _mallopt(device)
    if num_parameters >= LARGE_MODEL_PARAMETERS or mallopt is None:
        return False
    # The second setting alone would stop glibc from raising the first.
    is_set = any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST_KEPT_BYTES)
    return is_set and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))


def _mallopt(device: torch.device) -> Callable[[int, int], int] | None:
    """Return glibc's mallopt, or None where it is not to be called."""
    if device.type != "cpu" or sys.platform != "linux" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return None
    return getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none


# Triton kernels


def triton_runs(device: torch.device, trial: Callable[[], object], slower: str) -> bool:
    """Return whether Triton kernels run on a device; on GPUs where they do not, warn.

    CUDA builds of torch bring Triton, but a compiler of C, which Triton needs when a kernel is first called, may be
    missing, and old GPUs are not supported. A trial finds out. GNMT_TRITON=0 in the environment turns the kernels off,
    to compare them with the plain PyTorch that replaces them; 1 is the default.

    Raises InputError for another value of GNMT_TRITON.

    Args:
        device: The device.
        trial: Calls each kernel with small tensors.
        slower: What runs more slowly without the kernels, for the warning.
    """
    wanted = os.environ.get("GNMT_TRITON", "1")
    if wanted not in ("0", "1"):
        raise InputError(f"GNMT_TRITON={wanted} in the environment: allowed are 0 (no Triton kernels) and 1")
    if device.type != "cuda" or wanted == "0":
        return False
    if importlib.util.find_spec("triton") is None:
        obstacle = "Triton is not installed"
    else:
        try:
            trial()
            return True
        except Exception as error:  # of Triton, its compilers or the driver
            if is_out_of_memory(error):
                raise
            lines = str(error).strip().splitlines() or [""]
            obstacle = f"{type(error).__name__}: " + " ... ".join(dict.fromkeys((lines[0], lines[-1])))
    log.warning("%s runs more slowly, without its Triton kernels: %s", slower, obstacle)
    return False


# Deterministic kernels

# cuBLAS workspaces with which cuDNN's LSTM sums in the same order each time.
_DETERMINISTIC_WORKSPACES = (":16:8", ":4096:2")


@contextmanager
def deterministic_kernels(enabled: bool) -> Iterator[None]:
    """Make operations inside this context return the same bits each time, on CUDA too. Do nothing unless `enabled`.

    Raises InputError if an operation has no deterministic kernel, or if CUBLAS_WORKSPACE_CONFIG in the environment
    allows nondeterministic ones.
    """
    if not enabled:
        yield
        return
    workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _DETERMINISTIC_WORKSPACES[0])
    if workspace not in _DETERMINISTIC_WORKSPACES:
        raise InputError(
            f"deterministic=true: found CUBLAS_WORKSPACE_CONFIG={workspace} in the environment, allowed is "
            f"{' or '.join(_DETERMINISTIC_WORKSPACES)}: remove it, or set deterministic=false"
        )
    previous_torch = torch.are_deterministic_algorithms_enabled()
    previous_cudnn = torch.backends.cudnn.deterministic
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
        torch.use_deterministic_algorithms(previous_torch)
        torch.backends.cudnn.deterministic = previous_cudnn
