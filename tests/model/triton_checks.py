"""Checks of Triton kernels on machines without a GPU: they run in Triton's interpreter, and compile for a GPU."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

# Triton is in the extra `dev` there. On other machines it may be missing.
has_triton = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="Triton is for Linux on x86-64"
)


def check_in_interpreter(tests: Path, least: int) -> None:
    """Run a file of tests in a process with Triton's interpreter, which must be chosen before kernels are imported.

    A run in which the tests do not start, because Triton is missing, fails too.

    Args:
        tests: The file.
        least: Number of tests that must pass.
    """
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(tests)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    counts = re.search(r"^(\d+) passed in", finished.stdout.splitlines()[-1])  # none was skipped
    assert counts, finished.stdout
    assert int(counts[1]) >= least


def check_that_it_compiles(
    kernel: Any,
    pointers: dict[str, str],
    constants: dict[str, Any],
    aligned: bool,
    tuples: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> None:
    """Compile a kernel for a GPU. The interpreter accepts code that the compiler refuses.

    Args:
        kernel: The kernel.
        pointers: The data type behind each pointer, by argument.
        constants: The values of tl.constexpr arguments.
        aligned: Whether pointers and numbers are multiples of 16, for which Triton compiles another kernel.
        tuples: Triton's types of the elements, for each argument that is a tuple.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    never_aligned = set(kernel.do_not_specialize)
    assert never_aligned <= set(names)
    assert set(pointers) | set(constants) | set(tuples) <= set(names)
    signature = {
        name: "constexpr" if name in constants else f"*{pointers[name]}" if name in pointers else "i32"
        for name in names
    }
    signature |= tuples
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if aligned and name not in constants and name not in never_aligned and name not in tuples
    }
    compiled = triton.compile(ASTSource(kernel, signature, constants, attributes), target=GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"].startswith(b"\x7fELF")
    assert "atom" not in compiled.asm["ptx"]  # sums have a fixed order


class FakeDriver:
    """A driver of a GPU of compute capability 9.0 that can launch nothing."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@contextmanager
def launches_compile(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let the functions of kernels.py compile what they launch, for a GPU, and launch nothing; their results are zeros.

    Triton's own front end gets the arguments, and compiles other code for a size of 1. Yields the names of the kernels
    in the order in which they are compiled.
    """
    import torch
    from triton.runtime import driver

    from gnmt.decoding.engine import kernels

    compiled: list[str] = []

    class Compiled:
        def __init__(self, name: str, kernel: Any) -> None:
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid: Any) -> Any:
            def launch(*args: Any, **kwargs: Any) -> None:
                self.kernel.warmup(*args, grid=grid, **kwargs)
                compiled.append(self.name)

            return launch

    for name, kernel in list(vars(kernels).items()):
        if name.endswith("_kernel"):
            monkeypatch.setattr(kernels, name, Compiled(name, kernel))
    monkeypatch.setattr(torch, "empty", torch.zeros)
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
    monkeypatch.setattr(driver, "_active", FakeDriver())
    yield compiled
