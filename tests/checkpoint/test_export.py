"""An exported checkpoint can be read by other tools, and importing it gives an equal checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict

import pytest
import torch
from oracle_nvidia_gnmt import NvidiaGNMT, checkpoint_of, save

from gnmt.checkpoint.export import JSON_FILE, WEIGHTS_FILE, export_folder, safetensors_library
from gnmt.checkpoint.file import read_checkpoint, write_checkpoint
from gnmt.checkpoint.import_checkpoint import import_checkpoint
from gnmt.decoding.translator import Translator
from gnmt.errors import InputError

library = pytest.importorskip("safetensors.torch")


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("safetensors") / "exported"
    export_folder(tiny.folder / "best.pt", folder)
    return folder


def test_export_and_import_give_an_equal_checkpoint(tiny, exported, tmp_path):
    import_checkpoint("safetensors", exported, tmp_path / "back.pt")
    before, after = read_checkpoint(tiny.folder / "best.pt"), read_checkpoint(tmp_path / "back.pt")
    assert before["model"].keys() == after["model"].keys()
    for name, weight in before["model"].items():
        assert torch.equal(weight, after["model"][name]), name
    for name in before.keys() - {"model", "tokenizers", "checksum", "config", "evaluations"}:
        if name in after:
            assert before[name] == after[name], name
    assert json.loads(before["config"]) == json.loads(after["config"])
    assert {
        "step",
        "best",
        "data_fingerprint",
        "preprocessed_folder",
        "unused_target_ids",
        "git_revision",
    } <= after.keys()
    lines = ["the old man reads a book .", "", "a dog"]
    texts = [
        [asdict(one) for one in Translator.load(path, device="cpu").translate(lines)]
        for path in (tiny.folder / "best.pt", tmp_path / "back.pt")
    ]
    assert texts[0] == texts[1]


def test_other_tools_can_read_the_folder(tiny, exported):
    weights = library.load_file(exported / WEIGHTS_FILE)
    described = json.loads((exported / JSON_FILE).read_text(encoding="utf-8"))
    model = read_checkpoint(tiny.folder / "best.pt")["model"]
    tied = ("target_embedding.weight", "output_layer.weight")
    assert described["tied"] == dict.fromkeys(tied, "source_embedding.weight")
    assert weights.keys() == model.keys() - described["tied"].keys()
    assert described["config"]["model"]["_target_"] == "gnmt.model.seq2seq.Seq2Seq"
    kind = {"kind": "sentencepiece", "file": "source.model"}
    assert described["tokenizers"]["source"] == {**kind, "framing": {"bos": False, "eos": True}}
    assert described["tokenizers"]["target"]["file"] == "target.model", "equal subwords, another normalizer"
    assert sorted(path.name for path in exported.iterdir()) == [JSON_FILE, WEIGHTS_FILE, "source.model", "target.model"]
    assert not [path for path in exported.parent.iterdir() if path.name.startswith(".")]


def test_a_full_checkpoint_is_exported_with_averaged_weights_and_without_training_state(tiny, tmp_path):
    contents = read_checkpoint(tiny.folder / "last.pt")
    average = {
        "encoder.layers.1.weight_ih_l0": torch.full_like(contents["model"]["encoder.layers.1.weight_ih_l0"], 0.5)
    }
    write_checkpoint(tmp_path / "full.pt", {**contents, "average": average})
    export_folder(tmp_path / "full.pt", tmp_path / "exported")
    import_checkpoint("safetensors", tmp_path / "exported", tmp_path / "back.pt")
    after = read_checkpoint(tmp_path / "back.pt")
    assert after["model"]["encoder.layers.1.weight_ih_l0"].unique().tolist() == [0.5]
    assert "optimizer" in contents
    assert not {"optimizer", "average", "rng", "loader_state"} & after.keys()


def test_an_imported_model_is_exported_with_its_framing_and_subwords(tmp_path):
    save(checkpoint_of(NvidiaGNMT()), tmp_path / "theirs.pth")
    import_checkpoint("nvidia_gnmt", tmp_path / "theirs.pth", tmp_path / "ours.pt")
    export_folder(tmp_path / "ours.pt", tmp_path / "exported")
    assert (tmp_path / "exported" / "source.vocabulary.json").is_file()
    import_checkpoint("safetensors", tmp_path / "exported", tmp_path / "back.pt")
    [before], [after] = (
        Translator.load(tmp_path / name, device="cpu", precision="fp32").score([("the bar@@ ks .", "a dog")])
        for name in ("ours.pt", "back.pt")
    )
    assert before == after
    assert read_checkpoint(tmp_path / "back.pt")["imported_from"]["source"] == "nvidia_gnmt"


def changed(**changes):
    return lambda described: described | changes


def tokenizer(**changes):
    return lambda described: (
        described | {"tokenizers": described["tokenizers"] | {"source": described["tokenizers"]["source"] | changes}}
    )


def config_part(part, value):
    return lambda described: described | {"config": described["config"] | {part: value}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(format="other"), "format and format_version are 'other' and 2, allowed are"),
        (changed(format_version=3), "'gnmt-safetensors' and 3, allowed are"),
        (changed(optimizer=1), "unknown keys optimizer"),
        (lambda described: {key: value for key, value in described.items() if key != "config"}, "lacks config"),
        (changed(tied={"a": "nothing"}), "tied.a is nothing, which model.safetensors does not hold"),
        (changed(tied=["a"]), r"tied is \['a'\], allowed are pairs of names"),
        (changed(tied={"a": ["b"]}), "tied.a is .'b'., which model.safetensors does not hold"),
        (tokenizer(file="a\0b"), "allowed is the name of a file in the folder"),
        (tokenizer(kind=["pretokenized"]), "kind is .'pretokenized'., allowed is one of sentencepiece, pretokenized"),
        # It was accepted, and read as if it had EOS.
        (tokenizer(framing={"bos": False, "eos": False}), "allowed is bos, true or false, and eos, true"),
        (tokenizer(file="../x"), "'../x', allowed is the name of a file in the folder"),
        (tokenizer(file="y"), "y cannot be read"),
        (tokenizer(kind="words"), "tokenizers.source.kind is 'words', allowed is one of sentencepiece, pretokenized"),
        (tokenizer(framing=None), "tokenizers.source.framing is None"),
        (tokenizer(file="model.safetensors"), "not a SentencePiece model"),
        (changed(tokenizers={}), "tokenizers.source must hold kind, file and framing"),
        (config_part("model", {"_target_": "os.system"}), "the model's config was refused"),
        (changed(config={}), "config.model is null, allowed is an object"),
        (changed(unused_target_ids=5), "unused_target_ids is 5, allowed is a list of ids"),
        (changed(unused_target_ids=[4, "5"]), 'unused_target_ids holds "5", allowed are ids of 0 to'),
        (changed(unused_target_ids=[10**6]), "unused_target_ids holds 1000000, allowed are ids of 0 to"),
        (changed(step=-1), "step is -1, allowed is a whole number"),
        (changed(best_step=1.5), "best_step is 1.5, allowed is a whole number"),
        (changed(best=[1]), r"best is \[1\], allowed is an object of numbers"),
        (changed(best={"dev/bleu": "high"}), "best is .* allowed is an object of numbers"),
        (changed(precision="fp17"), 'precision is "fp17", allowed is one of fp32'),
        (changed(precision=["fp32"]), "precision is .*, allowed is one of fp32"),
        (changed(versions="1"), 'versions is "1", allowed is an object of texts'),
        (changed(imported_from={"file": None}), "imported_from is .* allowed is an object of texts"),
        (changed(average_of={}), "average_of is {}, allowed is a list of objects"),
        (changed(preprocessed_folder=None), "preprocessed_folder is null, allowed is text"),
        (changed(tied={"source_embedding.weight": "output_layer.bias"}), "tied names source_embedding.weight, which"),
        (config_part("decoding", None), "config.decoding is null, allowed is an object"),
        (config_part("decoding", {"_target_": "os.system"}), "the search options are wrong"),
        (config_part("trainer", {}), "config.trainer.evaluation_batch_size is null, allowed is a whole number"),
        (config_part("data", {}), "config.data.bleu_tokenize is null, allowed is text"),
    ],
)
def test_wrong_values_are_refused_with_their_key(change, message, exported, tmp_path):
    folder = tmp_path / "exported"
    shutil.copytree(exported, folder)
    described = json.loads((folder / JSON_FILE).read_text(encoding="utf-8"))
    (folder / JSON_FILE).write_text(json.dumps(change(described)), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        import_checkpoint("safetensors", folder, tmp_path / "back.pt")
    assert not (tmp_path / "back.pt").exists()


def with_widths(described, **widths):
    encoder = described["config"]["model"]["encoder"] | widths
    return described | {"config": described["config"] | {"model": described["config"]["model"] | {"encoder": encoder}}}


def test_a_model_that_is_far_larger_than_the_weights_is_refused(exported, tmp_path):
    """It was reported by a traceback."""
    folder = tmp_path / "exported"
    shutil.copytree(exported, folder)
    described = with_widths(json.loads((folder / JSON_FILE).read_text(encoding="utf-8")), hidden_size=2**20)
    (folder / JSON_FILE).write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.model\.encoder\.hidden_size is 1048576, too large for the"):
        import_checkpoint("safetensors", folder, tmp_path / "back.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight.fill_(torch.nan), "holds numbers that are not finite, allowed are finite"),
        (lambda weight: weight.to(torch.int32), "holds numbers of torch.int32, allowed are finite floating-point"),
    ],
)
def test_weights_that_are_not_finite_floats_are_refused(change, message, exported, tmp_path):
    """They were accepted, and the checkpoint was written."""
    folder = tmp_path / "exported"
    shutil.copytree(exported, folder)
    weights = library.load_file(folder / WEIGHTS_FILE)
    name = next(iter(weights))
    library.save_file(weights | {name: change(weights[name])}, folder / WEIGHTS_FILE)
    with pytest.raises(InputError, match=f"{name} {message}"):
        import_checkpoint("safetensors", folder, tmp_path / "back.pt")


def test_a_folder_instead_of_the_file_of_weights_is_refused(exported, tmp_path):
    folder = tmp_path / "exported"
    shutil.copytree(exported, folder)
    (folder / WEIGHTS_FILE).unlink()
    (folder / WEIGHTS_FILE).mkdir()
    with pytest.raises(InputError, match=r"model.safetensors is a folder, allowed is the file of weights"):
        import_checkpoint("safetensors", folder, tmp_path / "back.pt")


def test_untied_tables_cannot_be_loaded_as_tied_ones(tmp_path):
    """With tie_embeddings edited to `all`, the output layer's table replaced the embeddings without an error."""
    save(checkpoint_of(NvidiaGNMT()), tmp_path / "theirs.pth")
    import_checkpoint("nvidia_gnmt", tmp_path / "theirs.pth", tmp_path / "ours.pt")
    export_folder(tmp_path / "ours.pt", tmp_path / "exported")
    path = tmp_path / "exported" / JSON_FILE
    described = json.loads(path.read_text(encoding="utf-8"))
    described["config"]["model"]["tie_embeddings"] = "all"
    path.write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(InputError, match=r"are one tensor in the model and differ in the checkpoint"):
        import_checkpoint("safetensors", tmp_path / "exported", tmp_path / "back.pt")


def test_damaged_and_missing_files_are_named(exported, tmp_path):
    for number, (name, content) in enumerate(
        ((WEIGHTS_FILE, b"12345678{}"), (JSON_FILE, b"{"), (JSON_FILE, b"[]"), (JSON_FILE, b"[" * 100_000))
    ):
        folder = tmp_path / str(number)
        shutil.copytree(exported, folder)
        (folder / name).write_bytes(content)
        with pytest.raises(InputError, match=str(folder / name)):
            import_checkpoint("safetensors", folder, tmp_path / "back.pt")
        (folder / name).unlink()
        with pytest.raises(InputError, match="cannot be read"):
            import_checkpoint("safetensors", folder, tmp_path / "back.pt")


def test_existing_files_are_not_overwritten(tiny, exported, tmp_path):
    with pytest.raises(InputError, match="exists already"):
        export_folder(tiny.folder / "best.pt", exported)
    assert (exported / JSON_FILE).is_file()
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError, match="cannot be written"):
        export_folder(tiny.folder / "best.pt", tmp_path / "file" / "exported")


def test_a_missing_library_is_named_with_its_installation(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[interchange\]'"):
        safetensors_library()
