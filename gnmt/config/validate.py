"""Validation of configs: classes, keywords, types, ranges and choices, before any file or device is touched.

`check_config` checks a composed config by its schema (gnmt.config.schema), `check_component` a node with `_target_` by
the signature of its class, and `check_value` a plain value by a type annotation. All errors are collected. Each is one
line "key: value found, what is allowed, how to fix it".
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from inspect import Parameter
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from omegaconf import OmegaConf

from gnmt.config.build import build, constructor_hints, deferred_component, dotted_name, find_class, resolve
from gnmt.errors import InputError, did_you_mean, format_count, format_value


@dataclass(frozen=True)
class Range:
    """The values that a number of a config may take, as an annotation: `Annotated[float, Range(0, 1)]`.

    A float must be finite, unless `high` is infinity.

    Args:
        low: The smallest value; None for no bound.
        high: The largest value; None for no bound.
        open_low: Exclude `low` itself.
        open_high: Exclude `high` itself.
    """

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False


Seed = Annotated[int, Range(0)]
Probability = Annotated[float, Range(0, 1, open_high=True)]
"""A probability of dropout or smoothing: below 1."""
# The bounds below lie far above useful values. Within them, the number of elements of a tensor fits into 64 bits.
Size = Annotated[int, Range(1, 2**20)]
"""The width of a layer, or another dimension of a tensor of weights."""
NumLayers = Annotated[int, Range(1, 1000)]
BatchSize = Annotated[int, Range(1, 2**20)]
"""A number of sentences that are processed at once."""
BeamSize = Annotated[int, Range(1, 10_000)]

RENAMED = {
    "cpu_kernels": "onednn_cache_capacity",
    "initialise_from": "initialize_from",
    "data.prepared": "data.preprocessed",
    "tokenizer.normalisation": "tokenizer.source_normalization and tokenizer.target_normalization",
    "tokenizer.normalization": "tokenizer.source_normalization and tokenizer.target_normalization",
    "trainer.length_multiple": "trainer.pad_to_multiple_of",
    "trainer.phases": "trainer.stages",
    "trainer.subword_sampling": "trainer.subword_regularization",
    "model.encoder.dropout_over_time": "model.encoder.variational_dropout (true for shared, false for fresh)",
    "model.decoder.dropout_over_time": "model.decoder.variational_dropout (true for shared, false for fresh)",
    "model.encoder.embedding_shortcut": "model.encoder.attend_to_embeddings",
    "model.decoder.attention.normalise": "model.decoder.attention.normalize",
    "model/decoder=lstm": "model/decoder=gnmt",
    "model/decoder=top_attention": "model/decoder=attention",
}
"""Former names of keys and of choices of groups, with their new names."""

OTHER_NAMES = {"learning_rate": "lr", "max_updates": "max_steps", "num_epochs": "max_epochs"}
"""Names that other projects give to keys, with the name here."""

LARGEST_INT = 2**63 - 1
"""The largest whole number of a config, unless its range has a lower bound: tensors, arrays and files hold 64 bits."""

MISSING_VALUE = "???"
SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}

_ABOVE_0, _AT_LEAST_0 = Range(0, open_low=True), Range(0)
_BELOW_1, _UP_TO_1 = Range(0, 1, open_high=True), Range(0, 1)
_ADAM = {"lr": _ABOVE_0, "betas": _BELOW_1, "eps": _ABOVE_0, "weight_decay": _AT_LEAST_0}
OPTIMIZER_RANGES: dict[str, dict[str, Range]] = {
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "SGD": {"lr": _ABOVE_0, "momentum": _BELOW_1, "dampening": _UP_TO_1, "weight_decay": _AT_LEAST_0},
}
"""The ranges of the optimizers in configs/optimizer, whose constructors have no annotations for them; of a list, the
range of each number. The values of other optimizers are checked by their constructors (gnmt.training.train)."""

CheckNode = Callable[[Any, str, tuple[type, ...], tuple[str, ...]], list[str]]
"""A function that checks a component node: (node, its key, the classes of which it must be one, keywords that the
program supplies) -> errors."""


def check_config(cfg: Any) -> None:
    """Check a composed config.

    Raises InputError with all errors at once.
    """
    if errors := config_errors(cfg):
        raise InputError(f"{format_count(len(errors), 'error')} in the config:\n  " + "\n  ".join(errors))


def config_errors(cfg: Any) -> list[str]:
    """Return all errors of a composed config."""
    schema = OmegaConf.get_type(cfg)
    assert schema is not None, "the config has no schema: compose it from configs/"
    values = resolve(cfg)
    trusted = values.get("trusted_packages", ())  # commands that build nothing have no such key
    fields = {field.name: field for field in dataclasses.fields(schema)}
    unknown = list_items({name: value for name, value in values.items() if name not in fields})
    known = list_keys({name: value for name, value in values.items() if name in fields})
    errors = [unknown_key(key, known) for key, value in unknown if not children(value)]
    for field in fields.values():
        value = values.get(field.name, MISSING_VALUE)
        if value == MISSING_VALUE:
            errors.append(_missing(field.name))
        elif "component" in field.metadata:
            if field.metadata["unless"] is not None and values.get(field.metadata["unless"]) is not None:
                continue
            errors += _check_root_component(value, field, trusted)
        else:
            errors += _check_root_value(value, field)
    return _explain_interpolations(errors, cfg)


def _explain_interpolations(errors: list[str], cfg: Any) -> list[str]:
    """Report a wrong value once, at the key that holds it, and name the interpolation that another wrong value has."""
    texts = dict(list_items(cfg))
    wrong = {error.partition(":")[0] for error in errors}
    explained = []
    for error in errors:
        key = error.partition(":")[0]
        text = texts.get(key)
        if isinstance(text, str) and (reference := re.search(r"\$\{(oc\.select:)?([\w.]+)[,}]", text)):
            if reference[2] in wrong:
                continue
            error += f" (from {text})"
        elif isinstance(text, str) and "${oc.env:" in text:
            decoded = re.sub(r"\$\{oc\.env:[^{}]*\}", r"${oc.decode:\g<0>}", text)
            error += f"; the text of an environment variable needs oc.decode: '{key}=\"{decoded}\"'"
        explained.append(error)
    return explained


def _check_root_component(value: Any, field: dataclasses.Field[Any], trusted: list[str]) -> list[str]:
    """Check a component at the root, or, where the schema allows it, single options without `_target_`."""
    kind = field.metadata["component"]
    partial = field.metadata["partial"] and isinstance(value, Mapping) and "_target_" not in value
    if partial:
        value = {"_target_": kind, **{name: item for name, item in value.items() if item is not None}}
    return check_component(
        value,
        field.name,
        trusted_packages=trusted,
        supplied=field.metadata["supplied"],
        expected=(find_class(kind),),
        complete=not partial,
    )


def _check_root_value(value: Any, field: dataclasses.Field[Any]) -> list[str]:
    """Check a plain value at the root against its metadata; OmegaConf has checked its type."""
    found = f"{field.name}: found {format_value(value)}"
    if value in ("", [""]):
        return [_empty(field.name)]
    if "paths" in field.metadata and not (_is_paths(value) or (value is None and field.metadata["optional"])):
        return [f"{found}, allowed is a path or a list of paths, [a,b]"]
    if "choices" in field.metadata:
        choices = field.metadata["choices"]()
        if value not in choices:
            return [f"{found}, allowed is one of {', '.join(choices)}{did_you_mean(str(value), choices)}"]
    if "hint" in field.metadata:
        return check_value(value, field.metadata["hint"], field.name, lambda *_: [])
    if "pattern" in field.metadata and not re.fullmatch(field.metadata["pattern"], value):
        return [f"{found}, allowed is {field.metadata['allowed']}"]
    return []


def _is_paths(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(path, str) and path for path in value)
    return isinstance(value, str)


# Components


def check_component(
    node: Any,
    path: str,
    *,
    trusted_packages: Collection[str] = (),
    supplied: Collection[str] = (),
    expected: tuple[type, ...] = (object,),
    complete: bool = True,
) -> list[str]:
    """Return all errors of a component node and of the nodes inside it.

    Args:
        node: Plain and resolved. Text in it stays text, even "${...}".
        path: The node's key, for the messages.
        trusted_packages: Packages besides gnmt and torch.optim whose classes may be built.
        supplied: Keywords that the program gives at run time. The node must not hold them.
        expected: The target must be one of these classes or derive from one.
        complete: False for a node that holds only some options, so that their combination cannot be checked yet.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        return [
            f"{path}: found {format_value(node)}, allowed is a component: `_target_` and the keywords of that class"
        ]
    try:
        component = find_class(node["_target_"], trusted_packages)
    except InputError as error:
        return [f"{path}._target_: {error}"]
    if not issubclass(component, expected):
        allowed = " or ".join(dotted_name(kind) for kind in expected)
        return [f"{path}._target_: found {node['_target_']}, allowed is {allowed} or a class derived from it"]

    def check_inner_node(inner: Any, inner_path: str, classes: tuple[type, ...], given: tuple[str, ...]) -> list[str]:
        return check_component(inner, inner_path, trusted_packages=trusted_packages, supplied=given, expected=classes)

    errors = _check_keywords(node, component, path, supplied)
    hints = constructor_hints(component)
    for name, value in node.items():
        if name != "_target_" and name not in supplied:
            errors += check_value(value, hints.get(name, Any), f"{path}.{name}", check_inner_node)
    errors += check_optimizer(node, component, path)
    if not errors and not supplied and complete and dataclasses.is_dataclass(component):
        errors += _try_options(node, path)
    return errors


def _check_keywords(node: Mapping[str, Any], component: type, path: str, supplied: Collection[str]) -> list[str]:
    """Return errors for keywords that the constructor does not take, that are missing, or that the program supplies."""
    parameters = inspect.signature(component).parameters.values()
    named = {item.name: item for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)}
    takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters)
    free = [name for name in named if name not in supplied]
    errors = []
    for name in node:
        key = f"{path}.{name}"
        if name == "_target_":
            continue
        if str(name).startswith("_") and str(name).endswith("_"):
            errors.append(f"{key}: is refused; a component holds `_target_` and the keywords of its class")
        elif name in supplied:
            errors.append(f"{key}: is given by the program itself; leave it out")
        elif name not in named and key in RENAMED:
            errors.append(renamed(key))
        elif name not in named and not takes_any:
            # The key may come from the config of a whole model, and another component may have replaced this one.
            other_name = OTHER_NAMES.get(str(name), str(name))
            advice = did_you_mean(other_name, free, prefix=path) or f"; it takes {', '.join(free)}"
            errors.append(
                f"{key}: {component.__name__} takes no such key{advice} ('~{key}' leaves out what another config sets)"
            )
    for name in free:
        if named[name].default is Parameter.empty and name not in node:
            errors.append(f"{path}.{name}: is missing; {component.__name__} needs it")
    return errors


def check_optimizer(node: Mapping[str, Any], component: type, path: str) -> list[str]:
    """Return the errors of an optimizer's values by OPTIMIZER_RANGES; none for other components."""
    if not component.__module__.startswith("torch.optim."):
        return []
    errors = []
    for name, limits in OPTIMIZER_RANGES.get(component.__name__, {}).items():
        value = node.get(name)
        items = value if isinstance(value, list | tuple) else [value]
        items = [item for item in items if not isinstance(item, float) or math.isfinite(item)]  # refused by their type
        if not all(_contains(limits, item) for item in items):
            kind = "a number" if not isinstance(value, list | tuple) else "a list of numbers, each"
            errors.append(f"{path}.{name}: found {format_value(value)}, allowed is {kind} {_describe_range(limits)}")
    return errors


def _try_options(node: Mapping[str, Any], path: str) -> list[str]:
    """Return the errors that a dataclass raises when it is built: option sets check how their options fit together."""
    try:
        build(node)
    except ValueError as error:
        lines = str(error).splitlines()
        if all(line.startswith(f"{path}.") for line in lines):
            return lines
        return [str(error) if str(error).startswith(path) else f"{path}: {error}"]
    return []


# Values and type annotations


def check_value(value: Any, hint: Any, path: str, check_node: CheckNode) -> list[str]:
    """Return all errors of a value under a type annotation.

    Understands None, bool, int, float, str, Literal, Union, Annotated with Range, sequences and mappings. Any other
    class stands for a component that derives from it.

    Args:
        value: Plain and resolved.
        hint: The annotation.
        path: The value's key, for the messages.
        check_node: Checks the components in it.
    """
    if isinstance(value, str) and value == MISSING_VALUE:
        return [_missing(path)]
    if isinstance(value, str) and not value:
        return [_empty(path)]
    if (deferred := deferred_component(hint)) is not None:
        absent = value is None and NoneType in get_args(get_args(hint)[0])
        return [] if absent else check_node(value, path, (deferred.kind,), deferred.supplied)
    if isinstance(value, Mapping) and "_target_" in value:
        allowed = _component_classes(hint)
        return check_node(value, path, allowed, ()) if allowed else [_wrong(value, hint, path)]
    if _is_open(hint):
        return [error for key, item in children(value) for error in check_value(item, Any, f"{path}.{key}", check_node)]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        errors = check_value(value, arguments[0], path, check_node)
        ranges = [limits for limits in arguments[1:] if isinstance(limits, Range)]
        if arguments[0] is float and value == math.inf and any(limits.high == math.inf for limits in ranges):
            return []
        in_range = all(_contains(limits, value) for limits in ranges)
        return [_wrong(value, hint, path)] if (errors and not children(value)) or not in_range else errors
    if origin in (Union, UnionType):
        return _check_alternatives(value, hint, path, check_node)
    if origin is Literal:
        fits = any(value == literal and type(value) is type(literal) for literal in arguments)
        return [] if fits else [_wrong(value, hint, path) + did_you_mean(str(value), [str(item) for item in arguments])]
    container = origin or hint
    if _is_container(container, Mapping) or _is_container(container, Collection):
        return _check_container(value, hint, path, check_node)
    return [] if _fits_scalar(value, hint) else [_wrong(value, hint, path)]


def _check_alternatives(value: Any, hint: Any, path: str, check_node: CheckNode) -> list[str]:
    """Check a value under a union. Errors inside a container are more exact than "no alternative fits"."""
    by_alternative = [check_value(value, alternative, path, check_node) for alternative in get_args(hint)]
    if not all(by_alternative):
        return []
    inner = [errors for errors in by_alternative if any(not error.startswith(f"{path}:") for error in errors)]
    return inner[0] if inner else [_wrong(value, hint, path)]


def _check_container(value: Any, hint: Any, path: str, check_node: CheckNode) -> list[str]:
    """Check a list, a tuple or a mapping, item by item."""
    container, arguments = get_origin(hint) or hint, get_args(hint)
    if _is_container(container, Mapping):
        if not isinstance(value, Mapping):
            return [_wrong(value, hint, path)]
        item_hints = [arguments[1] if arguments else Any] * len(value)
    else:
        if not isinstance(value, list | tuple):
            return [_wrong(value, hint, path)]
        fixed = container is tuple and bool(arguments) and arguments[-1] is not Ellipsis
        if fixed and len(arguments) != len(value):
            return [_wrong(value, hint, path)]
        item_hints = list(arguments) if fixed else [arguments[0] if arguments else Any] * len(value)
    return [
        error
        for (key, item), item_hint in zip(children(value), item_hints, strict=True)
        for error in check_value(item, item_hint, f"{path}.{key}", check_node)
    ]


def _fits_scalar(value: Any, hint: Any) -> bool:
    """Return whether a scalar has the annotated type. A bool is no number, and a float must be finite."""
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        try:
            return math.isfinite(value)
        except OverflowError:  # an int too large for a float
            return False
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_INT
    return hint in SCALARS and isinstance(value, hint)


def _contains(limits: Range, value: Any) -> bool:
    """Return whether a number is within the limits; True for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    above = limits.low is None or (value > limits.low if limits.open_low else value >= limits.low)
    below = limits.high is None or (value < limits.high if limits.open_high else value <= limits.high)
    return above and below


def _component_classes(hint: Any) -> tuple[type, ...]:
    """Return the classes that a component under this annotation may derive from; none if it allows no component."""
    if _is_open(hint):
        return (object,)
    if get_origin(hint) is Annotated:
        return _component_classes(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return tuple(kind for alternative in get_args(hint) for kind in _component_classes(alternative))
    if not isinstance(hint, type) or hint in SCALARS or _is_container(hint, Collection):
        return ()
    # A class can satisfy a Protocol without deriving from it.
    return (object,) if getattr(hint, "_is_protocol", False) else (hint,)


def _is_open(hint: Any) -> bool:
    """Return whether the annotation allows any value."""
    return hint in (Any, object, Parameter.empty) or isinstance(hint, TypeVar)


def _is_container(kind: Any, base: type) -> bool:
    """Return whether the annotation is a container of Python itself, not a tensor or a module with the same methods."""
    own = isinstance(kind, type) and kind.__module__ in ("builtins", "collections.abc")
    return own and kind is not str and issubclass(kind, base)


def list_keys(cfg: Any) -> list[str]:
    """Return every dotted key of a config, of nodes and of values; items of a list by their index."""
    return [key for key, _ in list_items(cfg)]


def list_items(cfg: Any) -> list[tuple[str, Any]]:
    """Return every dotted key of a config with its node or value; interpolations stay text."""

    def below(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in children(node):
            if name != "_target_":
                yield f"{prefix}{name}", value
                yield from below(value, f"{prefix}{name}.")

    return list(below(OmegaConf.to_container(cfg, resolve=False) if OmegaConf.is_config(cfg) else cfg, ""))


def children(value: Any) -> list[tuple[Any, Any]]:
    """Return the (key, item) pairs of a mapping, the (index, item) pairs of a list, and none of a scalar."""
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else []


# Messages


def unknown_key(key: str, keys: list[str], groups: Mapping[str, str] | None = None) -> str:
    """Return the message for a key that the config does not have: its new name, the nearest key, or its siblings.

    Args:
        key: As on the command line; it may be the name of a group that does not exist.
        keys: All keys of the config.
        groups: Its groups with the choice of each, where they are known.
    """
    if not key:
        return "found no key before '=', allowed is key=value without spaces around '='"
    if key in RENAMED:
        return renamed(key)
    groups = groups or {}
    parent, _, last = key.rpartition(".")
    other_name = f"{parent}.{OTHER_NAMES.get(last, last)}".lstrip(".")
    while parent and parent not in keys:
        parent = parent.rpartition(".")[0]
    siblings = [known for known in keys if known.rpartition(".")[0] == parent]
    same_name = [known for known in keys if known.rpartition(".")[2] == other_name.rpartition(".")[2]]
    elsewhere = [] if parent and parent == key.rpartition(".")[0] else [*keys, *groups]
    for candidates, cutoff in ((same_name, 0.0), (siblings, 0.7), (elsewhere, 0.7)):
        if similar := difflib.get_close_matches(other_name, candidates, n=1, cutoff=cutoff):
            return f"{key}: is no key of this config; did you mean {similar[0]}?"
    group = parent.replace(".", "/")
    owner = f"{parent} (with {group}={groups[group]})" if group in groups else parent or "the config"
    names = ", ".join(name.rpartition(".")[2] for name in siblings)
    return f"{key}: is no key of this config; the keys of {owner} are {names}"


def renamed(key: str) -> str:
    """Return the message for a key or a choice in RENAMED."""
    return f"{key}: was renamed; use {RENAMED[key]}"


def _missing(path: str) -> str:
    return f"{path}: is missing; give it as {path}=..."


def _empty(path: str) -> str:
    return f"{path}: is empty; give a value, or leave {path}= out"


def _wrong(value: Any, hint: Any, path: str) -> str:
    """Return the message for a value that does not fit its annotation."""
    allowed, advice = describe(hint), ""
    if isinstance(value, bool | int | float) and allowed.startswith("text"):
        advice = f"""; to give it as text, quote it twice: {path}='"{format_value(value)}"'"""
    if isinstance(value, float) and not math.isfinite(value):
        allowed = allowed.replace("a number", "a finite number")
    if isinstance(value, int) and abs(value) > LARGEST_INT:
        allowed = allowed.replace("a whole number", "a 64-bit whole number")
    return f"{path}: found {format_value(value)}, allowed is {allowed}{advice}"


def describe(hint: Any) -> str:
    """Return an annotation in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if _is_open(hint):
        return "anything"
    if hint in SCALARS or hint is None:
        return SCALARS[hint or NoneType]
    if origin is Annotated:
        limits = [_describe_range(item) for item in arguments[1:] if isinstance(item, Range)]
        return " ".join([describe(arguments[0]), *limits])
    if origin in (Union, UnionType):
        # torch.optim also takes tensors, which no config can hold.
        configurable = [item for item in arguments if getattr(item, "__name__", "") != "Tensor"]
        configurable.sort(key=lambda item: item is NoneType)  # typing may reorder the alternatives
        return " or ".join(dict.fromkeys(describe(item) for item in configurable))
    if origin is Literal:
        return "one of " + ", ".join(format_value(item, quote=False) for item in arguments)
    container = origin or hint
    if _is_container(container, Mapping):
        return "a mapping from names to " + (describe(arguments[1]) if arguments else "values")
    if _is_container(container, Collection):
        if container is tuple and arguments and arguments[-1] is not Ellipsis:
            return f"a list of {len(arguments)}: " + ", ".join(describe(item) for item in arguments)
        return "a list" + (f" ({describe(arguments[0])} each)" if arguments else "")
    return f"a component (`_target_` and its keywords) of the kind {getattr(hint, '__name__', hint)}"


def _describe_range(limits: Range) -> str:
    """Return the limits in words that follow "a number"."""
    low = None if limits.low is None else ("above " if limits.open_low else "of at least ") + str(limits.low)
    has_high = limits.high is not None and limits.high != math.inf
    high = ("below " if limits.open_high else "at most ") + str(limits.high) if has_high else None
    return " and ".join(part for part in (low, high) if part)
