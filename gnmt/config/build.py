"""Building of the objects that a checked config describes: `_target_` names a class, the other keys its keywords."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gnmt.errors import InputError, did_you_mean, format_value

OWN_PACKAGES = ("gnmt", "torch.optim")
DOTTED_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)


@dataclass(frozen=True)
class Deferred:
    """The annotation of a keyword whose component is checked with the config and built later.

    It is written `Annotated[Callable[..., X], Deferred(X, ("name",))]`. The constructor gets a function that builds the
    component from the keywords which are known only at run time.

    Args:
        kind: The class that the component must be or derive from.
        supplied: The keywords that the function takes.
    """

    kind: type
    supplied: tuple[str, ...]


def deferred_component(hint: Any) -> Deferred | None:
    """Return the `Deferred` of an annotation; None if it has none."""
    arguments = get_args(hint) if get_origin(hint) is Annotated else ()
    return next((item for item in arguments[1:] if isinstance(item, Deferred)), None)


def resolve(cfg: Any) -> dict[str, Any]:
    """Return the config as plain dictionaries, lists and scalars, with interpolations filled in.

    Checkpoints hold it in this form. Raises InputError for an interpolation of a key that does not exist. Missing
    values stay "???".
    """
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        if resolver_error := re.fullmatch(r"\w+ raised while resolving interpolation: (.*)", reason):
            reason = resolver_error[1].strip('"')
        raise InputError(f"{error.full_key or 'the config'}: {reason}") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def build(node: Any, **supplied: Any) -> Any:
    """Return the object that a checked node describes.

    Inner nodes are built first; a node under a `Deferred` keyword becomes a function that builds it.
    `hydra.utils.instantiate` is not used: it copies the supplied objects, so that an optimizer would update copies of
    the parameters, and it fills in interpolations in the text of foreign checkpoints.

    Args:
        node: A plain dictionary, taken as it is (text stays text), or a DictConfig, which is resolved.
        supplied: Keywords that the program gives itself.
    """
    if isinstance(node, DictConfig):
        node = resolve(node)
    # The check has decided which packages are trusted, so here the package of the target is.
    component = find_class(node["_target_"], trusted_packages=(node["_target_"].split(".")[0],))
    hints = constructor_hints(component)
    values = {name: _build_value(value, hints.get(name)) for name, value in node.items() if name != "_target_"}
    return component(**values, **supplied)


def _build_value(value: Any, hint: Any = None) -> Any:
    """Return a keyword's value with the components in it built; hint: the keyword's annotation."""
    if deferred_component(hint) is not None:
        return None if value is None else functools.partial(build, value)
    if isinstance(value, Mapping):
        return build(value) if "_target_" in value else {key: _build_value(item) for key, item in value.items()}
    return [_build_value(item) for item in value] if isinstance(value, list | tuple) else value


def find_class(target: object, trusted_packages: Collection[str] = ()) -> type:
    """Return the class with a dotted name.

    Only modules of gnmt, torch.optim and the trusted packages are imported. The names after the module may pass only
    through classes, because modules would lead out of the packages again: `torch.optim.optimizer.torch.load`.
    Raises InputError for anything but a class that is defined in one of the packages.
    """
    packages = (*OWN_PACKAGES, *trusted_packages)
    if not isinstance(target, str) or not DOTTED_NAME.fullmatch(target):
        raise InputError(
            f"found {format_value(target)}, allowed is the dotted name of a class, such as torch.optim.Adam"
        )
    if not _lies_in(target, packages):
        raise InputError(
            f"found {target}, which lies outside the trusted packages ({', '.join(packages)}) and was not imported; "
            f"if you trust it, add trusted_packages=[{target.split('.')[0]}] to the command line"
        )
    found, names = _import_module_of(target, packages)
    for name in names:
        parent, found = found, inspect.getattr_static(found, name, None)
        if not isinstance(found, type):
            what = "does not exist" if found is None else f"leads to a {type(found).__name__}, not to a class"
            classes = [key for key, value in vars(parent).items() if isinstance(value, type)]
            raise InputError(f"found {target}, but {name} {what}{did_you_mean(name, classes)}")
    assert isinstance(found, type)
    if not _lies_in(dotted_name(found), packages):
        raise InputError(f"found {target}, which is {dotted_name(found)}, outside {', '.join(packages)}")
    return found


def _import_module_of(target: str, packages: Collection[str]) -> tuple[object, list[str]]:
    """Import the innermost module of a dotted name; return it and the names that follow it."""
    parts = target.split(".")
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        if not _lies_in(name, packages):
            break
        try:
            return importlib.import_module(name), parts[length:]
        except ModuleNotFoundError as error:
            if error.name is None or not _lies_in(name, (error.name,)):
                raise InputError(f"found {target}, whose module needs {error.name}, which is not installed") from error
    raise InputError(
        f"found {target}, but there is no module {'.'.join(parts[:-1])}; is the name right, and is the package "
        "installed (or its folder on PYTHONPATH)?"
    )


def constructor_hints(component: type) -> dict[str, Any]:
    """Return the annotations of the constructor's keywords; none if they cannot be evaluated."""
    try:
        return get_type_hints(component.__init__, include_extras=True)  # type: ignore[misc]
    except NameError:  # a foreign class that imports its types for the type checker only
        return {}


def _lies_in(name: str, packages: Collection[str]) -> bool:
    """Return whether a dotted name is one of the packages or inside one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def dotted_name(kind: type) -> str:
    """Return the dotted name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def component_yaml(cls: type, values: Mapping[str, Any]) -> str:
    """Return a node with a class as `_target_` and values of its keywords as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.create({"_target_": dotted_name(cls), **values}))
