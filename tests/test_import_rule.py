"""Imports point one way and form no cycle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the lowest layer to the highest. A module may import from lower layers and from its own.
LAYERS = (
    {"gnmt.errors", "gnmt.logs", "gnmt.signals"},
    {"gnmt.batch", "gnmt.fileio", "gnmt.device", "gnmt.distributed"},
    {"gnmt.reporting"},
    {"gnmt.config"},
    {"gnmt.data", "gnmt.model", "gnmt.decoding.options"},
    {"gnmt.checkpoint"},
    {"gnmt.decoding"},
    {"gnmt.translation", "gnmt.evaluation", "gnmt.training"},
)
LEVELS = {part: level for level, parts in enumerate(LAYERS) for part in parts}
APART = {("gnmt.data", "gnmt.model"), ("gnmt.model", "gnmt.data")}
REPORTING_IMPORTS = {"gnmt.errors", "gnmt.batch", "gnmt.reporting"}
ONLY_CONFIG = {"hydra", "omegaconf"}

FILES = sorted(path for folder in ("gnmt", "scripts") for path in (ROOT / folder).rglob("*.py"))
MODULES = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES}


def imports(source: str, module: str) -> set[str]:
    """Return the dotted names that a module imports, at its top or inside functions; relative ones made absolute."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module.split(".")[: -node.level]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            # `from gnmt import training` imports gnmt.training, `from gnmt.batch import Batch` only gnmt.batch.
            submodules = {f"{origin}.{alias.name}" for alias in node.names} & set(MODULES.values())
            names.update(submodules or {origin})
    return names


def part_of(module: str) -> str:
    return module if module in LEVELS else ".".join(module.split(".")[:2])


def violations(source: str, module: str) -> list[str]:
    """Return the imports of a module that point the wrong way."""
    found = imports(source, module)
    wrong = []
    if module.startswith("gnmt."):
        part = part_of(module)
        ours = [name for name in found if name.startswith("gnmt.")]
        wrong += [name for name in ours if LEVELS[part_of(name)] > LEVELS[part] or (part, part_of(name)) in APART]
        wrong += [name for name in ours if part == "gnmt.reporting" and part_of(name) not in REPORTING_IMPORTS]
        wrong += [name for name in found if name == "gnmt" or name.split(".")[0] in ("scripts", "tests", "benchmarks")]
    if part_of(module) != "gnmt.config":
        wrong += [name for name in found if name.split(".")[0] in ONLY_CONFIG]
    return sorted(wrong)


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or through others (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(edges[module]):
            if other not in index:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1 or module in edges[module]:
                found.append(sorted(group))

    for module in edges:
        if module not in index:
            visit(module)
    return found


def test_every_part_has_a_layer():
    assert {part_of(module) for module in MODULES.values() if module.startswith("gnmt.")} == LEVELS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: MODULES[path])
def test_imports_point_one_way(path):
    assert violations(path.read_text(encoding="utf-8"), MODULES[path]) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("gnmt.model.seq2seq", "from gnmt.decoding.search import search", ["gnmt.decoding.search"]),
        ("gnmt.data.store", "def f():\n    import gnmt.checkpoint.load", ["gnmt.checkpoint.load"]),
        ("gnmt.model.attention", "from gnmt.data.store import Store", ["gnmt.data.store"]),
        ("gnmt.decoding.search", "from gnmt import training", ["gnmt.training"]),
        ("gnmt.decoding.search", "from ..training import objective", ["gnmt.training.objective"]),
        ("gnmt.decoding.search", "from gnmt import Translator", ["gnmt"]),
        ("gnmt.training.objective", "from omegaconf import DictConfig", ["omegaconf"]),
        ("gnmt.reporting.figures", "from gnmt.config.build import build", ["gnmt.config.build"] * 2),
        ("scripts.train", "import hydra", ["hydra"]),
        ("gnmt.config.cli", "from hydra import compose", []),
        ("gnmt.training.train", "from gnmt.decoding.translator import Translator\nimport torch", []),
        ("gnmt.training.trainer", "from gnmt.evaluation.metrics import score_translations", []),
    ],
)
def test_the_rule_sees_what_breaks_it(module, source, wrong):
    assert violations(source, module) == wrong


def test_no_modules_import_each_other():
    modules = {module: path for path, module in MODULES.items() if module.startswith("gnmt.")}
    edges = {
        module: {name for name in imports(path.read_text(encoding="utf-8"), module) if name in modules}
        for module, path in modules.items()
    }
    assert sum(map(len, edges.values())) > len(edges), "no imports were read"
    assert cycles(edges) == []


@pytest.mark.parametrize(
    ("edges", "found"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}, [["a", "b", "c"]]),
        ({"a": {"a"}, "b": set()}, [["a"]]),
    ],
)
def test_cycles_are_found(edges, found):
    assert cycles(edges) == found
