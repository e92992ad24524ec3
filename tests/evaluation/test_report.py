"""The HTML report: its tables, its embedded data, hostile text, and what it reads."""

import gzip
import json
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gnmt.errors import InputError
from gnmt.evaluation.report import Inputs, Report, build_report, word_frequencies
from gnmt.evaluation.significance import compare_systems
from gnmt.evaluation.systems import Scoring, System, choose_sources, read_system

SOURCES = ["A man in 1999.", "</script><script>alert(1)</script>", "Tom & <b>Jerry</b>\u2028next", "no dog"]
REFERENCES = ["Ein Mann in 1999.", "Das ist nicht gut.", "Tom & Jerry", "kein Hund"]
GOOD = System("good", REFERENCES, scores=[-0.5] * 4, attention=[[[0.25, 0.75]], [], [[1.0]], [[0.5, 0.5]]])
GOOD = replace(GOOD, word_log_probs=[[0.0, -1.0, -9.0, 0.0], [], [0.0], [0.0, 0.0]])
BAD = System("<bad>", ["Ein Mann Mann.", "</script>", "Tom dog", "dog dog"])


class Page(HTMLParser):
    """Collect the cells of tables, the text of scripts by id, tags and links of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.scripts: dict[str, str] = {}
        self.tags: list[str] = []
        self.links: list[str] = []
        self._inside: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        attributes = dict(attrs)
        self.tags.append(tag)
        self.links += [value for key, value in attributes.items() if key in ("href", "src") and value]
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td") and self.rows:
            self.rows[-1].append("")
        if tag not in ("meta", "input", "link", "br"):
            self._inside.append((tag, attributes.get("id", "")))

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        tag, identifier = self._inside[-1] if self._inside else ("", "")
        if tag in ("th", "td") and self.rows:
            self.rows[-1][-1] += data
        if tag == "script":
            self.scripts[identifier] = self.scripts.get(identifier, "") + data


def make_report(systems: list[System], frequencies: dict[str, int] | None = None) -> Report:
    scoring = Scoring(("bleu", "chrf"))
    scores = compare_systems(systems, [REFERENCES], scoring, num_samples=20)
    return build_report("T & <i>", Inputs(systems, SOURCES, [REFERENCES], scoring, scores, None, [], "de", frequencies))


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(make_report([GOOD, BAD], {"Mann": 3, "Ein": 2000}).as_html())


def test_the_tables_hold_the_scores_and_the_errors(page: Page) -> None:
    (good,) = [row for row in page.rows if row[:3] == ["BLEU", "good", "100.00"]]
    assert good[4:] == ["–", "–"]
    rows = {tuple(row[:2]): row[2:] for row in page.rows}
    assert rows["words with digits", "good"] == ["1", "100.0", "100.0", "100.0"]
    assert rows["words with digits", "<bad>"][:2] == ["1", "–"]
    assert rows["sentences with a negation", "good"][0] == "2"
    phrases, num_copied, copied = rows["<bad>", "2"]
    assert "Mann (line 1)" in phrases
    assert "dog (line 4)" in phrases
    assert copied == "dog, script"
    assert num_copied == "3"


def test_the_numbers_stand_below_each_figure(page: Page) -> None:
    by_range = {row[0]: row[1:] for row in page.rows if len(row) == 4}
    assert by_range["1,000+"] == ["1", "100.0", "100.0"]
    assert by_range["1-4"] == ["1", "100.0", "66.7"]
    assert page.tags.count("svg") == 2


def test_the_text_of_figures_has_the_color_of_the_page() -> None:
    """In dark mode, the labels of the axes and the legend were black on black."""
    html = make_report([GOOD]).as_html()
    assert "figure svg text { fill: currentColor; }" in html
    assert "#000000" not in html


def test_the_embedded_data_holds_every_sentence(page: Page) -> None:
    data = json.loads(page.scripts["data"])
    assert data["systems"] == ["good", "<bad>"]
    assert [row["source"] for row in data["rows"]] == SOURCES
    assert [row["references"] for row in data["rows"]] == [[reference] for reference in REFERENCES]
    good, bad = data["rows"][0]["systems"]
    extras = {"attention": [[25, 75]], "probabilities": [1.0, 0.37, 0.0, 1.0]}
    assert good == {"text": REFERENCES[0], "chrf": 100.0, "score": -0.5, **extras}
    assert set(bad) == {"text", "chrf"}


def test_text_is_no_html_and_the_page_loads_nothing(page: Page) -> None:
    assert page.tags.count("script") == 2
    assert "i" not in page.tags
    assert "b" not in page.tags
    assert [link for link in page.links if not link.startswith("#")] == []
    assert "http" not in "".join(page.scripts.values())


def test_without_frequencies_the_figure_is_left_out() -> None:
    assert Page(make_report([GOOD]).as_html()).tags.count("svg") == 1


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(f"{' '.join(text.split())}\n" for text in texts), encoding="utf-8")
    return path


def test_translations_of_translate_with_attention_are_a_system(tmp_path: Path) -> None:
    lines = [
        {"line": 1, "source": "a\tb", "translations": [{"text": "x", "score": -1, "word_attention": [[0.5, 0.5]]}]},
        {"line": 2, "source": "c", "translations": [{"text": "y z", "score": -2.5}]},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:1]), encoding="utf-8")
    assert read_system(str(path), None) == System(
        str(path), ["x"], sources=["a b"], scores=[-1.0], attention=[[[0.5, 0.5]]]
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert read_system(str(path), None).attention is None
    scored = {"line": 1, "source": "a", "target": "x y", "score": -2, "word_log_probs": [-0.5, -1.5]}
    path.write_text(json.dumps(scored) + "\n", encoding="utf-8")
    expected = System(str(path), ["x y"], sources=["a"], scores=[-2.0], word_log_probs=[[-0.5, -1.5]])
    assert read_system(str(path), None) == expected
    worse = {**scored, "rank": 2, "target": "z"}  # of an n-best list, the best translation counts
    path.write_text("".join(json.dumps({"rank": 1, **line}) + "\n" for line in (scored, worse)), encoding="utf-8")
    assert read_system(str(path), None) == expected
    incomplete = {"line": 1, "source": "a"}
    for wrong in (
        incomplete,
        scored | {"score": float("nan")},
        scored | {"word_log_probs": [float("-inf"), 0]},
        scored | {"word_attention": "x"},
    ):
        path.write_text(json.dumps(wrong) + "\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"a\.jsonl:1: not a line of translate\.py or score\.py"):
            read_system(str(path), None)


def test_sources_of_text_files_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="with source="):
        choose_sources([BAD], None)
    with pytest.raises(InputError, match=r"has 4 translations and .*s\.en has 1 line"):
        choose_sources([BAD], str(write(tmp_path / "s.en", ["one"])))


def test_the_command_writes_one_file(tmp_path: Path) -> None:
    for name, texts in (("a.txt", BAD.translations), ("b.txt", REFERENCES), ("s.en", SOURCES), ("r.de", REFERENCES)):
        write(tmp_path / name, texts)
    with gzip.open(tmp_path / "train.de.gz", "wt", encoding="utf-8") as file:
        file.write("Ein Mann\n" * 3)
    script = Path(__file__).parents[2] / "scripts" / "report.py"
    files = ["source=s.en", "target=r.de", "training_text=train.de.gz", "output=out/report.html"]
    options = ["systems=[a.txt,b.txt]", "num_samples=20", "target_language=de"]
    done = subprocess.run([sys.executable, script, *options, *files], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert json.loads(found.scripts["data"])["systems"] == ["a.txt", "b.txt"]
    assert any(row[0] == "1-4" for row in found.rows)


def test_an_unknown_target_language_is_refused(tmp_path: Path, run_command) -> None:
    """The report had no row of negations, and nothing said why."""
    for name in ("a.txt", "b.txt", "r.de"):
        write(tmp_path / name, REFERENCES)
    command = ["report", "systems=[a.txt,b.txt]", "target=r.de", "source=r.de", "output=r.html", "num_samples=2"]
    done = run_command(*command, "target_language=German", cwd=tmp_path)
    assert done.code == 2
    assert "target_language: found German, allowed are de, en, fr, es" in done.err
    done = run_command(*command, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "no accuracy of negations: the target language is not known" in done.out + done.err


def test_the_report_never_replaces_a_text(tmp_path: Path, run_command) -> None:
    """output=a.txt replaced the translations of a system by the report about them."""
    for name in ("a.txt", "b.txt", "r.de"):
        write(tmp_path / name, REFERENCES)
    texts = ["systems=[a.txt,b.txt]", "target=r.de", "source=r.de"]
    for output in ("a.txt", "-", "report"):
        done = run_command("report", *texts, f"output={output}", cwd=tmp_path)
        assert (done.code, done.err) == (
            2,
            f"error: output={output} must end in .html: give the report a name such as report.html\n",
        )
    assert (tmp_path / "a.txt").read_text(encoding="utf-8").splitlines() == REFERENCES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt", "r.de"]


def test_a_run_without_its_checkpoint_has_no_word_frequencies(tmp_path: Path, caplog) -> None:
    """A copy of a run without best.pt had no report at all."""
    assert word_frequencies(None, [tmp_path], Scoring()) is None
    assert "no F1 by word frequency: checkpoint" in caplog.text
