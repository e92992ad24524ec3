"""Device, precision, and the settings of oneDNN, cuDNN and the memory allocator."""

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

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
"""What `precision` may be; gnmt.device says what they mean."""

SEARCH_PRECISIONS = (*PRECISIONS, "int8")
"""The same for translating and scoring, where weights may be quantized."""


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """name: fp32, tf32, bf16, fp16 or int8.

    In training weights stay fp32 and products run in the named type by autocast. For search
    gnmt.decoding.engine.inference_copy copies the model with weights of the named type; int8 exists only there.
    """

    name: str
    device: torch.device

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which forward passes run."""
        if self.name in ("fp32", "tf32", "int8"):
            return nullcontext()
        dtype = torch.bfloat16 if self.name == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device={name} is no device: choose auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device={name} is not supported: choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device={name}: torch sees {torch.cuda.device_count()} CUDA devices; use device=auto or cpu")
    return device


def device_name(device: torch.device) -> str:
    """The name of the GPU or of the processor, as its maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(torch.cpu.get_capabilities()["cpu_name"])


def choose_precision(name: str, device: torch.device) -> Precision:
    """The precision of that name; "auto" takes bf16 where the hardware multiplies in it, else fp32.

    int8 becomes fp32, with a warning, where torch or the processor has no fast int8 products.
    """
    if name not in SEARCH_PRECISIONS:
        raise InputError(f"precision={name} is unknown: choose one of {', '.join(SEARCH_PRECISIONS)}")
    if name == "auto":
        name = "bf16" if has_fast_bf16(device) else "fp32"
    if name in ("tf32", "fp16") and device.type != "cuda":
        raise InputError(f"precision={name} needs a CUDA device, this run is on {device}: use precision=bf16 or fp32")
    if name == "int8" and (missing := what_int8_misses(device)):
        log.warning("precision=int8 runs as fp32 here: %s", missing)
        name = "fp32"
    # Set both ways, so that a second run in the same process does not inherit the first one's choice.
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = name == "tf32"
    return Precision(name, device)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 products are faster than fp32 there, and not only emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def what_int8_misses(device: torch.device) -> str | None:
    """Why int8 products do not run fast and exact there; None where they do."""
    if device.type != "cpu":
        return f"int8 is for CPUs, this run is on {device}; precision=bf16 is the fast one there"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this build of torch has no oneDNN, which multiplies the integers"
    # Without these instructions the products of 8-bit numbers are added up in 16 bits, and overflow.
    capabilities = torch.cpu.get_capabilities()
    if not (capabilities.get("avx512_vnni") or capabilities.get("avx_vnni")):
        return "the processor has no VNNI instructions"
    return None


_KERNEL_CACHE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


def set_onednn_cache_capacity(number: int | None) -> None:
    """Lets oneDNN keep so many compiled kernels; None for its own 1,024. The environment's own word counts for more.

    oneDNN runs LSTMs and products on a CPU with a kernel for each shape, which takes a millisecond or so to make. A
    corpus in batches of many shapes needs more of them than the default in every epoch, and each is then made anew.
    A kernel holds memory: some 0.6 MB for an LSTM of 256 units. Must come before the process's first product.
    """
    if number is not None:
        os.environ.setdefault(_KERNEL_CACHE, str(number))


# Below it updates are short, and taking memory from the system anew in each would slow them by half.
LARGE_MODEL_PARAMETERS = 100_000_000
_MMAP_THRESHOLD = "MALLOC_MMAP_THRESHOLD_"
_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_RETURNED_BYTES = 1 << 20


def return_freed_memory(num_parameters: int, device: torch.device) -> bool:
    """Has glibc give tensors of a megabyte and more back to the system as soon as they are freed; whether it does.

    Otherwise it keeps what activations held, for later: an update of 193 million parameters then holds twice as much
    above weights, gradients and optimizer state, and is no faster. Only for a model of LARGE_MODEL_PARAMETERS on a CPU,
    with glibc, and where the environment has no word of its own. It counts for the rest of the process.
    """
    if num_parameters < LARGE_MODEL_PARAMETERS or device.type != "cpu" or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None or _MMAP_THRESHOLD in os.environ:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _RETURNED_BYTES))


# What cuBLAS needs for cuDNN's LSTM to add up in the same order each time.
DETERMINISTIC_WORKSPACES = (":16:8", ":4096:2")


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Inside it, where wanted, operations give the same bits each time, on CUDA too, or refuse to run.

    Raises InputError for an operation that has no such kernel, and where the environment asks for something else.
    """
    if not wanted:
        yield
        return
    workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", DETERMINISTIC_WORKSPACES[0])
    if workspace not in DETERMINISTIC_WORKSPACES:
        raise InputError(
            f"deterministic=true: found CUBLAS_WORKSPACE_CONFIG={workspace} in the environment, allowed is "
            f"{' or '.join(DETERMINISTIC_WORKSPACES)}: remove it, or give deterministic=false"
        )
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        what = str(error).split(" does not have")[0]
        raise InputError(
            f"deterministic=true: torch has no deterministic kernel here for {what}: give deterministic=false, or use "
            "parts of the model that do without it"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.deterministic = before[1]


def onednn_dtypes() -> tuple[torch.dtype, ...]:
    """The types that oneDNN multiplies on this processor."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return ()
    return (torch.float32, torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)
