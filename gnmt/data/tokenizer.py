"""Tokenizers: BPE and unigram models of SentencePiece, trained or read from files."""

from __future__ import annotations

import hashlib
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import sentencepiece
import torch

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from gnmt.config.validate import Range
from gnmt.data.pretokenized import PretokenizedTokenizer
from gnmt.data.subword_regularization import SubwordSampler, subword_sampler
from gnmt.errors import InputError
from gnmt.fileio import LINE_BREAKS, encodable, missing_file

FILE_OF_KIND = {"sentencepiece": "model", "pretokenized": "vocabulary"}


@dataclass(frozen=True)
class TokenizerEntry:
    """content: the file that the kind of tokenizer is made from. bos: whether BOS goes before the pieces; EOS always
    comes after them.
    """

    kind: str
    content: bytes
    bos: bool

    @classmethod
    def read(cls, saved: Mapping[str, Any], side: str) -> TokenizerEntry:
        """That of a side. Raises InputError for a kind or a framing that this version does not know."""
        entry = saved.get(side) if isinstance(saved, Mapping) else None
        if not isinstance(entry, Mapping) or not {"kind", "files", "framing"} <= entry.keys():
            raise InputError(f"checkpoint: tokenizers.{side} must hold kind, files and framing")
        kind, framing, files = entry["kind"], entry["framing"], entry["files"]
        if kind not in FILE_OF_KIND:
            raise InputError(
                f"checkpoint: tokenizers.{side}.kind must be sentencepiece or pretokenized, found {kind!r}"
            )
        # Training puts BOS before every target; what an encoder reads may have one.
        allowed = [{"bos": bos, "eos": True} for bos in ((False, True) if side == "source" else (True,))]
        if framing not in allowed:
            expected = " or ".join(map(str, allowed))
            raise InputError(f"checkpoint: tokenizers.{side}.framing must be {expected}, found {framing}")
        name = FILE_OF_KIND[kind]
        content = files.get(name) if isinstance(files, Mapping) else None
        if not isinstance(content, torch.Tensor) or content.dtype != torch.uint8:
            raise InputError(f"checkpoint: tokenizers.{side}.files.{name} must be a tensor of bytes")
        return cls(kind, content.numpy().tobytes(), framing["bos"])


def saved_entries(source: TokenizerEntry, target: TokenizerEntry) -> dict[str, Any]:
    """Both sides as a checkpoint holds them; equal files are one tensor, which is saved once."""
    files = {side.content: torch.frombuffer(bytearray(side.content), dtype=torch.uint8) for side in (source, target)}
    return {
        side: {
            "kind": entry.kind,
            "files": {FILE_OF_KIND[entry.kind]: files[entry.content]},
            "framing": {"bos": entry.bos, "eos": True},
        }
        for side, entry in (("source", source), ("target", target))
    }


# Longer lines are not trained on (they are encoded like any other): SentencePiece's own limit.
MAX_TRAINING_LINE_BYTES = 4192
# Unigram scores depend in their last digits on the number of threads, so it is the same everywhere.
_NUM_TRAINING_THREADS = 4
_SPECIAL_SYMBOLS = ("<pad>", "<unk>", "<s>", "</s>")


class TokenizerSource(ABC):
    """Where the tokenizers of a corpus come from: learned (TokenizerOptions) or there already (TokenizerFiles)."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What decides the tokenizers, beside the text, as JSON values."""


@dataclass(frozen=True)
class TokenizerOptions(TokenizerSource):
    """How subwords are learned.

    kind: bpe or unigram. vocab_size: pieces in all, with the four special ids and, with byte_fallback, 256
    bytes. joint: one vocabulary for both sides, or one each of that size. byte_fallback: characters without
    a piece become bytes, so that no text is unknown. normalization: nmt_nfkc (Unicode NFKC, white space
    folded) or identity (the text as it is, white space included). character_coverage: share of the
    characters of the sample that get a piece of their own, 0.98 to 1. user_symbols: strings that are always one
    piece. sample_lines: at most so many pairs are drawn, by seed, to learn from.
    """

    kind: Literal["bpe", "unigram"] = "bpe"
    vocab_size: Annotated[int, Range(1)] = 4000
    joint: bool = True
    byte_fallback: bool = True
    normalization: Literal["nmt_nfkc", "identity"] = "nmt_nfkc"
    character_coverage: Annotated[float, Range(0.98, 1)] = 1.0
    user_symbols: list[str] = field(default_factory=list)
    sample_lines: Annotated[int, Range(1)] = 1_000_000
    seed: int = 1

    def __post_init__(self) -> None:
        if self.kind not in ("bpe", "unigram"):
            raise InputError(f"tokenizer.kind must be bpe or unigram, found {self.kind!r}")
        if self.normalization not in ("nmt_nfkc", "identity"):
            raise InputError(f"tokenizer.normalization must be nmt_nfkc or identity, found {self.normalization!r}")
        if self.vocab_size < 1:
            raise InputError(f"tokenizer.vocab_size must be positive, found {self.vocab_size}")
        if not 0.98 <= self.character_coverage <= 1:
            raise InputError(f"tokenizer.character_coverage must be 0.98 to 1, found {self.character_coverage}")
        if self.sample_lines < 1:
            raise InputError(f"tokenizer.sample_lines must be 1 or more, found {self.sample_lines}")
        for symbol in self.user_symbols:
            if not symbol or symbol in _SPECIAL_SYMBOLS or re.search(r"\s", symbol):
                raise InputError(
                    f"tokenizer.user_symbols: {symbol!r} cannot be a symbol; it must be a string without "
                    f"white space that is none of {', '.join(_SPECIAL_SYMBOLS)}"
                )
        if len(set(self.user_symbols)) < len(self.user_symbols):
            raise InputError(f"tokenizer.user_symbols holds a symbol twice: {self.user_symbols}")

    def settings(self) -> dict[str, Any]:
        return asdict(self)


class Tokenizer:
    """A trained SentencePiece model. Ids: PAD 0, UNK 1, BOS 2, EOS 3, then symbols, bytes and pieces."""

    kind: ClassVar[str] = "sentencepiece"

    def __init__(self, model: bytes) -> None:
        """model: a serialized SentencePiece model with gnmt's special ids. Raises InputError for anything else."""
        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            raise InputError(f"tokenizer: not a SentencePiece model: {error}") from error
        processor = self._processor
        found = (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id())
        if found != (PAD_ID, UNK_ID, BOS_ID, EOS_ID):
            raise InputError(f"tokenizer: ids of PAD, UNK, BOS, EOS must be 0, 1, 2, 3, found {found}")
        self._samplers: dict[float, SubwordSampler] = {}

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[bytes]]:
        return Tokenizer, (self._model,)

    def encode(self, text: str) -> list[int]:
        """Ids of the pieces, without BOS and EOS. Any str is accepted; half surrogate pairs become U+FFFD."""
        ids: list[int] = self._processor.encode(encodable(text))
        return ids

    def encode_all(self, texts: Sequence[str], num_threads: int = -1) -> list[list[int]]:
        """`encode` of each text, faster for many. num_threads: -1 for one each core."""
        ids: list[list[int]] = self._processor.encode([encodable(text) for text in texts], num_threads=num_threads)
        return ids

    def encode_sampled(self, text: str, alpha: float, seed: int) -> list[int]:
        """One of the ways to cut the text, drawn by the seed (0 or more): subword regularization.

        alpha: for BPE the probability that a merge is left out (Provilkov et al. 2020), for unigram the
        exponent on the segmentation's probability, less being more random (Kudo 2018).
        A pure function of its arguments, in every process. Raises InputError for a model of another kind.
        """
        if alpha not in self._samplers:
            self._samplers[alpha] = subword_sampler(self._model, alpha)
        return self._samplers[alpha].encode(encodable(text), seed)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the pieces, on one line.

        Never fails: PAD, BOS, EOS and ids outside the vocabulary are skipped, UNK reads ` ⁇ `, bytes that
        are no UTF-8 become U+FFFD, and whatever could end a line becomes a space.
        """
        skipped = (PAD_ID, BOS_ID, EOS_ID)
        kept = [int(piece) for piece in ids if 0 <= piece < self.vocabulary_size and piece not in skipped]
        text: str = self._processor.decode(kept)
        return text.translate(LINE_BREAKS)

    def encode_with_spans(self, text: str) -> tuple[str, list[int], list[tuple[int, int]]]:
        """The text as it was read (half surrogates made whole), `encode` of it, and each piece's [begin, end) in it."""
        found = self._processor.encode(encodable(text), return_type="offset_mapping")
        return encodable(text), found["ids"], found["offsets"]

    def decode_with_spans(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """`decode` of pieces alone (no PAD, BOS or EOS), and the characters of the text that each became."""
        found = self._processor.decode(list(ids), return_type="offset_mapping")
        return found["text"].translate(LINE_BREAKS), found["offsets"]

    @cached_property
    def vocabulary_size(self) -> int:
        """Number of ids, special ones included."""
        size: int = self._processor.get_piece_size()
        return size

    def subword(self, id: int) -> str:
        """The piece as SentencePiece writes it, with ▁ for a space."""
        text: str = self._processor.id_to_piece(id)
        return text

    def subwords(self, ids: Iterable[int]) -> list[str]:
        return [self.subword(int(id)) for id in ids]

    @cached_property
    def never_produced(self) -> tuple[int, ...]:
        """Ids that no target ever holds after its BOS: PAD, BOS, and UNK where bytes stand in for it."""
        byte_fallback = any(self._processor.is_byte(id) for id in range(self.vocabulary_size))
        return (PAD_ID, UNK_ID, BOS_ID) if byte_fallback else (PAD_ID, BOS_ID)

    @cached_property
    def digest(self) -> str:
        """Hash of pieces, their types and the normalization: what the ids mean.

        Not of the file, which holds the paths of its training, and not of the scores, which differ in the last digit
        from run to run; unigram models of equal pieces may so cut the same text differently.
        """
        is_type = (self._processor.is_control, self._processor.is_unknown, self._processor.is_byte)
        digest = hashlib.sha256()
        for id in range(self.vocabulary_size):
            types = "".join(str(int(is_of_type(id))) for is_of_type in is_type)
            piece = self.subword(id).encode("utf-8")
            digest.update(b"%d:%b %b\n" % (len(piece), piece, types.encode()))
        normalizer = sentencepiece.SentencePieceNormalizer(model_proto=self._model)
        digest.update(normalizer.serialized_normalizer_spec())
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """The model, as SentencePiece's own tools read it."""
        return self._model


AnyTokenizer = Tokenizer | PretokenizedTokenizer
_MAKERS: dict[str, Callable[[bytes], AnyTokenizer]] = {
    Tokenizer.kind: Tokenizer,
    PretokenizedTokenizer.kind: PretokenizedTokenizer.from_bytes,
}


class Tokenizers(NamedTuple):
    """One tokenizer for each side, possibly the same, and the framing of the source.

    source_bos: whether the encoder reads BOS before the pieces, as that of some imported models does. EOS always comes
    after them, and targets have both.
    """

    source: AnyTokenizer
    target: AnyTokenizer
    source_bos: bool = False

    @property
    def joint(self) -> bool:
        """Whether both sides have the same ids, so that embeddings can be shared."""
        return self.source is self.target or self.source.digest == self.target.digest

    @property
    def digest(self) -> str:
        bos = " bos" if self.source_bos else ""
        return hashlib.sha256(f"{self.source.digest} {self.target.digest}{bos}".encode()).hexdigest()

    @property
    def num_framing_ids(self) -> int:
        """Ids around the pieces of a source."""
        return 2 if self.source_bos else 1

    def framed(self, pieces: Sequence[int]) -> list[int]:
        """What the encoder reads of a source with these pieces."""
        return [BOS_ID, *pieces, EOS_ID] if self.source_bos else [*pieces, EOS_ID]

    def to_checkpoint(self) -> dict[str, Any]:
        """{"source", "target": {kind, files: {name: uint8 tensor}, framing: {bos, eos}}}, fit for weights_only."""
        return saved_entries(
            TokenizerEntry(self.source.kind, self.source.to_bytes(), bos=self.source_bos),
            TokenizerEntry(self.target.kind, self.target.to_bytes(), bos=True),
        )

    @classmethod
    def from_checkpoint(cls, saved: Mapping[str, Any]) -> Tokenizers:
        """Raises InputError for a kind or a framing that this version does not know."""
        source, target = (TokenizerEntry.read(saved, side) for side in ("source", "target"))
        tokenizer = _MAKERS[source.kind](source.content)
        same = (source.kind, source.content) == (target.kind, target.content)
        return cls(tokenizer, tokenizer if same else _MAKERS[target.kind](target.content), source.bos)

    @classmethod
    def from_models(cls, source: bytes, target: bytes) -> Tokenizers:
        """Equal models become one object."""
        tokenizer = Tokenizer(source)
        return cls(tokenizer, tokenizer if source == target else Tokenizer(target))


def train_tokenizers(source: Sequence[str], target: Sequence[str], options: TokenizerOptions) -> Tokenizers:
    """Tokenizers of the two sides' lines: one for both where options.joint."""
    if options.joint:
        tokenizer = train_tokenizer([*source, *target], options)
        return Tokenizers(tokenizer, tokenizer)
    return Tokenizers(
        train_tokenizer(source, options, side=" of the source side"),
        train_tokenizer(target, options, side=" of the target side"),
    )


def train_tokenizer(lines: Iterable[str], options: TokenizerOptions, side: str = "") -> Tokenizer:
    """Learns a vocabulary from the lines, of exactly options.vocab_size ids.

    All lines are used, in their order, but blank ones and those of more than MAX_TRAINING_LINE_BYTES. Raises
    InputError where the lines have no text, and where the vocabulary cannot have that size.
    """
    usable = [line for line in lines if line.strip() and len(line.encode("utf-8")) <= MAX_TRAINING_LINE_BYTES]
    if not usable:
        raise InputError(f"tokenizer: no text{side} to learn from (no line with 1 to {MAX_TRAINING_LINE_BYTES} bytes)")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(usable),
            model_writer=model,
            model_type=options.kind,
            vocab_size=options.vocab_size,
            byte_fallback=options.byte_fallback,
            normalization_rule_name=options.normalization,
            remove_extra_whitespaces=options.normalization != "identity",
            character_coverage=options.character_coverage,
            user_defined_symbols=options.user_symbols,
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            # The sample is drawn before: SentencePiece's own shuffling differs from run to run.
            shuffle_input_sentence=False,
            max_sentence_length=MAX_TRAINING_LINE_BYTES,
            num_threads=_NUM_TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _training_error(str(error), options, side) from error
    return Tokenizer(model.getvalue())


def _training_error(message: str, options: TokenizerOptions, side: str) -> InputError:
    setting = f"tokenizer.vocab_size={options.vocab_size}"
    if most := re.search(r"size too high .*<= (\d+)", message):
        return InputError(f"{setting} is too large for the text{side}: the largest possible is {most[1]}")
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return InputError(
            f"{setting} is too small for the text{side}: the smallest possible is {least[1]} (special ids, "
            "bytes and every character; fewer characters with a lower tokenizer.character_coverage)"
        )
    return InputError(f"tokenizer: SentencePiece cannot learn {setting} from the text{side}: {message}")


@dataclass(frozen=True)
class TokenizerFiles(TokenizerSource):
    """SentencePiece models to use as they are, one for each side; the same file twice makes them joint.

    A preprocessed folder holds its own as tokenizer/source.model and tokenizer/target.model.
    """

    source: str
    target: str

    def settings(self) -> dict[str, Any]:
        """The models' contents: where they lie does not matter."""
        models = {"source": self.source, "target": self.target}
        return {f"{side}_sha256": hashlib.sha256(read_model(path)).hexdigest() for side, path in models.items()}

    def read(self) -> Tokenizers:
        """Raises InputError for a file that is missing, is no model, or whose special ids are not ours."""
        try:
            return Tokenizers.from_models(read_model(self.source), read_model(self.target))
        except RuntimeError as error:
            raise InputError(f"tokenizer: {self.source} or {self.target} is no SentencePiece model: {error}") from None


def read_model(path: str) -> bytes:
    """The bytes of a model file."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise missing_file(path) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
