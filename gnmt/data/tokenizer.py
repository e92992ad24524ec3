"""Tokenizers: BPE and unigram models of SentencePiece, and words and characters, learned from text or read from files.

`TokenizerOptions` and `TokenizerFiles` are the two choices in the config group tokenizer; with initialize_from, the
tokenizers are the `CheckpointTokenizers`. `Tokenizer` is one model of SentencePiece, and `Tokenizers` the pair for
source and target, which a checkpoint stores. `train_tokenizers` learns new ones. `gnmt.data.word_character` has the
mixed word and character model.
"""

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
from gnmt.config.validate import Range, Size
from gnmt.data.pretokenized import PretokenizedTokenizer
from gnmt.data.sentencepiece_model import with_normalizer
from gnmt.data.subword_regularization import SubwordSampler, subword_sampler
from gnmt.data.word_character import WordCharacterTokenizer, learn_vocabulary
from gnmt.errors import InputError
from gnmt.fileio import LINE_BREAKS, check_rereadable, encodable, missing_file

# The name of a tokenizer's file in a checkpoint, by the kind of tokenizer.
FILE_OF_KIND = {"sentencepiece": "model", "pretokenized": "vocabulary", "word_character": "vocabulary"}
# The end of the name of a tokenizer's file in a folder.
SUFFIX_OF_KIND = {
    "sentencepiece": ".model",
    "pretokenized": ".vocabulary.json",
    "word_character": ".word_character.json",
}
# SentencePiece's own limit: longer lines are not used for training, but are encoded like others.
MAX_TRAINING_LINE_BYTES = 4192
# Fixed, because the last digits of unigram scores depend on the number of threads.
_NUM_TRAINING_THREADS = 4
_SPECIAL_SYMBOLS = ("<pad>", "<unk>", "<s>", "</s>")
_TAG = re.compile(r"<2(.+)>")

Normalization = Literal["nmt_nfkc", "identity"]
"""The change of a text before it is split into subwords.

nmt_nfkc is SentencePiece's default: Unicode NFKC, control and zero-width characters removed, white space collapsed.
identity keeps every character, white space too.
"""


class TokenizerSource(ABC):
    """The origin of tokenizers: learned from the corpus (TokenizerOptions), or existing ones."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the settings that determine the tokenizers, besides the text, as JSON values."""


class ExistingTokenizers(TokenizerSource):
    """Tokenizers that exist before the corpus is read."""

    @abstractmethod
    def read(self) -> Tokenizers:
        """Return the tokenizers."""


@dataclass(frozen=True)
class TokenizerOptions(TokenizerSource):
    """Options for learning subwords with SentencePiece, or a vocabulary of words and characters.

    Args:
        kind: bpe or unigram for a model of SentencePiece, or word_character for the mixed word and character model of
            Wu et al. 2016, section 4.2 (see gnmt.data.word_character).
        vocab_size: Number of ids of each vocabulary, including the 4 special ids and, with `byte_fallback`, 256 bytes.
            With word_character it includes three ids for each character; the rest are the most frequent words.
        joint: Learn one vocabulary for both sides; otherwise one for each.
        byte_fallback: Encode characters without a subword as bytes, so that no text is unknown.
        source_normalization: Normalization of the source. nmt_nfkc gives equal subwords to a text that is written in
            different ways.
        target_normalization: Normalization of the target. The model learns to write normalized text, so anything but
            identity changes what translations say: `猫吃鱼！` becomes `猫吃鱼!`, and `½` becomes `1⁄2`.
        character_coverage: Share of the characters in the sample that get a subword of their own, or can be spelled.
        user_symbols: Strings that are always encoded as one subword.
        sample_lines: Maximum number of pairs to learn from, drawn at random.
        seed: Seed of that draw.
    """

    kind: Literal["bpe", "unigram", "word_character"] = "bpe"
    vocab_size: Size = 4000
    joint: bool = True
    byte_fallback: bool = True
    source_normalization: Normalization = "nmt_nfkc"
    target_normalization: Normalization = "identity"
    character_coverage: Annotated[float, Range(0.98, 1)] = 1.0
    user_symbols: list[str] = field(default_factory=list)
    sample_lines: Annotated[int, Range(1)] = 1_000_000
    seed: int = 1

    def __post_init__(self) -> None:
        for symbol in self.user_symbols:
            if not symbol or symbol in _SPECIAL_SYMBOLS or re.search(r"\s", symbol):
                raise InputError(
                    f"tokenizer.user_symbols: {symbol!r} cannot be a symbol; it must be a string without "
                    f"white space that is none of {', '.join(_SPECIAL_SYMBOLS)}"
                )
        if len(set(self.user_symbols)) < len(self.user_symbols):
            raise InputError(f"tokenizer.user_symbols contains a symbol twice: {self.user_symbols}; remove one")

    def settings(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TokenizerFiles(ExistingTokenizers):
    """Existing tokenizers, with their normalizers; equal subwords of both make the vocabulary joint.

    A preprocessed folder contains its tokenizers as tokenizer/source.model and tokenizer/target.model, models of
    SentencePiece, or source.word_character.json and target.word_character.json.

    Args:
        source, target: Paths of the files.
    """

    source: str
    target: str

    def settings(self) -> dict[str, Any]:
        """Return the SHA-256 of each file; the paths are not part of the settings."""
        return _hashes(*self._read_files())

    def read(self) -> Tokenizers:
        """Read the files.

        Raises InputError for a file that is missing, a pipe, neither a SentencePiece model nor a vocabulary of words
        and characters, or has other special ids than gnmt.
        """
        source, target = (TokenizerEntry(_kind_of(content), content, False) for content in self._read_files())
        try:
            return Tokenizers.from_entries(source, target)
        except InputError as error:
            raise InputError(f"tokenizer.source={self.source} tokenizer.target={self.target}: {error}") from error

    def _read_files(self) -> tuple[bytes, bytes]:
        return _read_model("tokenizer.source", self.source), _read_model("tokenizer.target", self.target)


@dataclass(frozen=True)
class CheckpointTokenizers(ExistingTokenizers):
    """The tokenizers that a checkpoint holds, of which no file is needed. No config names this class."""

    tokenizers: Tokenizers

    def settings(self) -> dict[str, Any]:
        """Return the SHA-256 of each model, as `TokenizerFiles` does."""
        return _hashes(self.tokenizers.source.to_bytes(), self.tokenizers.target.to_bytes())

    def read(self) -> Tokenizers:
        return self.tokenizers


def _kind_of(content: bytes) -> str:
    """Return the kind of a tokenizer's file: JSON is a vocabulary of words and characters."""
    return WordCharacterTokenizer.kind if content.startswith(b"{") else Tokenizer.kind


def _hashes(source: bytes, target: bytes) -> dict[str, Any]:
    """Return the settings that stand for two models."""
    return {"source_sha256": hashlib.sha256(source).hexdigest(), "target_sha256": hashlib.sha256(target).hexdigest()}


def _read_model(key: str, path: str) -> bytes:
    check_rereadable(path, key)
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise missing_file(path) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


class Tokenizer:
    """A SentencePiece model with the ids PAD 0, UNK 1, BOS 2, EOS 3, then user symbols, bytes and subwords.

    Args:
        model: The serialized model. InputError is raised for anything else, and for other special ids.
    """

    kind: ClassVar[str] = "sentencepiece"

    def __init__(self, model: bytes) -> None:
        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            raise InputError(f"tokenizer: not a SentencePiece model: {error}") from error
        processor = self._processor
        found = (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id())
        if found != (PAD_ID, UNK_ID, BOS_ID, EOS_ID):
            raise InputError(
                f"tokenizer: the ids of PAD, UNK, BOS, EOS must be 0, 1, 2, 3, found {found}: train the model with "
                "pad_id=0, unk_id=1, bos_id=2 and eos_id=3"
            )
        self._samplers: dict[float, SubwordSampler] = {}

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[bytes]]:
        return Tokenizer, (self._model,)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without BOS and EOS. Any str is accepted; half surrogate pairs become U+FFFD."""
        ids: list[int] = self._processor.encode(encodable(text))
        return ids

    def encode_all(self, texts: Sequence[str], num_threads: int = -1) -> list[list[int]]:
        """Return `encode` of each text, computed by `num_threads` threads (-1: one per core)."""
        ids: list[list[int]] = self._processor.encode([encodable(text) for text in texts], num_threads=num_threads)
        return ids

    def encode_sampled(self, text: str, alpha: float, seed: int) -> list[int]:
        """Return the ids of a randomly sampled segmentation of a text (subword regularization).

        The result depends on the arguments alone, in every process. Raises InputError for a model that is neither BPE
        nor unigram.

        Args:
            text: The text.
            alpha: For BPE, the probability of skipping a merge (Provilkov et al. 2020). For unigram, the exponent of a
                segmentation's probability, where less is more random (Kudo 2018).
            seed: 0 or more.
        """
        if alpha not in self._samplers:
            self._samplers[alpha] = subword_sampler(self._model, alpha)
        return self._samplers[alpha].encode(encodable(text), seed)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of any ids, on one line.

        PAD, BOS, EOS and ids outside the vocabulary are skipped, UNK becomes ` ⁇ `, bytes that are not UTF-8 become
        U+FFFD, and line breaks become spaces.
        """
        skipped = (PAD_ID, BOS_ID, EOS_ID)
        kept = [int(id) for id in ids if 0 <= id < self.vocabulary_size and id not in skipped]
        text: str = self._processor.decode(kept)
        return text.translate(LINE_BREAKS)

    def decode_all(self, ids: Sequence[list[int]], num_threads: int = -1) -> list[str]:
        """Return `decode` of ids that `encode_all` returned, computed by `num_threads` threads (-1: one per core)."""
        texts: list[str] = self._processor.decode(ids, num_threads=num_threads) if ids else []
        return [text.translate(LINE_BREAKS) for text in texts]

    def encode_with_spans(self, text: str) -> tuple[str, list[int], list[tuple[int, int]]]:
        """Return the text as `encode` reads it, its ids, and the span [begin, end) of each id in the text."""
        found = self._processor.encode(encodable(text), return_type="offset_mapping")
        return encodable(text), found["ids"], found["offsets"]

    def decode_with_spans(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of ids other than PAD, BOS and EOS, and the span [begin, end) of each id in the text."""
        found = self._processor.decode(list(ids), return_type="offset_mapping")
        return found["text"].translate(LINE_BREAKS), found["offsets"]

    @cached_property
    def vocabulary_size(self) -> int:
        """The number of ids, including special ones."""
        size: int = self._processor.get_piece_size()
        return size

    def subword(self, id: int) -> str:
        """Return the subword of an id as SentencePiece writes it, with ▁ for a space."""
        text: str = self._processor.id_to_piece(id)
        return text

    def subwords(self, ids: Iterable[int]) -> list[str]:
        """Return `subword` of each id."""
        return [self.subword(int(id)) for id in ids]

    @cached_property
    def control_symbols(self) -> dict[str, int]:
        """The ids of symbols that no text is encoded as, such as tags of languages, without PAD, BOS and EOS."""
        special = (PAD_ID, BOS_ID, EOS_ID)
        ids = (id for id in range(self.vocabulary_size) if id not in special and self._processor.is_control(id))
        return {self.subword(id): id for id in ids}

    @cached_property
    def never_produced(self) -> tuple[int, ...]:
        """The ids that never follow BOS in a target: PAD, BOS, control symbols, and UNK if there are bytes."""
        byte_fallback = any(self._processor.is_byte(id) for id in range(self.vocabulary_size))
        special = (PAD_ID, UNK_ID, BOS_ID) if byte_fallback else (PAD_ID, BOS_ID)
        return *special, *self.control_symbols.values()

    @cached_property
    def subwords_digest(self) -> str:
        """The SHA-256 of the subwords and their types, which define the meaning of the ids."""
        is_type = (self._processor.is_control, self._processor.is_unknown, self._processor.is_byte)
        digest = hashlib.sha256()
        for id in range(self.vocabulary_size):
            types = "".join(str(int(is_of_type(id))) for is_of_type in is_type)
            subword = self.subword(id).encode("utf-8")
            digest.update(b"%d:%b %b\n" % (len(subword), subword, types.encode()))
        return digest.hexdigest()

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the subwords, their types and the normalizer.

        The model file is not hashed, because it contains paths of its training, and the scores are not, because their
        last digits differ from run to run. Two unigram models of equal digest may therefore segment a text differently.
        """
        normalizer = sentencepiece.SentencePieceNormalizer(model_proto=self._model)
        digest = hashlib.sha256(self.subwords_digest.encode())
        digest.update(normalizer.serialized_normalizer_spec())
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """Return the model in SentencePiece's own format."""
        return self._model


AnyTokenizer = Tokenizer | PretokenizedTokenizer | WordCharacterTokenizer
_READERS: dict[str, Callable[[bytes], AnyTokenizer]] = {
    Tokenizer.kind: Tokenizer,
    PretokenizedTokenizer.kind: PretokenizedTokenizer.from_bytes,
    WordCharacterTokenizer.kind: WordCharacterTokenizer.from_bytes,
}


class Tokenizers(NamedTuple):
    """The tokenizers of both sides, possibly the same object, and the framing of the source.

    EOS follows the subwords of every source and target, and BOS precedes those of every target. In a multilingual model
    (Johnson et al. 2017), a tag before the subwords of the source names the target language.

    Args:
        source, target: The tokenizers.
        source_bos: BOS precedes the subwords of a source too, as in some imported models.
        target_language: The language whose tag precedes the subwords of a source; None for a model without tags.
    """

    source: AnyTokenizer
    target: AnyTokenizer
    source_bos: bool = False
    target_language: str | None = None

    @property
    def joint(self) -> bool:
        """True if both sides have the same subwords, so that they can share embeddings; normalizers may differ."""
        return self.source is self.target or self.source.subwords_digest == self.target.subwords_digest

    @property
    def digest(self) -> str:
        """The SHA-256 of both digests and the framing of the source."""
        bos = " bos" if self.source_bos else ""
        return hashlib.sha256(f"{self.source.digest} {self.target.digest}{bos}".encode()).hexdigest()

    @property
    def tags(self) -> dict[str, int]:
        """The id of each target language's tag, by the language; empty if the model has one target language."""
        symbols = self.source.control_symbols.items()
        return {match[1]: id for symbol, id in symbols if (match := _TAG.fullmatch(symbol))}

    def into(self, language: str | None) -> Tokenizers:
        """Return the tokenizers for sources with the tag of this language, or without a tag for None.

        Raises InputError unless the language has a tag, or, for None, if there are tags.
        """
        tags = self.tags
        if language is None and tags:
            raise InputError(
                f"target_language is missing: this model translates into {', '.join(sorted(tags))}, so give one of "
                "them, as in target_language=" + min(tags)
            )
        if language is not None and language not in tags:
            allowed = f"one of {', '.join(sorted(tags))}" if tags else "none, because it has one target language"
            raise InputError(f"target_language is {language!r}, allowed for this model is {allowed}")
        return self._replace(target_language=language)

    @property
    def source_prefix(self) -> list[int]:
        """The ids before the subwords of a source."""
        tag = [] if self.target_language is None else [self.tags[self.target_language]]
        return [BOS_ID, *tag] if self.source_bos else tag

    @property
    def num_framing_ids(self) -> int:
        """The number of ids that frame the subwords of a source."""
        return 1 + self.source_bos + (self.target_language is not None)

    def framed(self, ids: Sequence[int]) -> list[int]:
        """Return the ids of a source with EOS, and BOS and a tag where they belong, as the encoder reads them."""
        return [*self.source_prefix, *ids, EOS_ID]

    def to_checkpoint(self) -> dict[str, Any]:
        """Return {"source", "target": {kind, files: {name: uint8 tensor}, framing: {bos, eos}}}."""
        return saved_entries(
            TokenizerEntry(self.source.kind, self.source.to_bytes(), bos=self.source_bos),
            TokenizerEntry(self.target.kind, self.target.to_bytes(), bos=True),
        )

    @classmethod
    def from_checkpoint(cls, saved: Mapping[str, Any]) -> Tokenizers:
        """Return the tokenizers of a checkpoint. Raises InputError for a malformed entry, unknown kind or framing."""
        return cls.from_entries(*(TokenizerEntry.read(saved, side) for side in ("source", "target")))

    @classmethod
    def from_entries(cls, source: TokenizerEntry, target: TokenizerEntry) -> Tokenizers:
        """Make tokenizers from their files; equal files become one object. Raises InputError for a malformed file."""
        tokenizer = _READERS[source.kind](source.content)
        same = (source.kind, source.content) == (target.kind, target.content)
        return cls(tokenizer, tokenizer if same else _READERS[target.kind](target.content), source.bos)


@dataclass(frozen=True)
class TokenizerEntry:
    """One side of the tokenizers in a checkpoint or a folder.

    Args:
        kind: Kind of tokenizer, a key of FILE_OF_KIND.
        content: Content of its file.
        bos: BOS precedes the subwords. EOS always follows them.
    """

    kind: str
    content: bytes
    bos: bool

    @classmethod
    def read(cls, saved: Mapping[str, Any], side: str) -> TokenizerEntry:
        """Read the entry of a side. Raises InputError if it is malformed or has an unknown kind or framing."""
        entry = saved.get(side) if isinstance(saved, Mapping) else None
        if not isinstance(entry, Mapping) or not {"kind", "files", "framing"} <= entry.keys():
            raise InputError(f"checkpoint: tokenizers.{side} must hold kind, files and framing")
        kind, framing, files = entry["kind"], entry["framing"], entry["files"]
        if not isinstance(kind, str) or kind not in FILE_OF_KIND:
            kinds = ", ".join(FILE_OF_KIND)
            raise InputError(f"checkpoint: tokenizers.{side}.kind must be one of {kinds}, found {kind!r}")
        # Training puts BOS before every target; a source has it only in imported models.
        allowed = [{"bos": bos, "eos": True} for bos in ((False, True) if side == "source" else (True,))]
        if framing not in allowed:
            expected = " or ".join(map(str, allowed))
            raise InputError(f"checkpoint: tokenizers.{side}.framing must be {expected}, found {framing}")
        name = FILE_OF_KIND[kind]
        content = files.get(name) if isinstance(files, Mapping) else None
        if not isinstance(content, torch.Tensor) or content.dtype != torch.uint8:
            raise InputError(f"checkpoint: tokenizers.{side}.files.{name} must be a tensor of bytes (uint8)")
        return cls(kind, content.numpy().tobytes(), framing["bos"])


def saved_entries(source: TokenizerEntry, target: TokenizerEntry) -> dict[str, Any]:
    """Return both sides in the form of a checkpoint; equal files are one tensor, which is saved once."""
    files = {side.content: torch.frombuffer(bytearray(side.content), dtype=torch.uint8) for side in (source, target)}
    return {
        side: {
            "kind": entry.kind,
            "files": {FILE_OF_KIND[entry.kind]: files[entry.content]},
            "framing": {"bos": entry.bos, "eos": True},
        }
        for side, entry in (("source", source), ("target", target))
    }


def train_tokenizers(
    source: Sequence[str], target: Sequence[str], options: TokenizerOptions, languages: Sequence[str] = ()
) -> Tokenizers:
    """Learn the tokenizers of both sides from their lines; with options.joint, one vocabulary from the lines of both.

    The lines of each side are normalized first, and its tokenizer normalizes in the same way.

    Args:
        source, target: The lines.
        options: The options.
        languages: Target languages for which the source has a tag.
    """
    tags = [tag_of(language) for language in languages]
    if not options.joint:
        return Tokenizers(
            train_tokenizer(source, options, options.source_normalization, "text of the source side", tags),
            train_tokenizer(target, options, options.target_normalization, "text of the target side"),
        )
    sides = [(source, options.source_normalization), (target, options.target_normalization)]
    normalized = [line for lines, rule in sides for line in _normalized(lines, rule)]
    learned = _learned(normalized, options, [rule for _, rule in sides], "text", tags)
    return Tokenizers(learned[options.source_normalization], learned[options.target_normalization])


def tag_of(language: str) -> str:
    """Return the tag of a target language, such as <2de> for de (Johnson et al. 2017, section 3)."""
    return f"<2{language}>"


def train_tokenizer(
    lines: Iterable[str],
    options: TokenizerOptions,
    normalization: Normalization = "nmt_nfkc",
    text: str = "text",
    control_symbols: Sequence[str] = (),
) -> Tokenizer | WordCharacterTokenizer:
    """Learn a vocabulary of exactly options.vocab_size ids from the normalized lines.

    Raises InputError if the lines contain no text, or if the vocabulary cannot have that size.

    Args:
        lines: All lines are used, in order, except blank ones and, by SentencePiece, those above
            MAX_TRAINING_LINE_BYTES.
        options: The options; `joint`, `sample_lines`, `seed` and the normalizations are not used here.
        normalization: Normalization of the lines, and of every text that the tokenizer encodes.
        text: Name of the lines in error messages.
        control_symbols: Symbols that have an id although no text is encoded as them.
    """
    return _learned(_normalized(lines, normalization), options, [normalization], text, control_symbols)[normalization]


def _learned(
    lines: Iterable[str],
    options: TokenizerOptions,
    normalizations: Sequence[Normalization],
    text: str,
    control_symbols: Sequence[str],
) -> Mapping[Normalization, Tokenizer | WordCharacterTokenizer]:
    """Learn one vocabulary from normalized lines; return a tokenizer with it for each normalization."""
    if options.kind == "word_character":
        vocabulary = learn_vocabulary(
            lines,
            options.vocab_size,
            character_coverage=options.character_coverage,
            symbols=options.user_symbols,
            control_symbols=control_symbols,
            byte_fallback=options.byte_fallback,
            text=text,
        )
        return {rule: WordCharacterTokenizer(vocabulary, rule) for rule in normalizations}
    model = _learn_subwords(lines, options, text, control_symbols)
    return {rule: Tokenizer(with_normalizer(model, _normalizer_spec(rule))) for rule in normalizations}


def _normalized(lines: Iterable[str], rule: Normalization) -> Iterable[str]:
    """Return the normalized lines, as text without ▁."""
    if rule == "identity":
        return lines
    normalizer = sentencepiece.SentencePieceNormalizer(
        rule_name=rule, add_dummy_prefix=False, escape_whitespaces=False, remove_extra_whitespaces=True
    )
    return (normalizer.normalize(line) for line in lines)


def _normalizer_spec(rule: Normalization) -> bytes:
    """Return the normalizer of a model in SentencePiece's serialized form."""
    normalizer = sentencepiece.SentencePieceNormalizer(rule_name=rule, remove_extra_whitespaces=rule != "identity")
    spec: bytes = normalizer.serialized_normalizer_spec()
    return spec


def _learn_subwords(
    lines: Iterable[str], options: TokenizerOptions, text: str, control_symbols: Sequence[str]
) -> bytes:
    """Learn subwords from normalized lines, and return the serialized model; see `train_tokenizer`."""
    usable = [line for line in lines if line.strip() and len(line.encode("utf-8")) <= MAX_TRAINING_LINE_BYTES]
    if not usable:
        raise InputError(f"tokenizer: no {text} to learn from (no line with 1 to {MAX_TRAINING_LINE_BYTES} bytes)")
    model = io.BytesIO()
    further: dict[str, Any] = {"control_symbols": list(control_symbols)} if control_symbols else {}
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(usable),
            model_writer=model,
            model_type=options.kind,
            vocab_size=options.vocab_size,
            byte_fallback=options.byte_fallback,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            character_coverage=options.character_coverage,
            user_defined_symbols=options.user_symbols,
            **further,
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            # The caller has drawn the sample, because SentencePiece's own shuffling differs from run to run.
            shuffle_input_sentence=False,
            max_sentence_length=MAX_TRAINING_LINE_BYTES,
            num_threads=_NUM_TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _training_error(str(error), options, text) from error
    return model.getvalue()


def _training_error(message: str, options: TokenizerOptions, text: str) -> InputError:
    """Return the error for SentencePiece's message, with the possible vocabulary size if the message contains it."""
    setting = f"tokenizer.vocab_size={options.vocab_size}"
    if most := re.search(r"size too high .*<= (\d+)", message):
        return InputError(f"{setting} is too large for the {text}: the largest possible is {most[1]}")
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return InputError(
            f"{setting} is too small for the {text}: the smallest possible is {least[1]} (special ids, "
            "bytes and every character; a lower tokenizer.character_coverage leaves out rare characters)"
        )
    return InputError(f"tokenizer: SentencePiece cannot learn {setting} from the {text}: {message}")
