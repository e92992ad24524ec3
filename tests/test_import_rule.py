"""Imports point one way: scripts, training, decoding, then model and data, then types."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST_FILE_LINES = 310

# What each part of gnmt may import beside itself. files is a leaf; evaluation, reporting, runtime and distributed are
# leaves above types.
ALLOWED = {
    "gnmt.types": set(),
    "gnmt.files": set(),
    "gnmt.distributed": {"gnmt.types"},
    "gnmt.runtime": {"gnmt.types"},
    "gnmt.evaluation": {"gnmt.types"},
    "gnmt.reporting": {"gnmt.types"},
    "gnmt.early_interrupt": set(),
    "gnmt.config": {"gnmt.types", "gnmt.early_interrupt"},
    "gnmt.data": {"gnmt.types", "gnmt.files"},
    "gnmt.model": {"gnmt.types"},
    "gnmt.checkpoint_faults": {"gnmt.types"},
    "gnmt.checkpoint": {
        *("gnmt.types", "gnmt.files", "gnmt.config", "gnmt.data.tokenizer", "gnmt.model", "gnmt.checkpoint_faults"),
    },
    "gnmt.inspection": {"gnmt.types", "gnmt.checkpoint", "gnmt.data.tokenizer"},
}
LEAVES = {"gnmt.types", "gnmt.runtime", "gnmt.evaluation", "gnmt.reporting", "gnmt.config", "gnmt.data", "gnmt.model"}
ALLOWED["gnmt.decoding"] = LEAVES | {"gnmt.checkpoint", "gnmt.files", "gnmt.distributed", "gnmt.early_interrupt"}
ALLOWED["gnmt.training"] = ALLOWED["gnmt.decoding"] | {
    *("gnmt.decoding", "gnmt.checkpoint_faults"),
}
ALLOWED["gnmt.comparison"] = {"gnmt.types", "gnmt.config", "gnmt.reporting", "gnmt.checkpoint", "gnmt.inspection"}
ALLOWED["gnmt.interchange"] = {
    *("gnmt.types", "gnmt.files", "gnmt.config", "gnmt.data", "gnmt.model", "gnmt.checkpoint", "gnmt.decoding.options"),
    "gnmt.checkpoint_faults",
}
ONLY_CONFIG = {"hydra", "omegaconf"}

FILES = sorted(path for folder in ("gnmt", "scripts") for path in (ROOT / folder).rglob("*.py"))
MODULES = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES}


def imports(source: str, module: str) -> set[str]:
    """The dotted names that a module imports, at its top or inside functions; relative ones made absolute."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module.split(".")[: -node.level]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            # `from gnmt import training` imports gnmt.training, `from gnmt.types import Batch` only gnmt.types.
            submodules = {f"{origin}.{alias.name}" for alias in node.names} & set(MODULES.values())
            names.update(submodules or {origin})
    return names


def part_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def lies_in(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def violations(source: str, module: str) -> list[str]:
    """The imports of a module that point the wrong way."""
    found = imports(source, module)
    wrong = []
    if module.startswith("gnmt."):
        allowed = ALLOWED[part_of(module)] | {part_of(module)}
        wrong += [name for name in found if name.split(".")[0] == "gnmt" and not lies_in(name, allowed)]
        wrong += [name for name in found if name.split(".")[0] in ("scripts", "tests", "benchmarks")]
    if part_of(module) != "gnmt.config":
        wrong += [name for name in found if name.split(".")[0] in ONLY_CONFIG]
    return sorted(wrong)


def test_every_part_has_its_rule():
    assert {part_of(module) for module in MODULES.values() if module.startswith("gnmt.")} == ALLOWED.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: MODULES[path])
def test_imports_point_one_way(path):
    assert violations(path.read_text(encoding="utf-8"), MODULES[path]) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("gnmt.model.seq2seq", "from gnmt.decoding.search import search", ["gnmt.decoding.search"]),
        ("gnmt.data.store", "def f():\n    import gnmt.checkpoint", ["gnmt.checkpoint"]),
        ("gnmt.checkpoint", "from gnmt.data.prepared import Prepared", ["gnmt.data.prepared"]),
        ("gnmt.decoding.search", "from gnmt import training", ["gnmt.training"]),
        ("gnmt.decoding.search", "from ..training import loss", ["gnmt.training.loss"]),
        ("gnmt.training.loss", "from omegaconf import DictConfig", ["omegaconf"]),
        ("scripts.train", "import hydra", ["hydra"]),
        ("gnmt.config.check", "from hydra import compose", []),
        ("gnmt.training.run", "from gnmt.decoding.translator import Translator\nimport torch", []),
    ],
)
def test_the_rule_sees_what_breaks_it(module, source, wrong):
    assert violations(source, module) == wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: MODULES[path])
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE_LINES
