"""Links and anchors of the documents lead somewhere; architecture.md and paper-map.md name what exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCS = [ROOT / "docs" / "architecture.md", ROOT / "docs" / "paper-map.md"]
# A link with code as its text: [`A`, `B`](file.py) or [`file.py`](file.py).
LINK = re.compile(r"\[((?:`[^`]+`(?:, )?)+)\]\(([^)#]+\.py)\)")
API = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)  # what mkdocstrings documents
CODE = re.compile(r"`([^`\n]+)`")
# Names of other libraries and of the papers, and names of files and packages that a reader would add.
NOT_OURS = {"CUBLAS_WORKSPACE_CONFIG", "beamsize", "mylab", "lp", "cp", "y_0", "configs/schedule/linear.yaml"}


def code_words() -> set[str]:
    """Return the identifiers and short strings of Python, the words of YAML, and the names of files and folders.

    Comments do not count.
    """
    words: set[str] = set()
    for path in (path for name in ("gnmt", "scripts", "configs") for path in (ROOT / name).rglob("*")):
        words.update(re.findall(r"\w+", str(path.relative_to(ROOT))))
        if path.suffix == ".yaml":
            words.update(re.findall(r"\w+", re.sub(r"#.*", "", path.read_text(encoding="utf-8"))))
        elif path.suffix == ".py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                named = [getattr(node, field, None) for field in ("id", "attr", "arg", "name", "value")]
                short = [text for text in named if isinstance(text, str) and " " not in text]
                words.update(word for text in short for word in re.findall(r"\w+", text))
    return words


def names_defined_in(path: Path) -> set[str]:
    """Return the classes, functions and constants of a file; methods as `Class.method` and as `method`."""
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
    return code_words()


@pytest.fixture(scope="module")
def methods() -> dict[str, set[str]]:
    """Return the methods and annotated attributes of each class of gnmt, including inherited ones."""
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
    """Return the text of a document without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> list[str]:
    """Return the anchors of the headings of a document, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    texts = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower() for heading in headings)
    return [re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(document: Path) -> None:
    """An anchor must belong to one heading only, because renderers number repeated ones differently."""
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if "://" not in link and not (target.exists() and (not anchor or anchors(target).count(anchor) == 1)):
            wrong.append(link)
    assert wrong == []


def test_anchors_are_those_of_github(tmp_path: Path) -> None:
    text = "# A `b_c` [link](x.md)\n\n```\n# no heading\n```\n\n## BLEU, chrF (two-fold)?\n"
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    assert anchors(tmp_path / "page.md") == ["a-b_c-link", "bleu-chrf-two-fold"]


def test_the_site_shows_every_page() -> None:
    def pages(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    of_the_hook = ["changelog.md", "index.md"]  # from CHANGELOG.md and README.md
    documents = [str(path.relative_to(ROOT / "docs")) for path in DOCUMENTS[1:]]
    assert sorted(pages(nav)) == sorted(documents + of_the_hook), "each page stands once in nav of mkdocs.yml"


def test_the_reference_names_what_exists() -> None:
    named = [name for page in (ROOT / "docs" / "api").glob("*.md") for name in API.findall(page.read_text("utf-8"))]
    assert len(named) > 30
    missing = []
    for name in named:
        module, _, member = name.rpartition(".")
        path = ROOT / f"{module.replace('.', '/')}.py"
        if not path.is_file() or member not in names_defined_in(path):
            missing.append(name)
    assert missing == []


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_names_in_a_link_are_defined_in_the_linked_file(document: Path) -> None:
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
def test_every_path_and_name_exists(document: Path, code: set[str], methods: dict[str, set[str]]) -> None:
    missing = []
    for text in CODE.findall(prose(document)):
        path = re.fullmatch(r"((?:gnmt|configs|scripts|tests|docs)/[\w/.-]*)", text)
        if path and not (ROOT / path[1]).exists() and text not in NOT_OURS:
            missing.append(text)
        # A dotted name, alone or followed by a value. Formulas, globs and commands do not match and are skipped.
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
def test_names_of_a_file_include_its_methods(text: str, names: set[str], tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(text)
    assert names_defined_in(tmp_path / "one.py") == names


def test_every_file_of_the_layout_exists() -> None:
    [layout] = re.findall(r"## Layout and import rule\n\n```\n(.*?)```", DOCS[0].read_text(encoding="utf-8"), re.DOTALL)
    found = re.findall(r"(?<![\w/])([a-z_]+(?:\.py|/))", layout)
    assert len(found) > 15
    roots = (ROOT, ROOT / "gnmt", ROOT / "gnmt" / "data", ROOT / "gnmt" / "model", ROOT / "gnmt" / "decoding")
    assert [name for name in found if not any((root / name).exists() for root in roots)] == []
