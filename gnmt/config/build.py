"""Building the objects that a checked config describes."""

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

from gnmt.errors import InputError, nearest, shown


@dataclass(frozen=True)
class Deferred:
    """A component that is checked with the config and built later: `Annotated[Callable[..., X], Deferred(X, "name")]`.

    Of its node the constructor gets a function, which takes the keywords `supplied`, known only at run time, and builds
    the `kind`.
    """

    kind: type
    supplied: tuple[str, ...]


def deferred_component(hint: Any) -> Deferred | None:
    """What a keyword is annotated with that takes a component to be built later; None for any other."""
    arguments = get_args(hint) if get_origin(hint) is Annotated else ()
    return next((item for item in arguments[1:] if isinstance(item, Deferred)), None)


OWN_PACKAGES = ("gnmt", "torch.optim")
DOTTED_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)


def find_class(target: object, trusted_packages: Collection[str] = ()) -> type:
    """The class of that dotted name. Raises InputError for anything but a class defined in a trusted package.

    Only modules of these packages are imported, and the walk from a module to the class goes through classes
    alone: `torch.optim.optimizer.torch.load` would otherwise lead out again.
    """
    packages = (*OWN_PACKAGES, *trusted_packages)
    if not isinstance(target, str) or not DOTTED_NAME.fullmatch(target):
        raise InputError(f"found {shown(target)}, allowed is the dotted name of a class, such as torch.optim.Adam")
    if not lies_in(target, packages):
        raise InputError(
            f"found {target}, which lies outside the trusted packages ({', '.join(packages)}) and was not imported; "
            f"if you trust it, add trusted_packages=[{target.split('.')[0]}] to the command line"
        )
    found, names = import_module_of(target, packages)
    for name in names:
        parent, found = found, inspect.getattr_static(found, name, None)
        if not isinstance(found, type):
            what = "does not exist" if found is None else f"leads to a {type(found).__name__}, not to a class"
            classes = [key for key, value in vars(parent).items() if isinstance(value, type)]
            raise InputError(f"found {target}, but {name} {what}{nearest(name, classes)}")
    assert isinstance(found, type)
    if not lies_in(dotted_name(found), packages):
        raise InputError(f"found {target}, which is {dotted_name(found)}, outside {', '.join(packages)}")
    return found


def import_module_of(target: str, packages: Collection[str]) -> tuple[object, list[str]]:
    """The innermost module on the way to target, imported, and the names that lead on from it."""
    parts = target.split(".")
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        if not lies_in(name, packages):
            break
        try:
            return importlib.import_module(name), parts[length:]
        except ModuleNotFoundError as error:
            if error.name is None or not lies_in(name, (error.name,)):
                raise InputError(f"found {target}, whose module needs {error.name}, which is not installed") from error
    raise InputError(
        f"found {target}, but there is no module {'.'.join(parts[:-1])}; is the name right, and is the package "
        "installed (or its folder on PYTHONPATH)?"
    )


def constructor_hints(component: type) -> dict[str, Any]:
    """The types that the constructor's keywords are annotated with; none where they cannot be read."""
    try:
        return get_type_hints(component.__init__, include_extras=True)  # type: ignore[misc]
    except NameError:  # a foreign class that imports its types for the type checker only
        return {}


def lies_in(name: str, packages: Collection[str]) -> bool:
    """Whether a dotted name is one of the packages or inside one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def dotted_name(kind: type) -> str:
    """A class as it would be named in a config."""
    return f"{kind.__module__}.{kind.__qualname__}"


def resolve(cfg: Any) -> dict[str, Any]:
    """The config as plain dictionaries, lists and scalars, interpolations filled in: what a checkpoint keeps.

    Raises InputError for an interpolation that leads nowhere. Missing values stay "???".
    """
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(interpolation_message(error)) from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def build(node: Any, **supplied: Any) -> Any:
    """The object that a checked node describes; `supplied` are the keywords that the program gives itself.

    Inner nodes are built first; those of `Deferred` keywords become functions that build them. Plain dictionaries are
    taken as they are (text stays text), DictConfigs are resolved. Done here and not by `hydra.utils.instantiate`, which
    copies what is supplied (an optimizer would step on copies of the parameters), interpolates text of foreign
    checkpoints and changes with Hydra 1.4.
    """
    if isinstance(node, DictConfig):
        node = resolve(node)
    # Which packages are trusted was decided by the check; here the target's own package is as good as any.
    component = find_class(node["_target_"], trusted_packages=(node["_target_"].split(".")[0],))
    hints = constructor_hints(component)
    values = {name: build_value(value, hints.get(name)) for name, value in node.items() if name != "_target_"}
    return component(**values, **supplied)


def build_value(value: Any, hint: Any = None) -> Any:
    """A keyword's value with the components in it built; hint: the keyword's annotation."""
    if deferred_component(hint) is not None:
        return None if value is None else functools.partial(build, value)
    if isinstance(value, Mapping):
        return build(value) if "_target_" in value else {key: build_value(item) for key, item in value.items()}
    return [build_value(item) for item in value] if isinstance(value, list | tuple) else value


def decoding_node(recorded: Mapping[str, Any], asked: Any) -> dict[str, Any]:
    """The decoding that a command asked for over the one that its checkpoint recorded.

    A node with `_target_` (`decoding=paper`) is complete and replaces all; otherwise every value that is not
    null replaces that one option.
    """
    options = resolve(asked)
    if "_target_" in options:
        return options
    return {**recorded, **{name: value for name, value in options.items() if value is not None}}


def interpolation_message(error: OmegaConfBaseException) -> str:
    """OmegaConf's complaint about a `${...}`, on one line with the key that holds it."""
    key = error.full_key or "the config"
    return f"{key}: {str(error).splitlines()[0]}"
