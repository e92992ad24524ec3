"""Validation of configs: classes, keywords, types, ranges and choices."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from inspect import Parameter
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import torch
from omegaconf import OmegaConf
from torch import Tensor

from gnmt.config.build import constructor_hints, deferred_component, dotted_name, find_class, resolve
from gnmt.errors import InputError, counted, nearest, shown


@dataclass(frozen=True)
class Range:
    """The values that a number in a config may take, as annotation: `Annotated[float, Range(0, 1)]`.

    `check_config` reads it; None leaves a side open, open_low and open_high exclude the bound itself.
    A float must be finite, but where `high` is infinity.
    """

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False


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


_ABOVE_0, _AT_LEAST_0 = Range(0, open_low=True), Range(0)
_BELOW_1, _UP_TO_1 = Range(0, 1, open_high=True), Range(0, 1)
_ADAM = {"lr": _ABOVE_0, "betas": _BELOW_1, "eps": _ABOVE_0, "weight_decay": _AT_LEAST_0}
# Of a list, each number. Optimizers and keywords that are not here are judged by the optimizer itself.
RANGES: dict[type, dict[str, Range]] = {
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.Adamax: _ADAM,
    torch.optim.NAdam: _ADAM | {"momentum_decay": _AT_LEAST_0},
    torch.optim.RAdam: _ADAM,
    torch.optim.SGD: {"lr": _ABOVE_0, "momentum": _BELOW_1, "dampening": _UP_TO_1, "weight_decay": _AT_LEAST_0},
    torch.optim.RMSprop: {
        **{"lr": _ABOVE_0, "alpha": _BELOW_1, "eps": _ABOVE_0, "weight_decay": _AT_LEAST_0, "momentum": _BELOW_1},
    },
    torch.optim.Adagrad: {"lr": _ABOVE_0, "lr_decay": _AT_LEAST_0, "eps": _ABOVE_0, "weight_decay": _AT_LEAST_0},
    torch.optim.Adadelta: {"lr": _ABOVE_0, "rho": _UP_TO_1, "eps": _ABOVE_0, "weight_decay": _AT_LEAST_0},
}


def check_optimizer(node: Mapping[str, Any], component: type, path: str) -> list[str]:
    """What lies outside the ranges of the node's class, as "key: what was found, what is allowed"."""
    errors = []
    for name, limits in RANGES.get(component, {}).items():
        value = node.get(name)
        items = value if isinstance(value, list | tuple) else [value]
        items = [item for item in items if not isinstance(item, float) or math.isfinite(item)]  # refused by their type
        if not all(contains(limits, item) for item in items):
            kind = "a number" if not isinstance(value, list | tuple) else "a list of numbers, each"
            errors.append(f"{path}.{name}: found {shown(value)}, allowed is {kind} {describe_range(limits)}")
    return errors


def check_component(
    node: Any,
    path: str,
    *,
    trusted_packages: Collection[str] = (),
    supplied: Collection[str] = (),
    expected: tuple[type, ...] = (object,),
    whole: bool = True,
) -> list[str]:
    """All that is wrong with a node and the nodes inside it, each as "key: what was found, what is allowed".

    node: plain and resolved; text in it stays text, even "${...}". path: the node's key, for the messages.
    trusted_packages: packages besides gnmt and torch.optim whose classes may be built. supplied: keywords
    that the program gives at run time, which the node must not hold. expected: classes, one of which the
    target must derive from. whole: False for a node of some options that will replace recorded ones, of which only
    the whole can tell whether they go together.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        return [f"{path}: found {shown(node)}, allowed is a component: `_target_` and the keywords of that class"]
    try:
        component = find_class(node["_target_"], trusted_packages)
    except InputError as error:
        return [f"{path}._target_: {error}"]
    if not issubclass(component, expected):
        allowed = " or ".join(dotted_name(kind) for kind in expected)
        return [f"{path}._target_: found {node['_target_']}, allowed is {allowed} or a class derived from it"]

    def check_inner_node(inner: Any, inner_path: str, classes: tuple[type, ...], given: tuple[str, ...]) -> list[str]:
        return check_component(inner, inner_path, trusted_packages=trusted_packages, supplied=given, expected=classes)

    errors = check_keywords(node, component, path, supplied)
    hints = constructor_hints(component)
    for name, value in node.items():
        if name != "_target_" and name not in supplied:
            errors += check_value(value, hints.get(name, Any), f"{path}.{name}", check_inner_node)
    errors += check_optimizer(node, component, path)
    if not errors and not supplied and whole and dataclasses.is_dataclass(component):
        errors += try_options(node, path)
    return errors


def check_keywords(node: Mapping[str, Any], component: type, path: str, supplied: Collection[str]) -> list[str]:
    """Keywords that the constructor does not take, that it lacks, or that the program gives itself."""
    parameters = inspect.signature(component).parameters.values()
    named = {item.name: item for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)}
    takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters)
    free = [name for name in named if name not in supplied]
    errors = []
    for name in node:
        if name == "_target_":
            continue
        if str(name).startswith("_") and str(name).endswith("_"):
            errors.append(f"{path}.{name}: is refused; a component holds `_target_` and the keywords of its class")
        elif name in supplied:
            errors.append(f"{path}.{name}: is given by the program itself; leave it out")
        elif name not in named and not takes_any:
            advice = nearest(str(name), free, prefix=path)
            # It may be the whole model's config that sets it, for the part that another one has taken the place of.
            errors.append(
                f"{path}.{name}: {component.__name__} takes no such key{advice}; it takes {', '.join(free)}; "
                f"'~{path}.{name}' leaves out what another config sets"
            )
    for name in free:
        if named[name].default is inspect.Parameter.empty and name not in node:
            errors.append(f"{path}.{name}: is missing; {component.__name__} needs it")
    return errors


def try_options(node: Mapping[str, Any], path: str) -> list[str]:
    """Option sets are frozen dataclasses that check themselves: build one to hear what it says."""
    from gnmt.config.build import build

    try:
        build(node)
    except ValueError as error:
        lines = str(error).splitlines()
        if all(line.startswith(f"{path}.") for line in lines):
            return lines  # an error each
        return [str(error) if str(error).startswith(path) else f"{path}: {error}"]
    return []


def check_config(cfg: Any) -> None:
    """Judges a whole composed config before any file or device is touched.

    Raises InputError with all errors at once: full key, what was found, what is allowed, the nearest valid name.
    """
    if errors := config_errors(cfg):
        raise InputError(f"{counted(len(errors), 'error')} in the config:\n  " + "\n  ".join(errors))


def config_errors(cfg: Any) -> list[str]:
    """All that is wrong with a composed config, each as "key: what was found, what is allowed"."""
    schema = OmegaConf.get_type(cfg)
    assert schema is not None, "the config has no schema: compose it from configs/"
    values = resolve(cfg)
    trusted = values["trusted_packages"]
    errors: list[str] = []
    for field in dataclasses.fields(schema):
        value = values[field.name]
        if value == MISSING_VALUE:
            errors.append(f"{field.name}: is missing; give it as {field.name}=...")
        elif "component" in field.metadata:
            errors += check_root_component(value, field, trusted)
        else:
            errors += check_root_value(value, field)
    return errors


def check_root_component(value: Any, field: dataclasses.Field[Any], trusted: list[str]) -> list[str]:
    """A component node at the root, or single options that replace recorded ones."""
    kind = field.metadata["component"]
    some = field.metadata["partial"] and isinstance(value, Mapping) and "_target_" not in value
    if some:
        value = {"_target_": kind, **{name: item for name, item in value.items() if item is not None}}
    return check_component(
        value,
        field.name,
        trusted_packages=trusted,
        supplied=field.metadata["supplied"],
        expected=(expected_class(kind),),
        whole=not some,
    )


def expected_class(kind: str) -> type:
    """The class that a schema names; these names are ours, so any package will do."""
    return find_class(kind, trusted_packages=(kind.split(".")[0],))


def check_root_value(value: Any, field: dataclasses.Field[Any]) -> list[str]:
    """A plain value at the root; its type was checked while composing."""
    found = f"{field.name}: found {shown(value)}"
    if "paths" in field.metadata and not is_paths(value):
        return [f"{found}, allowed is a path or a list of paths, [a,b]"]
    if "choices" in field.metadata and value not in field.metadata["choices"]:
        choices = field.metadata["choices"]
        return [f"{found}, allowed is one of {', '.join(choices)}{nearest(str(value), choices)}"]
    if "range" in field.metadata and not contains(field.metadata["range"], value):
        kind = "a whole number" if isinstance(value, int) else "a number"
        return [f"{found}, allowed is {kind} {describe_range(field.metadata['range'])}"]
    if "pattern" in field.metadata and not re.fullmatch(field.metadata["pattern"], value):
        return [f"{found}, allowed is {field.metadata['allowed']}"]
    return []


def is_paths(value: Any) -> bool:
    """Whether a value is a path, or a list of at least one."""
    return isinstance(value, str) or (
        isinstance(value, list) and bool(value) and all(isinstance(path, str) for path in value)
    )
