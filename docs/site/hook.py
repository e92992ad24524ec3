"""A hook of mkdocs: pages for README.md, CHANGELOG.md and every source file that the documents link to.

The documents link to files of the repository by relative paths, which lead out of the folder of the documentation. The
hook makes a page of each such file, so that the site is complete without the repository.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
"""Documents outside of docs/, and the names of their pages."""
BLOCK = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^][]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")
ROW = re.compile(r"^\|.*$", re.MULTILINE)
CODE = re.compile(r"`[^`]+`")
LANGUAGES = {".py": "python", ".yaml": "yaml"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")  # anchors as on GitHub
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for document, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / document).read_text(encoding="utf-8")))
    for page in list(files.documentation_pages()):
        for part in BLOCK.split(page.content_string)[::2]:
            for _, link, _ in LINK.findall(part):
                path = repository_path(link, page.src_uri)
                name = source_page(path)
                if is_source(path) and files.get_file_from_path(name) is None:
                    files.append(File.generated(config, name, content=source_text(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files outside of docs/ lead to their pages, and adapt what GitHub and mkdocs read differently."""
    if page.file.src_uri.startswith("source/"):
        return markdown
    titles = nav_titles(config.nav)
    parts = BLOCK.split(markdown)
    for index, part in list(enumerate(parts))[::2]:
        linked = LINK.sub(lambda match: adapted_link(match, page.file.src_uri, titles), part)
        # In code in a table, GitHub needs \| for a bar, and mkdocs shows the backslash.
        parts[index] = ROW.sub(lambda row: CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0]), linked)
    return "".join(parts)


def nav_titles(nav: Any) -> dict[str, str]:
    """Return the title of each page in the navigation."""
    titles: dict[str, str] = {}
    for title, entry in ((title, entry) for part in nav for title, entry in part.items()):
        titles |= {entry: title} if isinstance(entry, str) else nav_titles(entry)
    return titles


def adapted_link(match: re.Match[str], page: str, titles: Mapping[str, str]) -> str:
    """Return a link for the site. A text that is the name of a document is replaced by the title of its page."""
    text, link, anchor = match[1], match[2], match[3] or ""
    target = link_target(link, page)
    if text.endswith(".md") and target in titles:
        text = titles[target]
    return f"[{text}]({os.path.relpath(target, Path(page).parent)}{anchor})"


def link_target(link: str, page: str) -> str:
    """Return the page, or another file of the site, to which a link leads, relative to the root of the site."""
    path = repository_path(link, page)
    if path.parts[0] == "docs":
        return f"{path.relative_to('docs')}/README.md" if (ROOT / path).is_dir() else str(path.relative_to("docs"))
    return PAGES.get(str(path)) or source_page(path)  # mkdocs reports a page that does not exist


def repository_path(link: str, page: str) -> Path:
    """Return the path in the repository to which a link of a page leads."""
    document = {name: path for path, name in PAGES.items()}.get(page, f"docs/{page}")
    return Path(os.path.normpath(Path(document).parent / link))


def is_source(path: Path) -> bool:
    return path.parts[0] not in ("docs", "..") and str(path) not in PAGES and (ROOT / path).exists()


def source_page(path: Path) -> str:
    return f"source/{path}.md"


def source_text(path: Path) -> str:
    """Return a page with the text of a file, or with the texts of all files of a folder."""
    full = ROOT / path
    names = sorted(each.name for each in full.iterdir() if each.is_file()) if full.is_dir() else []
    blocks = [f"## {name}\n\n{code_block(full / name)}" for name in names] or [code_block(full)]
    return f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n" + "\n\n".join(blocks)


def code_block(path: Path) -> str:
    return f"``````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text(encoding='utf-8')}\n``````"
