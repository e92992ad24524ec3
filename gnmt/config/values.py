"""Does a plain value fit a constructor's type annotation? Sentences about what does not."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Collection, Mapping
from inspect import Parameter
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from torch import Tensor

from gnmt.types import Deferred, Range

MISSING_VALUE = "???"
SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}
CheckNode = Callable[[Any, str, tuple[type, ...], tuple[str, ...]], list[str]]
"""Judges a node, of its key, the classes that it may derive from and the keywords that the program supplies."""


def check_value(value: Any, hint: Any, path: str, check_node: CheckNode) -> list[str]:
    """What is wrong with a value at the key `path` under a type annotation; check_node judges nested components.

    Understands None, bool, int, float, str, Literal, Union, Annotated with Range, sequences and mappings;
    any other class asks for a component that derives from it.
    """
    if isinstance(value, str) and value == MISSING_VALUE:
        return [f"{path}: is missing; give it as {path}=..."]
    if (deferred := deferred_component(hint)) is not None:
        absent = value is None and NoneType in get_args(get_args(hint)[0])
        return [] if absent else check_node(value, path, (deferred.kind,), deferred.supplied)
    if isinstance(value, Mapping) and "_target_" in value:
        allowed = component_classes(hint)
        return check_node(value, path, allowed, ()) if allowed else [wrong(value, hint, path)]
    if is_open(hint):
        return [error for key, item in children(value) for error in check_value(item, Any, f"{path}.{key}", check_node)]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        errors = check_value(value, arguments[0], path, check_node)
        ranges = [limits for limits in arguments[1:] if isinstance(limits, Range)]
        if is_allowed_infinity(value, arguments[0], ranges):
            return []
        in_range = all(contains(limits, value) for limits in ranges)
        return [wrong(value, hint, path)] if (errors and not children(value)) or not in_range else errors
    if origin in (Union, UnionType):
        return check_alternatives(value, hint, path, check_node)
    if origin is Literal:
        fits = any(value == literal and type(value) is type(literal) for literal in arguments)
        return [] if fits else [wrong(value, hint, path) + nearest(str(value), [str(item) for item in arguments])]
    container = origin or hint
    if is_container(container, Mapping) or is_container(container, Collection):
        return check_container(value, container, arguments, hint, path, check_node)
    return [] if fits_scalar(value, hint) else [wrong(value, hint, path)]


def check_alternatives(value: Any, hint: Any, path: str, check_node: CheckNode) -> list[str]:
    """A union fits where one alternative does; a container's own errors tell more than "none fits"."""
    by_alternative = [check_value(value, alternative, path, check_node) for alternative in get_args(hint)]
    if not all(by_alternative):
        return []
    inner = [errors for errors in by_alternative if any(not error.startswith(f"{path}:") for error in errors)]
    return inner[0] if inner else [wrong(value, hint, path)]


def check_container(
    value: Any, container: type, arguments: tuple[Any, ...], hint: Any, path: str, check_node: CheckNode
) -> list[str]:
    """Lists, tuples and mappings, element by element."""
    if is_container(container, Mapping):
        if not isinstance(value, Mapping):
            return [wrong(value, hint, path)]
        item_hints = [arguments[1] if arguments else Any] * len(value)
    else:
        if not isinstance(value, list | tuple):
            return [wrong(value, hint, path)]
        fixed = container is tuple and bool(arguments) and arguments[-1] is not Ellipsis
        if fixed and len(arguments) != len(value):
            return [wrong(value, hint, path)]
        item_hints = list(arguments) if fixed else [arguments[0] if arguments else Any] * len(value)
    return [
        error
        for (key, item), item_hint in zip(children(value), item_hints, strict=True)
        for error in check_value(item, item_hint, f"{path}.{key}", check_node)
    ]


def fits_scalar(value: Any, hint: Any) -> bool:
    """bool is not a number here, a whole number is a number, and NaN and infinity are none."""
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return hint in SCALARS and isinstance(value, hint)


def is_finite(value: float) -> bool:
    """Whether a float can hold the number; a whole number may be too large."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_allowed_infinity(value: Any, hint: Any, ranges: Collection[Range]) -> bool:
    """Whether a value is infinity where a range names it as its bound."""
    return hint is float and value == math.inf and any(limits.high == math.inf for limits in ranges)


def contains(limits: Range, value: Any) -> bool:
    """Whether a number lies within; what is no number is judged elsewhere."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    above = limits.low is None or (value > limits.low if limits.open_low else value >= limits.low)
    below = limits.high is None or (value < limits.high if limits.open_high else value <= limits.high)
    return above and below


def deferred_component(hint: Any) -> Deferred | None:
    """What a keyword is annotated with that takes a component to be built later; None for any other."""
    arguments = get_args(hint) if get_origin(hint) is Annotated else ()
    return next((item for item in arguments[1:] if isinstance(item, Deferred)), None)


def component_classes(hint: Any) -> tuple[type, ...]:
    """The classes that a component under this annotation may derive from; none where it asks for plain values."""
    if is_open(hint):
        return (object,)
    if get_origin(hint) is Annotated:
        return component_classes(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return tuple(kind for alternative in get_args(hint) for kind in component_classes(alternative))
    if not isinstance(hint, type) or hint in SCALARS or is_container(hint, Collection):
        return ()
    # A Protocol says nothing about inheritance; only running the class could tell.
    return (object,) if getattr(hint, "_is_protocol", False) else (hint,)


def is_open(hint: Any) -> bool:
    """Whether the annotation says nothing about the value."""
    return hint in (Any, object, Parameter.empty) or isinstance(hint, TypeVar)


def is_container(kind: Any, base: type) -> bool:
    """Whether the annotation is Python's own list, mapping or the like; tensors and modules only look like one."""
    own = isinstance(kind, type) and kind.__module__ in ("builtins", "collections.abc")
    return own and kind is not str and issubclass(kind, base)


def children(value: Any) -> list[tuple[Any, Any]]:
    """Keys and values of a mapping, positions and elements of a list; nothing for a scalar."""
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else []


def wrong(value: Any, hint: Any, path: str) -> str:
    """The sentence for a value that does not fit."""
    advice = ""
    if isinstance(value, bool | int | float) and describe(hint).startswith("text"):
        advice = f"""; to give it as text, quote it twice: {path}='"{shown(value)}"'"""
    allowed = describe(hint)
    if isinstance(value, float) and not math.isfinite(value):
        allowed = allowed.replace("a number", "a finite number")
    return f"{path}: found {shown(value)}, allowed is {allowed}{advice}"


def describe(hint: Any) -> str:
    """An annotation in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_open(hint):
        return "anything"
    if hint in SCALARS or hint is None:
        return SCALARS[hint or NoneType]
    if origin is Annotated:
        limits = [describe_range(item) for item in arguments[1:] if isinstance(item, Range)]
        return " ".join([describe(arguments[0]), *limits])
    if origin in (Union, UnionType):
        # torch.optim also takes tensors, which no config can hold.
        return " or ".join(dict.fromkeys(describe(item) for item in arguments if item is not Tensor))
    if origin is Literal:
        return "one of " + ", ".join(shown(item, quote=False) for item in arguments)
    container = origin or hint
    if is_container(container, Mapping):
        return "a mapping from names to " + (describe(arguments[1]) if arguments else "values")
    if is_container(container, Collection):
        if container is tuple and arguments and arguments[-1] is not Ellipsis:
            return f"a list of {len(arguments)}: " + ", ".join(describe(item) for item in arguments)
        return "a list" + (f" ({describe(arguments[0])} each)" if arguments else "")
    return f"a component (`_target_` and its keywords) of the kind {getattr(hint, '__name__', hint)}"


def describe_range(limits: Range) -> str:
    """Limits in words, as they follow "a number"."""
    low = None if limits.low is None else ("above " if limits.open_low else "of at least ") + f"{limits.low:g}"
    has_high = limits.high is not None and limits.high != math.inf
    high = ("below " if limits.open_high else "at most ") + f"{limits.high:g}" if has_high else None
    return " and ".join(part for part in (low, high) if part)


def shown(value: Any, quote: bool = True) -> str:
    """A value as YAML would hold it, shortened."""
    if isinstance(value, Mapping) and "_target_" in value:
        return f"a component ({value['_target_']})"
    text = value if isinstance(value, str) and not quote else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def nearest(name: str, names: Collection[str], prefix: str = "") -> str:
    """ "; did you mean X?" for the most similar name, or nothing where none is similar."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {prefix + '.' if prefix else ''}{matches[0]}?" if matches else ""
