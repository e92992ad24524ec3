"""Every file, class, function and key that docs/architecture.md and docs/paper-map.md name is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "docs" / "architecture.md", ROOT / "docs" / "paper-map.md"]
# A link whose text is code: [`A`, `B`](file.py), also [`file.py`](file.py).
LINK = re.compile(r"\[((?:`[^`]+`(?:, )?)+)\]\(([^)#]+\.py)\)")
CODE = re.compile(r"`([^`\n]+)`")
# Names of other libraries and of the papers, and what a reader writes.
NOT_OURS = {"CUBLAS_WORKSPACE_CONFIG", "beamsize", "mylab", "lp", "cp", "y_0", "configs/schedule/linear.yaml"}


def words_of_the_code() -> set[str]:
    """Identifiers and short strings of Python, keys and values of YAML, names of files and folders; no comments."""
    words: set[str] = set()
    for path in (path for name in ("gnmt", "scripts", "configs") for path in (ROOT / name).rglob("*")):
        words.update(path.relative_to(ROOT).with_suffix("").parts)
        if path.suffix == ".yaml":
            words.update(re.findall(r"\w+", re.sub(r"#.*", "", path.read_text(encoding="utf-8"))))
        elif path.suffix == ".py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                named = [getattr(node, field, None) for field in ("id", "attr", "arg", "name", "value")]
                short = [text for text in named if isinstance(text, str) and " " not in text]
                words.update(word for text in short for word in re.findall(r"\w+", text))
    return words


def names_defined_in(path: Path) -> set[str]:
    """Classes, functions, constants; methods as `Class.method` and as `method`."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
            names |= {node.name} | methods | {f"{node.name}.{method}" for method in methods}
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@pytest.fixture(scope="module")
def code() -> set[str]:
    return words_of_the_code()


@pytest.fixture(scope="module")
def methods() -> dict[str, set[str]]:
    """What each class of gnmt defines itself or takes over from a class of gnmt."""
    classes = {
        node.name: node
        for path in (ROOT / "gnmt").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }

    def of(name: str) -> set[str]:
        node = classes[name]
        own = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
        own |= {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)}
        bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
        return own.union(*map(of, bases))

    return {name: of(name) for name in classes}


def prose(document: Path) -> str:
    """The text without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_what_a_link_names_is_defined_in_the_file_that_it_leads_to(document: Path) -> None:
    links = LINK.findall(prose(document))
    assert len(links) > 20
    missing = []
    for texts, target in links:
        path = (document.parent / target).resolve()
        names = names_defined_in(path)
        for text in CODE.findall(texts):
            name = text.split(".", 1)[1] if text.startswith(f"{path.stem}.") else text
            if not text.endswith(path.name) and name not in names:
                missing.append(f"{text} in {target}")
    assert missing == []


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_every_path_and_every_name_exists(document: Path, code: set[str], methods: dict[str, set[str]]) -> None:
    missing = []
    for text in CODE.findall(prose(document)):
        path = re.fullmatch(r"((?:gnmt|configs|scripts|tests|docs)/[\w/.-]*)", text)
        if path and not (ROOT / path[1]).exists() and text not in NOT_OURS:
            missing.append(text)
        # A name with dots, alone or with the value of a key behind it; formulas, globs and commands are neither.
        name = re.fullmatch(r"([A-Za-z_]\w+(?:\.[A-Za-z_]\w*)*)(?:[=:] ?[\w.,-]*)?", text)
        if name is None or name[1] in NOT_OURS:
            continue
        first, *rest = name[1].split(".")
        of_class = first in methods and bool(rest)
        if (of_class and rest[0] not in methods[first]) or not {first, *rest} <= code | NOT_OURS:
            missing.append(text)
    assert missing == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("def a():\n    pass\nB = 1\n", {"a", "B"}),
        ("class C:\n    def d(self):\n        pass\n", {"C", "d", "C.d"}),
    ],
)
def test_the_names_of_a_file(text: str, names: set[str], tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(text)
    assert names_defined_in(tmp_path / "one.py") == names


def test_every_file_of_the_layout_exists() -> None:
    [layout] = re.findall(r"## Layout and import rule\n\n```\n(.*?)```", DOCS[0].read_text(encoding="utf-8"), re.DOTALL)
    found = re.findall(r"(?<![\w/])([a-z_]+(?:\.py|/))", layout)
    assert len(found) > 15
    roots = (ROOT, ROOT / "gnmt", ROOT / "gnmt" / "data", ROOT / "gnmt" / "model", ROOT / "gnmt" / "decoding")
    assert [name for name in found if not any((root / name).exists() for root in roots)] == []
