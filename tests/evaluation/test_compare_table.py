"""Tables of compare.py: rows of runs, columns of settings, and values."""

from __future__ import annotations

from pathlib import Path

import pytest

from gnmt.errors import InputError
from gnmt.evaluation.compare import TableOptions, compare_by_length, draw_by_length, filter_runs, group_runs, spread
from gnmt.evaluation.compare import compare as compare_corpora
from gnmt.evaluation.run_records import EvaluationRecord, RunRecord


def run(name, seed=1, dropout=0.1, bleu=30.0, config=None, **figures):
    settings = {
        "seed": seed,
        "name": name,
        "device": "cpu",
        "model": {"encoder": {"dropout": dropout, "num_layers": 2}, "decoder": {"dropout": dropout}},
        "trainer": {"max_steps": 100, "log_every_steps": 10},
    }
    dev = {"dev/loss": 2.0, "dev/bleu": bleu, "dev/chrf": 50.0}
    return RunRecord(Path("runs") / name, settings | (config or {}), 1000, 100, dev, **figures)


def compare(runs, filter=(), **options):
    (table,) = compare_corpora(filter_runs(runs, filter), TableOptions(**options))
    return table


def cells(table, row):
    return dict(zip(table.header, table.rows[row], strict=True))


def test_runs_that_differ_only_in_their_seed_share_a_row():
    runs = [
        run("a", 3, bleu=30.0),
        run("b", 2, bleu=32.0),
        run("c", 1, dropout=0.3, bleu=20.0),
        run("d", 10, bleu=34.0),
    ]
    assert [[one.folder.name for one in group.runs] for group in group_runs(runs)] == [["a", "b", "d"], ["c"]]
    table = compare(runs)
    first = cells(table, 0)
    assert (first["run"], first["seeds"]) == ("a", "2, 3, 10")
    assert first["dev BLEU"] == "32.00 ± 2.00"
    assert first["dev loss"] == "2.000 ± 0.000"
    assert first["parameters"] == "1,000"
    assert cells(table, 1)["dev BLEU"] == "20.00"


def test_intervals_and_devices_do_not_separate_runs_but_limits_do():
    trainer = {"max_steps": 100, "log_every_steps": 99}
    same = run("b", 2, config={"device": "cuda", "trainer": trainer})
    longer = run("c", 3, config={"trainer": trainer | {"max_steps": 200}})
    table = compare([run("a"), same, longer])
    assert len(table.rows) == 2
    assert [row[table.header.index("max_steps")] for row in table.rows] == ["100", "200"]


def test_settings_that_change_together_share_a_column():
    table = compare([run("a"), run("b", dropout=0.3), run("c", dropout=0.3, config={"optimizer": {"lr": 0.1}})])
    assert table.header[5:7] == ["dropout", "lr"]
    assert [row[5:7] for row in table.rows] == [["0.1", "–"], ["0.3", "–"], ["0.3", "0.1"]]
    note = "dropout: stands for model.decoder.dropout too, which changes with it in all of these runs"
    assert note in table.all_notes()


def test_a_setting_of_one_class_has_a_column_only_if_it_differs():
    # A table of an LSTM, a Transformer and a convolutional model had 37 columns of settings, most of them dashes.
    def of_class(name, target, **settings):
        model = {"encoder": {"_target_": target, "num_layers": 2} | settings, "decoder": {"dropout": 0.1}}
        return run(name, config={"model": model})

    lstm = of_class("a", "gnmt.LSTM", bridge="last", residual_from=2)
    deeper = of_class("b", "gnmt.LSTM", bridge="last", residual_from=3)
    transformer = of_class("c", "Transformer", num_heads=4)
    table = compare([lstm, deeper, transformer])
    assert table.header[5:7] == ["_target_", "residual_from"]
    assert [row[5:7] for row in table.rows] == [["LSTM", "2"], ["LSTM", "3"], ["Transformer", "–"]]
    # The note named each of them, in 1,000 characters.
    assert "not shown, because equal in all runs that have them: 2 settings of model.encoder" in table.notes
    # With the same class, nothing explains why a run lacks a key.
    assert "bridge" in compare([lstm, of_class("d", "gnmt.LSTM", residual_from=2)]).header


def evaluated(bleu, signature="nrefs:1", by_length=()):
    scores, signatures = {"bleu": bleu, "chrf": 60.0}, {"bleu": signature}
    return {"test.best": EvaluationRecord(scores, signatures, list(by_length), 412.3, Path("test.txt"))}


def test_results_of_evaluate_have_columns_and_notes_of_signatures():
    table = compare([run("a", evaluations=evaluated(31.0)), run("b", 2, evaluations=evaluated(33.0)), run("c", 3)])
    assert cells(table, 0)["test BLEU"] == "32.00 ± 1.41 (2 of 3)"
    assert "test BLEU: nrefs:1" in table.all_notes()
    table = compare(
        [run("a", evaluations=evaluated(31.0)), run("b", 2, evaluations=evaluated(33.0, "nrefs:1|tok:char"))]
    )
    assert "test BLEU: nrefs:1 and nrefs:1|tok:char: these scores cannot be compared" in table.all_notes()


def test_the_speed_of_translation_has_a_column():
    table = compare([run("a", evaluations=evaluated(31.0)), run("b", dropout=0.5)])
    assert [cells(table, row)["test sentences/s"] for row in (0, 1)] == ["412", "–"]
    assert "test sentences/s" not in compare([run("b")]).header


def test_speed_time_and_problems():
    table = compare([run("a", tokens_per_second=1234.4, seconds=90.0), run("b", dropout=0.5, problems=("damaged",))])
    assert cells(table, 0)["tokens/s"] == "1,234"
    assert cells(table, 0)["training minutes"] == "1.5"
    assert cells(table, 1)["tokens/s"] == "–"
    assert "runs/b: damaged" in table.notes


def test_several_runs_of_one_seed_are_noted():
    note = "a: 2 runs with 1 different seeds, so ± is not over seeds"
    assert note in compare([run("a"), run("copy of a")]).notes
    assert not any("not over seeds" in one for one in compare([run("a"), run("b", 2)]).notes)


def test_a_line_break_in_a_name_becomes_a_space():
    table = compare([run("a\nb|c\td")])
    assert "| a b\\|c d |" in table.as_markdown().splitlines()[2]
    assert table.as_tsv().splitlines()[1].startswith("a b|c d\t1\t")


def test_ranges_with_the_same_start_have_separate_columns():
    ranges = ((5, 40.0), (9, 41.0))
    rows = [{"from_words": 1, "to_words": end, "num_sentences": 3, "bleu": bleu} for end, bleu in ranges]
    table = compare_by_length([run("a", evaluations=evaluated(31.0, by_length=rows))])
    assert [cells(table, 0)[f"1-{end} words"] for end in (5, 9)] == ["40.0", "41.0"]


def test_bleu_by_length():
    names = ("from_words", "to_words", "num_sentences", "bleu")
    rows = [dict(zip(names, values, strict=True)) for values in ((1, 5, 7, 40.0), (51, None, 2, 10.0))]
    runs = [
        run("a", evaluations=evaluated(31.0, by_length=rows)),
        run("b", 2, evaluations=evaluated(31.0, by_length=rows[:1])),
    ]
    table = compare_by_length([*runs, run("c", dropout=0.5)])
    assert table.header == ["run", "seeds", "dropout", "evaluation", "1-5 words", "51+ words"]
    assert table.rows == [["a", "1, 2", "0.1", "test.best", "40.0 ± 0.0", "10.0 (1 of 2)"]]
    assert "sentences in each range, at most: 7, 2" in table.notes[-1]
    assert table.all_notes()[0].startswith("dropout: stands for")
    chosen = compare_by_length(runs, TableOptions(sort="51+ words", columns=["1-5*"]))
    assert chosen.header == ["run", "seeds", "evaluation", "1-5 words"]
    with pytest.raises(InputError, match=r"sort: found dev BLEU, allowed are the columns run, seeds, evaluation, 1-5"):
        compare_by_length(runs, TableOptions(sort="dev BLEU"))
    [axes] = draw_by_length([*runs, run("c", dropout=0.5)]).axes
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["a"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1-5", "51+"]
    assert axes.containers[0].lines[0].get_ydata().tolist() == [40.0, 10.0]
    with pytest.raises(InputError, match="none of the runs holds BLEU by length"):
        compare_by_length([run("a")])


def test_tables_in_both_formats():
    table = compare([run("a", evaluations=evaluated(31.0, "nrefs:1|case:mixed"))])
    lines = table.as_markdown().splitlines()
    assert lines[0].startswith("| run | seeds | dev BLEU | dev chrF | dev loss | test BLEU |")
    assert lines[1].count("| --") == len(table.header)
    assert len(set(map(len, lines[:3]))) == 1, "a terminal shows the columns below each other"
    lines = table.as_tsv().splitlines()
    assert lines[1].split("\t")[:3] == ["a", "1", "30.00"]
    assert all(line.startswith("# ") for line in lines[2:])


@pytest.mark.parametrize(
    ("values", "digits", "text"),
    [
        ([], 1, "–"),
        ([None], 1, "–"),
        ([3.0], 0, "3"),
        ([3.0, 3.0], 0, "3"),
        ([1.0, 3.0], 0, "2 ± 1"),
        ([1.0, None], 1, "1.0 (1 of 2)"),
    ],
)
def test_spread(values, digits, text):
    assert spread(values, digits) == text


def test_each_corpus_has_a_table():
    """The runs of three corpora shared a table whose columns were mostly dashes."""
    corpora = [
        {"_target_": "Multi30k", "name": "multi30k", "source_language": "en", "target_language": language}
        for language in ("de", "fr")
    ]
    runs = [run(name, config={"data": corpora[index]}) for name, index in (("a", 0), ("b", 1), ("c", 0))]
    runs += [run("d", config={"data": {**corpora[0], "max_pairs": 100}})]
    german, french = compare_corpora(runs)
    assert (german.title, french.title) == ("multi30k, en to de", "multi30k, en to fr")
    assert [row[0] for row in german.rows] == ["a", "d"]  # a and c are equal
    assert german.as_markdown().startswith("## multi30k, en to de\n\n| run |")
    assert french.as_tsv().startswith("# multi30k, en to fr\nrun\t")


def test_evaluations_are_named_by_their_test_set_where_that_is_clear():
    def of(*names):
        return run("a", evaluations={name: evaluated(31.0)["test.best"] for name in names})

    header = compare([of("test-12345678.best", "test-12345678.best.beam_size-1", "dev-12345678.last")]).header
    assert {"test BLEU", "test.beam_size-1 BLEU", "dev.last BLEU"} <= set(header)
    header = compare([of("test-12345678.best", "test-87654321.best")]).header
    assert {"test-12345678.best BLEU", "test-87654321.best BLEU"} <= set(header)


def test_rows_are_sorted_from_the_best_to_the_worst():
    runs = [run("a", bleu=30.0), run("b", bleu=32.0, dropout=0.3), run("c", dropout=0.5, tokens_per_second=2000.0)]
    runs[2].dev.update({"dev/bleu": 9.5, "dev/loss": 1.0})
    assert [row[0] for row in compare(runs, sort="dev BLEU").rows] == ["b", "a", "c"]
    assert [row[0] for row in compare(runs, sort="dev loss").rows] == ["c", "a", "b"]
    assert [row[0] for row in compare(runs, sort="tokens/s").rows] == ["c", "a", "b"]


def test_columns_and_runs_are_chosen_by_patterns():
    runs = [run("a1"), run("a2", dropout=0.3), run("b", dropout=0.5)]
    table = compare(runs, columns=["*BLEU", "dropout"], filter=["run=a*"])
    assert table.header == ["run", "seeds", "dev BLEU", "dropout"]
    assert table.rows == [["a1", "1", "30.00", "0.1"], ["a2", "1", "30.00", "0.3"]]
    assert [row[0] for row in compare(runs, filter=["encoder.dropout=0.3"]).rows] == ["a2"]
    assert [row[0] for row in compare(runs, filter=["dropout=0.?", "run=b"]).rows] == ["b"]


def test_a_condition_on_a_whole_key_is_on_this_key_alone():
    """seed=1 kept every run, because decoding.seed is 1 in all of them."""
    runs = [run(name, seed, config={"decoding": {"seed": 1}}) for seed, name in enumerate("ab", start=1)]
    assert [row[:2] for row in compare(runs, filter=["seed=1"]).rows] == [["a", "1"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sort": "BLEU"}, "sort: found BLEU, allowed are the columns run, seeds, dev BLEU"),
        ({"columns": ["x*"]}, r"columns: found x\*, allowed are"),
        ({"sort": "bleu"}, r"did you mean dev BLEU\?"),
        ({"sort": "*BLEU"}, r"sort: found \*BLEU, allowed are the columns"),
        ({"filter": ["run=x*"]}, r"filter: none of 1 run meets run=x\*; run is a in them"),
        ({"filter": ["dropout=0.5"]}, r"filter: none of 1 run meets dropout=0\.5; dropout is 0\.1 in them"),
        ({"filter": ["dropuot=0.5"]}, "dropuot is no setting of any of them"),
        ({"filter": ["dropout"]}, "filter: found dropout, allowed is key=value"),
    ],
)
def test_wrong_options_of_a_table(options, message):
    with pytest.raises(InputError, match=message):
        compare([run("a")], **options)


def test_a_setting_that_is_equal_in_all_runs_can_be_shown():
    """The documented columns=["*BLEU",dropout] was refused unless dropout differed."""
    table = compare([run("a"), run("b", config={"optimizer": {"lr": 0.1}})], columns=["*BLEU", "dropout"])
    assert table.header == ["run", "seeds", "dev BLEU", "model.encoder.dropout", "model.decoder.dropout"]
    assert table.rows[0] == ["a", "1", "30.00", "0.1", "0.1"]
    assert compare([run("a")], columns=["num_layers"]).header == ["run", "seeds", "num_layers"]


def test_dev_scores_of_training_and_of_evaluate_have_columns_of_different_names():
    """Two columns were called dev BLEU, and their signatures were mixed."""
    found = EvaluationRecord({"bleu": 31.0, "chrf": 60.0}, {"bleu": "tok:char"}, [], 9.0, Path("dev.txt"))
    table = compare([run("a", evaluations={"dev-12345678.best": found}, signatures={"bleu": "tok:13a"})])
    assert (cells(table, 0)["dev BLEU"], cells(table, 0)["evaluated dev BLEU"]) == ("30.00", "31.00")
    assert {"dev BLEU: tok:13a", "evaluated dev BLEU: tok:char"} <= set(table.all_notes())
    assert len(set(table.header)) == len(table.header)


def test_notes_are_those_of_the_columns_that_are_shown():
    """A table of two columns had twenty notes of signatures below it."""
    runs = [run("a", evaluations=evaluated(31.0), signatures={"bleu": "nrefs:1", "chrf": "nc:6"})]
    assert compare(runs).all_notes()[:2] == ["dev BLEU, test BLEU: nrefs:1", "dev chrF: nc:6"]
    assert compare(runs, columns=["dev BLEU"]).all_notes()[0] == "dev BLEU: nrefs:1"
    assert "nc:6" not in "".join(compare(runs, columns=["dev BLEU"]).all_notes())


def test_each_test_set_has_a_table_of_its_own():
    """17 runs had one table whose header had 1,400 characters."""
    runs = [run("a", evaluations=evaluated(31.0)), run("b", dropout=0.5, bleu=40.0, problems=("damaged",))]
    dev, test, settings, size = compare(runs, sort="dev BLEU").in_blocks()
    assert [table.title for table in (dev, test, settings, size)] == ["dev", "test", "settings", "size and speed"]
    assert dev.header == ["run", "seeds", "BLEU", "chrF", "loss"]
    assert [row[:3] for row in dev.rows] == [["b", "1", "40.00"], ["a", "1", "30.00"]]
    assert test.header == ["run", "seeds", "BLEU", "chrF", "sentences/s"]
    assert test.rows == [["a", "1", "31.00", "60.00", "412"]], "b has not been evaluated on it"
    assert test.all_notes() == ["BLEU: nrefs:1"]
    assert settings.header == ["run", "seeds", "dropout"]
    assert settings.all_notes()[0].startswith("dropout: stands for")
    assert size.header[2:] == ["parameters", "updates", "tokens/s", "training minutes"]
    assert "runs/b: damaged" in size.notes
    assert [table.title for table in compare(runs[:1]).in_blocks()] == ["dev", "test", "size and speed"]


def test_corpora_of_one_name_are_told_apart_by_their_dev_sets():
    """Two tables had the title "files, en to de"."""
    corpora = [
        {"name": "files", "source_language": "en", "target_language": "de", "dev": {"source": path, "pairs": None}}
        for path in ("a.en", "b.en")
    ]
    tables = compare_corpora([run(name, config={"data": data}) for name, data in zip("ab", corpora, strict=True)])
    assert [table.title for table in tables] == ["files, en to de, dev: a.en", "files, en to de, dev: b.en"]
