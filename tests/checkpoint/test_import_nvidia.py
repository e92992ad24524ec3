"""An imported checkpoint of NVIDIA's GNMT v2 computes what NVIDIA's model computes."""

from __future__ import annotations

import logging

import pytest
import torch
from oracle_nvidia_gnmt import SUBWORDS, NvidiaGNMT, checkpoint_of, save, tokenizer_state

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokens
from gnmt.checkpoint.export import export_folder
from gnmt.checkpoint.file import read_checkpoint
from gnmt.checkpoint.import_checkpoint import import_checkpoint
from gnmt.checkpoint.load import load_model
from gnmt.data.batching import batch_of
from gnmt.decoding.translator import Translator
from gnmt.errors import InputError

CPU = torch.device("cpu")
SOURCES = [[4, 5, 6, 7, 11], [8], [9, 10, 4, 5, 6, 7, 1]]
TARGETS = [[8, 5], [4, 9, 10, 6, 7, 11], [1]]


def imported(model, tmp_path, name="ours.pt", **replaced):
    """Import the checkpoint that NVIDIA's trainer would write, and load it."""
    theirs = save(checkpoint_of(model, **replaced), tmp_path / f"{name}.pth")
    import_checkpoint("nvidia_gnmt", theirs, tmp_path / name)
    return load_model(tmp_path / name, CPU)


def padded(rows):
    ids_BT = torch.full((len(rows), max(map(len, rows))), PAD_ID)
    for ids_T, row in zip(ids_BT, rows, strict=True):
        ids_T[: len(row)] = torch.tensor(row)
    return Tokens(ids_BT, torch.tensor([len(row) for row in rows]))


@pytest.mark.parametrize(("num_layers", "shared"), [(2, True), (4, True), (3, False)])
def test_logits_equal_those_of_the_oracle(num_layers, shared, tmp_path):
    theirs = NvidiaGNMT(num_layers, shared=shared)
    loaded = imported(theirs, tmp_path)
    ours = loaded.model.double()
    assert (ours.source_embedding is ours.target_embedding) is shared
    framed = [loaded.tokenizers.framed(source) for source in SOURCES]
    assert framed == [[BOS_ID, *source, EOS_ID] for source in SOURCES]
    inputs = [[BOS_ID, *target] for target in TARGETS]
    with torch.no_grad():
        memory = ours.encode(padded(framed))
        hidden_BTH, _ = ours.decode(padded(inputs), memory)
        logits_BTV = ours.output(hidden_BTH)
    for row, (source, target) in enumerate(zip(framed, inputs, strict=True)):
        torch.testing.assert_close(logits_BTV[row, : len(target)], theirs.logits(source, target))


def test_text_is_scored_as_by_the_oracle(tmp_path):
    """The source begins with BOS; without it the scores differ."""
    theirs = NvidiaGNMT()
    imported(theirs, tmp_path)
    translator = Translator.load(tmp_path / "ours.pt", device="cpu", precision="fp32")
    [score] = translator.score([("the bar@@ ks unheard .", "a c@@ at")])
    target = [8, 9, 10, EOS_ID]
    assert score.tokens == tuple(target)
    source = [BOS_ID, 4, 6, 7, UNK_ID, 11, EOS_ID]
    for read, close in ((source, True), (source[1:], False)):
        log_probs = theirs.logits(read, [BOS_ID, *target[:-1]]).log_softmax(-1)
        expected = sum(float(log_probs[step, id]) for step, id in enumerate(target))
        assert (abs(score.log_prob - expected) < 1e-4) is close
    [best] = translator.translate(["the dog bar@@ ks ."], beam_size=3, attention=True)
    assert best.source_tokens == (BOS_ID, 4, 5, 6, 7, 11, EOS_ID)
    assert best.attention_TS.shape == (len(best.tokens), 7)
    [scored] = translator.score([("the dog bar@@ ks .", best)])
    assert scored.score == pytest.approx(best.score, abs=1e-4)
    assert "madeupword0000" not in best.text
    assert SUBWORDS.index("madeupword0000") in translator.suppressed


def test_segments_of_long_lines_are_framed(tmp_path, caplog):
    imported(NvidiaGNMT(2), tmp_path)
    translator = Translator.load(tmp_path / "ours.pt", device="cpu", precision="fp32", max_source_tokens=5)
    with caplog.at_level(logging.WARNING):
        [translation] = translator.translate(["the dog . a c@@ at . the dog bar@@ ks ."])
    assert "line 1 has 12 tokens, more than the 3 that are translated at once" in caplog.text
    assert translation.source_tokens[:5] == (BOS_ID, 4, 5, 11, EOS_ID)
    assert translation.source_tokens.count(BOS_ID) == translation.source_tokens.count(EOS_ID) == 5
    with pytest.raises(InputError, match=r"must be 3 or more \(one token and BOS and EOS\)"):
        Translator.load(tmp_path / "ours.pt", device="cpu", max_source_tokens=2)


def test_data_parallel_names_half_precision_and_the_older_file_format_are_read(tmp_path):
    plain = checkpoint_of(NvidiaGNMT())
    halves = {f"module.{name}": tensor.half() for name, tensor in plain["state_dict"].items()}
    save(plain | {"state_dict": halves}, tmp_path / "half.pth", legacy=True)
    model = import_checkpoint("nvidia_gnmt", tmp_path / "half.pth", tmp_path / "half.pt")
    expected = plain["state_dict"]["encoder.rnn_layers.0.weight_ih_l0_reverse"].half().float()
    torch.testing.assert_close(model.encoder.layers[0].back.weight_ih_l0.data, expected, rtol=0, atol=0)
    assert model.source_embedding is model.target_embedding
    contents = read_checkpoint(tmp_path / "half.pt")
    assert contents["step"] == 1234
    assert contents["imported_from"]["file"] == "half.pth"


def test_training_batches_have_another_framing_and_digest_than_an_imported_model(tmp_path):
    """Preprocessed data never has the framing of an imported model, so training refuses it by its digest."""
    loaded = imported(NvidiaGNMT(2), tmp_path)
    assert loaded.tokenizers.source_bos
    assert loaded.tokenizers._replace(source_bos=False).digest != loaded.tokenizers.digest
    batch = batch_of([SOURCES[0]], [TARGETS[0]], torch.arange(1).numpy())
    assert batch.source.ids_BT[0].tolist() != loaded.tokenizers.framed(SOURCES[0])


def without(name):
    contents = checkpoint_of(NvidiaGNMT())
    del contents["state_dict"][name]
    return contents


def with_weight(name, tensor):
    contents = checkpoint_of(NvidiaGNMT())
    contents["state_dict"][name] = tensor
    return contents


def with_tokenizer(**replaced):
    return checkpoint_of(NvidiaGNMT(), tokenizer=tokenizer_state() | replaced)


EMBEDDINGS = "encoder.embedder.weight"
WRONG = {
    "no_dictionary": (lambda: {"model": 1}, "found keys model"),
    "no_weights": (lambda: checkpoint_of(NvidiaGNMT(), state_dict=[1]), "state_dict must hold tensors by name"),
    "missing": (lambda: without("decoder.att_rnn.attn.normalize_bias"), "lacks decoder.att_rnn.attn.normalize_bias"),
    "missing_layer": (lambda: without("encoder.rnn_layers.2.bias_hh_l0"), "lacks encoder.rnn_layers.2.bias_hh_l0"),
    "unknown": (lambda: with_weight("decoder.bridge.weight", torch.zeros(2, 2)), "holds decoder.bridge.weight, which"),
    "far_layer": (lambda: with_weight("encoder.rnn_layers.900.weight_ih_l0", torch.zeros(2, 2)), r"and \d+ more"),
    "whole_numbers": (
        lambda: with_weight("encoder.embedder.weight", torch.zeros(13, 6, dtype=torch.int64)),
        "encoder.embedder.weight is torch.int64",
    ),
    "no_axes": (lambda: with_weight("encoder.embedder.weight", torch.zeros(())), r"is torch.float32 \[\], allowed"),
    "other_width": (
        lambda: with_weight("decoder.rnn_layers.1.weight_ih_l0", torch.zeros(24, 11)),
        "its weights do not fit the model",
    ),
    "scales": (
        lambda: with_weight("decoder.att_rnn.attn.normalize_scalar", torch.zeros(2)),
        "normalize_scalar holds 2 numbers",
    ),
    "vocab_size": (lambda: with_tokenizer(vocab_size=10**12), "is 1000000000000, but the embeddings have 13"),
    "no_tok2idx": (lambda: with_tokenizer(tok2idx=None), "tok2idx and idx2tok must be dictionaries"),
    "other_id": (lambda: with_tokenizer(idx2tok={5: "the"}), "gives id 5 the subword 'the', but tok2idx .* 4"),
    "far_id": (lambda: with_tokenizer(idx2tok={99: "the"}), "gives 99 the subword 'the', allowed are ids of 0 to 12"),
    "float_vocab_size": (lambda: with_tokenizer(vocab_size=13.0), "vocab_size is 13.0, allowed is a whole number"),
    "other_order": (
        lambda: with_tokenizer(**tokenizer_state([*SUBWORDS[4:], *SUBWORDS[:4]])),
        "idx2tok begins with 'the', .* allowed is '<pad>', '<unk>', '<s>', ",
    ),
    "both_names": (
        lambda: with_weight("module.decoder.classifier.classifier.bias", torch.zeros(13)),
        "holds decoder.classifier.classifier.bias twice, with module. before it and without",
    ),
    "sparse": (lambda: with_weight(EMBEDDINGS, torch.zeros(13, 6).to_sparse()), f"{EMBEDDINGS} is torch.sparse_coo on"),
    "meta": (lambda: with_weight(EMBEDDINGS, torch.zeros(13, 6, device="meta")), f"{EMBEDDINGS} is .* on meta, all"),
    # A file of a few KB that would need 400 TB of memory.
    "repeated": (lambda: with_weight(EMBEDDINGS, torch.zeros(1, 1).expand(10**7, 10**7)), f"{EMBEDDINGS} .* repeats"),
    "not_a_number": (lambda: with_weight(EMBEDDINGS, torch.full((13, 6), torch.nan)), f"{EMBEDDINGS} .* not finite"),
    "too_large": (lambda: with_weight(EMBEDDINGS, torch.full((13, 6), 1e300, dtype=torch.float64)), "not finite in fp"),
    "separator": (lambda: with_tokenizer(separator=" "), "separator must be a string without white space"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_values_that_cannot_be_imported_are_refused_with_their_name(name, tmp_path):
    make, message = WRONG[name]
    save(make(), tmp_path / "theirs.pth")
    with pytest.raises(InputError, match=message):
        import_checkpoint("nvidia_gnmt", tmp_path / "theirs.pth", tmp_path / "ours.pt")
    assert not (tmp_path / "ours.pt").exists()


def test_a_file_name_with_surrogates_is_recorded_as_valid_text(tmp_path):
    """The JSON of an export cannot hold half a surrogate pair."""
    pytest.importorskip("safetensors")
    theirs = save(checkpoint_of(NvidiaGNMT(2)), tmp_path / "x\udcff.pth")
    import_checkpoint("nvidia_gnmt", theirs, tmp_path / "ours.pt")
    assert read_checkpoint(tmp_path / "ours.pt")["imported_from"]["file"] == "x\N{REPLACEMENT CHARACTER}.pth"
    export_folder(tmp_path / "ours.pt", tmp_path / "exported")


def test_a_subword_that_the_vocabulary_has_twice_keeps_its_last_id(tmp_path):
    subwords = [*SUBWORDS[:-1], "dog"]
    loaded = imported(NvidiaGNMT(2), tmp_path, tokenizer=tokenizer_state(subwords))
    tokenizer = loaded.tokenizers.source
    assert tokenizer.encode("the dog") == [4, 12]
    assert tokenizer.never_produced == (PAD_ID, BOS_ID, 5)
    assert tokenizer.decode([4, 5, 12]) == "the dog"


def test_an_existing_output_is_not_overwritten(tmp_path):
    (tmp_path / "ours.pt").write_text("precious")
    save(checkpoint_of(NvidiaGNMT(2)), tmp_path / "theirs.pth")
    with pytest.raises(InputError, match="exists already"):
        import_checkpoint("nvidia_gnmt", tmp_path / "theirs.pth", tmp_path / "ours.pt")
    assert (tmp_path / "ours.pt").read_text() == "precious"
