"""Checkpoints of NVIDIA's PyTorch GNMT v2 (DeepLearningExamples, PyTorch/Translation/GNMT) as checkpoints of ours.

Their model is ours with `query: current`: a bidirectional first encoder layer, residual connections from the third
layer of both sides, normalized additive attention whose context goes to every upper decoder layer. Each of their
tensors is one of ours under another name; linear_q and linear_k have no bias, and normalize_bias, which they add to the
sum of query and key, is the bias of our key projection. Their encoder reads BOS, the pieces and EOS.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from gnmt.checkpoint.file import nearby_checkpoints, software_versions
from gnmt.data.pretokenized import PretokenizedTokenizer
from gnmt.data.tokenizer import Tokenizers
from gnmt.decoding.options import SearchOptions
from gnmt.errors import InputError, first_line
from gnmt.fileio import encodable, sha256_of


class Inert:
    """Stands in for an object of a foreign class: it takes what the file says of the object, and does nothing.

    state: the attributes, as a dictionary where the class had no state of its own kind.
    """

    state: Any = None

    def __new__(cls, *arguments: Any) -> Self:
        """Takes the arguments of the constructor that it replaces, and forgets them."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Namespace(Inert):
    """argparse.Namespace: the options of a command line."""


class BytePairEncoding(Inert):
    """subword_nmt.apply_bpe.BPE: merge operations."""


def whole_number(*arguments: Any) -> int:
    """The type int, which a file may name and not call."""
    raise InputError("it calls builtins.int, which is allowed only as the factory of a dictionary")


class ConstantOne(Inert):
    """functools.partial(int, 1), and no other partial."""

    def __new__(cls, *arguments: Any) -> Self:
        _allow_only_one(arguments[:1] == (whole_number,) and arguments[1:] in ((), (1,)))
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        function, arguments, keywords, _ = state
        _allow_only_one(function is whole_number and arguments == (1,) and not keywords)
        self.state = 1


def _allow_only_one(condition: bool) -> None:
    if not condition:
        raise InputError("it holds a functools.partial that is not functools.partial(int, 1)")


def plain_dictionary(*arguments: Any) -> dict[Any, Any]:
    """What a collections.defaultdict becomes: its entries, without the factory."""
    if not all(isinstance(argument, ConstantOne) for argument in arguments):
        raise InputError("it holds a collections.defaultdict whose factory is not functools.partial(int, 1)")
    return {}


STAND_INS = [
    (Namespace, "argparse.Namespace"),
    (BytePairEncoding, "subword_nmt.apply_bpe.BPE"),
    (whole_number, "builtins.int"),
    (ConstantOne, "functools.partial"),
    (plain_dictionary, "collections.defaultdict"),
]
"""What a file may hold beside tensors, dictionaries (OrderedDict too), lists, tuples, sets, numbers and text."""


def read_restricted(path: str | Path) -> Any:
    """What torch.save wrote, in its zip or its older format: tensors on the CPU, foreign objects as their STAND_INS.

    torch's own weights-only reader does the work, which knows only what is listed. Raises InputError for a file that
    is missing or damaged, and with the full name for one that names any other class or function.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint {path} is not a file{nearby_checkpoints(path)}")
    try:
        with torch.serialization.safe_globals(list[Any](STAND_INS)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError as error:
        raise InputError(f"checkpoint {path} was refused, and nothing in it ran: {error}; {_allowed()}") from None
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} was refused, and nothing in it ran: {_reason(str(error))}; {_allowed()}"
        ) from None
    except Exception as error:  # damaged bytes lead torch's reader to errors of every kind
        raise InputError(
            f"checkpoint {path} is damaged or was not written by torch.save "
            f"({type(error).__name__}: {first_line(error)})"
        ) from None


def _reason(message: str) -> str:
    """What torch's reader objects to, without its advice to load the file all the same."""
    if found := re.search(r"GLOBAL (\S+) (?:was|whose)", message):
        return f"it names {found[1]}"
    if found := re.search(r"WeightsUnpickler error: (.+)", message):
        return found[1]
    return "it is damaged, or holds what only running its code could rebuild"


def _allowed() -> str:
    return f"allowed are tensors, plain values and, as inert data, {', '.join(name for _, name in STAND_INS)}"


_LSTM = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
_ATTENTION = {
    "linear_q.weight": "query_projection.weight",
    "linear_k.weight": "key_projection.weight",
    "normalize_bias": "key_projection.bias",
    "linear_att": "direction",
    "normalize_scalar": "scale",
}
_EVALUATION_BATCH_SIZE = 64
# Their pieces of the ids that are PAD, UNK, BOS and EOS here.
_SPECIAL = ("<pad>", "<unk>", "<s>", "<\\s>")
# What rounds their vocabulary up to a multiple; no text holds it.
_MADE_UP = re.compile(r"madeupword\d{4,}")


def read_nvidia_gnmt(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint of ours (see gnmt.checkpoint.load) whose logits are those of their model.

    Weights become fp32. Its tokenizers look up pieces that are split already; its recorded search
    is the default one, which is theirs too. Raises InputError for what is not such a file, by the name of what is
    missing, unknown or garbled.
    """
    contents = read_restricted(path)
    if not isinstance(contents, dict) or not {"state_dict", "tokenizer"} <= contents.keys():
        found = (
            f"keys {', '.join(map(str, contents))}" if isinstance(contents, dict) else f"a {type(contents).__name__}"
        )
        raise InputError(
            f"{path} is no checkpoint of NVIDIA's GNMT v2, which is a dictionary with state_dict and tokenizer: "
            f"found {found}"
        )
    origin = str(path)
    theirs = weights_of(contents["state_dict"], origin)
    tokenizer, unused = vocabulary_of(contents["tokenizer"], len(theirs["encoder.embedder.weight"]), origin)
    shared = torch.equal(theirs["encoder.embedder.weight"], theirs["decoder.embedder.weight"])
    if shared:
        theirs["decoder.embedder.weight"] = theirs["encoder.embedder.weight"]  # one tensor, saved once
    step = _counted(contents.get("scheduler"), "last_epoch")
    config = {
        "model": model_node(theirs, shared, _dropout(contents.get("model_config"))),
        "decoding": {"_target_": "gnmt.decoding.options.SearchOptions", **asdict(SearchOptions())},
        "trainer": {"evaluation_batch_size": _EVALUATION_BATCH_SIZE},
        "data": {"bleu_tokenize": "13a"},
    }
    return {
        "config": json.dumps(config),
        "tokenizers": Tokenizers(tokenizer, tokenizer, source_bos=True).to_checkpoint(),
        "model": {ours: theirs[name] for name, ours in names_of(*_num_layers(theirs)).items()},
        "step": step,
        "best": {},
        "best_step": step,
        "data_fingerprint": "",
        "preprocessed_folder": "",
        "precision": "fp32",
        "git_revision": None,
        "torch_version": str(torch.__version__),
        "versions": software_versions(),
        "unused_target_ids": unused,
        "imported_from": {"source": "nvidia_gnmt", "file": encodable(Path(path).name), "sha256": sha256_of(path)},
    }


def weights_of(state_dict: Any, origin: str) -> dict[str, Tensor]:
    """Their weights by their names, without the `module.` of data parallel training, in fp32 and of our shapes.

    Raises InputError unless these are just the tensors of a model of that many layers.
    """
    if not isinstance(state_dict, Mapping) or not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise InputError(f"{origin}: state_dict must hold tensors by name")
    theirs: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        plain = str(name).removeprefix("module.")
        if plain in theirs:
            raise InputError(f"{origin}: state_dict holds {plain} twice, with module. before it and without: keep one")
        theirs[plain] = tensor
    expected = names_of(*_num_layers(theirs))
    if missing := [name for name in expected if name not in theirs]:
        raise InputError(f"{origin}: state_dict lacks {_some(missing)}")
    if unknown := [name for name in theirs if name not in expected]:
        raise InputError(
            f"{origin}: state_dict holds {_some(unknown)}, which the model of GNMT v2 does not have: it cannot be "
            "represented here"
        )
    for name, tensor in theirs.items():
        num_axes = 2 if "weight" in name else 1
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise InputError(
                f"{origin}: state_dict.{name} is {tensor.layout} on {tensor.device}, allowed are dense numbers that "
                "lie in the file (not sparse ones, and not those of torch's meta device, which has none)"
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            # A small file may claim more numbers than any memory holds.
            raise InputError(
                f"{origin}: state_dict.{name} shows the same numbers many times as {list(tensor.shape)}, allowed are "
                "numbers that lie in the file, each once"
            )
        if not tensor.is_floating_point() or tensor.dim() != num_axes or not tensor.numel():
            raise InputError(
                f"{origin}: state_dict.{name} is {tensor.dtype} {list(tensor.shape)}, allowed are floating-point "
                f"numbers on {num_axes} axes"
            )
        theirs[name] = tensor.float().contiguous()
        if not theirs[name].isfinite().all():
            raise InputError(
                f"{origin}: state_dict.{name} holds numbers that are not finite in fp32: a model with such weights "
                "translates nothing; take a checkpoint from before its training diverged"
            )
    scale = "decoder.att_rnn.attn.normalize_scalar"
    if theirs[scale].numel() != 1:
        raise InputError(f"{origin}: state_dict.{scale} holds {theirs[scale].numel()} numbers, allowed is one")
    theirs[scale] = theirs[scale].reshape(())
    return theirs


def _some(names: Sequence[str]) -> str:
    """The first of the names, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def names_of(num_encoder_layers: int, num_decoder_layers: int) -> dict[str, str]:
    """Our name for each of theirs."""
    lstms = {f"encoder.rnn_layers.{layer}": f"encoder.layers.{layer}" for layer in range(1, num_encoder_layers)}
    lstms["decoder.att_rnn.rnn"] = "decoder.bottom"
    lstms |= {f"decoder.rnn_layers.{layer}": f"decoder.upper.{layer}" for layer in range(num_decoder_layers - 1)}
    names = {
        "encoder.embedder.weight": "source_embedding.weight",
        "decoder.embedder.weight": "target_embedding.weight",
        "decoder.classifier.classifier.weight": "output_layer.weight",
        "decoder.classifier.classifier.bias": "output_layer.bias",
    }
    for weight in _LSTM:
        names[f"encoder.rnn_layers.0.{weight}"] = f"encoder.layers.0.ahead.{weight}"
        names[f"encoder.rnn_layers.0.{weight}_reverse"] = f"encoder.layers.0.back.{weight}"
        names |= {f"{theirs}.{weight}": f"{ours}.{weight}" for theirs, ours in lstms.items()}
    return names | {
        f"decoder.att_rnn.attn.{theirs}": f"decoder.attention.{ours}" for theirs, ours in _ATTENTION.items()
    }


def _num_layers(weights: Mapping[str, Tensor]) -> tuple[int, int]:
    """Layers of encoder and decoder, by the highest number in the names; at least two, as ours must have."""

    def highest(side: str) -> int:
        found = (re.match(rf"{side}\.rnn_layers\.(\d{{1,3}})\.", name) for name in weights)
        return max((int(match[1]) for match in found if match), default=0)

    return max(2, highest("encoder") + 1), max(2, highest("decoder") + 2)


def model_node(weights: Mapping[str, Tensor], shared_embeddings: bool, dropout: float) -> dict[str, Any]:
    """The config of our model, with the widths that the weights have."""
    num_encoder_layers, num_decoder_layers = _num_layers(weights)
    embedding_size = weights["encoder.embedder.weight"].shape[-1]
    encoder_size = weights["encoder.rnn_layers.0.weight_hh_l0"].shape[-1]
    decoder_size = weights["decoder.att_rnn.rnn.weight_hh_l0"].shape[-1]
    common = {"residual_from": 3, "dropout": dropout, "variational_dropout": False}
    return {
        "_target_": "gnmt.model.seq2seq.Seq2Seq",
        "embedding_size": embedding_size,
        "tie_embeddings": "source_target" if shared_embeddings else "none",
        "init_range": 0.1,
        "embedding_init_range": None,
        "output_dropout": 0.0,
        "word_dropout": 0.0,
        "encoder": {
            "_target_": "gnmt.model.recurrent.encoder.LSTMEncoder",
            "input_size": embedding_size,
            "hidden_size": encoder_size,
            "num_layers": num_encoder_layers,
            "num_bidirectional_layers": 1,
            **common,
        },
        "decoder": {
            "_target_": "gnmt.model.recurrent.gnmt_decoder.GNMTDecoder",
            "input_size": embedding_size,
            "hidden_size": decoder_size,
            "num_layers": num_decoder_layers,
            "query": "current",
            **common,
            "attention": {
                "_target_": "gnmt.model.attention.AdditiveAttention",
                "query_size": decoder_size,
                "memory_size": encoder_size,
                "hidden_size": weights["decoder.att_rnn.attn.linear_att"].shape[0],
                "normalize": True,
                "initial_scale": 1.0,
            },
        },
    }


def vocabulary_of(state: Any, num_rows: int, origin: str) -> tuple[PretokenizedTokenizer, list[int]]:
    """Their vocabulary as a tokenizer of ours, and the ids that only fill it up, which no sentence holds.

    num_rows: of the embeddings; as many ids there must be.

    Pieces are those of idx2tok. tok2idx must agree, but for what their lookups have left there: a word that they did
    not know is in it with the id of UNK.
    """
    needed = ("separator", "vocab_size", "tok2idx", "idx2tok")
    if not isinstance(state, Mapping) or any(name not in state for name in needed):
        raise InputError(f"{origin}: tokenizer must hold {', '.join(needed)}")
    separator, size, to_id, to_piece = (state[name] for name in needed)
    if not isinstance(size, int) or isinstance(size, bool):
        raise InputError(f"{origin}: tokenizer.vocab_size is {size!r}, allowed is a whole number")
    if size != num_rows:
        raise InputError(f"{origin}: tokenizer.vocab_size is {size!r}, but the embeddings have {num_rows} rows")
    if not isinstance(to_id, Mapping) or not isinstance(to_piece, Mapping):
        raise InputError(f"{origin}: tokenizer.tok2idx and idx2tok must be dictionaries")
    if not isinstance(separator, str):
        raise InputError(f"{origin}: tokenizer.separator is {separator!r}, allowed is text")
    for id, piece in to_piece.items():
        if not isinstance(id, int) or isinstance(id, bool) or not 0 <= id < size or not isinstance(piece, str):
            raise InputError(
                f"{origin}: tokenizer.idx2tok gives {id!r} the piece {piece!r}, allowed are ids of 0 to {size - 1}"
            )
        if to_id.get(piece) != id:
            raise InputError(
                f"{origin}: tokenizer.idx2tok gives id {id} the piece {piece!r}, but tok2idx gives that piece "
                f"{to_id.get(piece)!r}"
            )
    special = [to_piece.get(id) for id in range(len(_SPECIAL))]
    if special != list(_SPECIAL):
        raise InputError(
            f"{origin}: tokenizer.idx2tok begins with {', '.join(map(repr, special))}, allowed is "
            f"{', '.join(map(repr, _SPECIAL))}, the ids of padding, unknown, begin and end of GNMT v2"
        )
    # Of a piece that their list holds twice, the first id has none.
    tokenizer = PretokenizedTokenizer(tuple(to_piece.get(id) for id in range(size)), separator)
    unused = [id for id, piece in to_piece.items() if _MADE_UP.fullmatch(piece)]
    return tokenizer, sorted(unused)


def _dropout(model_config: Any) -> float:
    """That of their training, which a translation does not need: 0 where the file does not say."""
    dropout = model_config.get("dropout") if isinstance(model_config, Mapping) else None
    return float(dropout) if isinstance(dropout, int | float) and 0 <= dropout < 1 else 0.0


def _counted(state: Any, name: str) -> int:
    """A number of updates that a state holds, or 0."""
    count = state.get(name) if isinstance(state, Mapping) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else 0
