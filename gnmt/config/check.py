"""Is a component node right? Plain dictionaries in, sentences about what is wrong out; nothing is run from them.

A node is `_target_` and the keywords of that class. Nodes come from people and from foreign checkpoints,
so a target must be a class, and one that was defined in a package that is trusted.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Collection, Mapping
from typing import Any, get_type_hints

from gnmt.config.optimizer_ranges import check_optimizer
from gnmt.config.values import check_value, nearest, shown
from gnmt.types import InputError

OWN_PACKAGES = ("gnmt", "torch.optim")
DOTTED_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)


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


def constructor_hints(component: type) -> dict[str, Any]:
    """The types that the constructor's keywords are annotated with; none where they cannot be read."""
    try:
        return get_type_hints(component.__init__, include_extras=True)  # type: ignore[misc]
    except NameError:  # a foreign class that imports its types for the type checker only
        return {}


def try_options(node: Mapping[str, Any], path: str) -> list[str]:
    """Option sets are frozen dataclasses that check themselves: build one to hear what it says."""
    from gnmt.config.assembly import build

    try:
        build(node)
    except ValueError as error:
        lines = str(error).splitlines()
        if all(line.startswith(f"{path}.") for line in lines):
            return lines  # an error each
        return [str(error) if str(error).startswith(path) else f"{path}: {error}"]
    return []


def lies_in(name: str, packages: Collection[str]) -> bool:
    """Whether a dotted name is one of the packages or inside one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def dotted_name(kind: type) -> str:
    """A class as it would be named in a config."""
    return f"{kind.__module__}.{kind.__qualname__}"
