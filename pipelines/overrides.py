"""Configuration values by their declared type: from `--set a.b=c`, from JSON, and back to JSON.

A configuration is a tree of frozen dataclasses. A dotted path names a value in it; the type that
the dataclass declares says how text is read, so `--set schedule.warmup_steps=1e-3` is an error here
and not a surprise in the training loop.
"""

import ast
import dataclasses
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from pipelines.errors import ConfigError
from xdecoder import settings
from xdecoder.settings import (
    SettingsError,
    checked,
    choice,
    first_that_fits,
    members,
    required,
    to_json,
    unknown_key,
    wrong_type,
)

__all__ = ["dotted_paths", "from_json", "override", "to_json"]

_Config = TypeVar("_Config")
_Tree = dict[str, "str | _Tree"]
_TRUTH = {"true": True, "yes": True, "on": True, "1": True}
_TRUTH |= {"false": False, "no": False, "off": False, "0": False}


def override(config: _Config, assignments: Sequence[str]) -> _Config:
    """A copy of a configuration with `path=value` assignments applied, all at once.

    Rules between fields are checked once, after all of them, so the order does not matter.

    Raises:
        ConfigError: an assignment has no `=`, names no field, or does not fit the declared type.
    """
    tree: _Tree = {}
    known = tuple(dotted_paths(config))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(
                f"--set: an assignment must be path=value; got {assignment!r}. "
                f"Write for example {known[0]}=..."
            )
        _plant(tree, path.strip().split("."), text.strip())
    with _as_config_errors():
        return _rebuild(type(config), config, tree, path="", known=known)


def dotted_paths(config: object, prefix: str = "") -> Iterator[str]:
    """Every path that `--set` accepts, groups before their fields, in declared order."""
    if not dataclasses.is_dataclass(config):
        return
    for field in dataclasses.fields(config):
        path = f"{prefix}{field.name}"
        yield path
        yield from dotted_paths(getattr(config, field.name), prefix=f"{path}.")


def from_json(declared: type[_Config], value: object, path: str = "") -> _Config:
    """A value of the declared type from what `to_json` wrote.

    Raises:
        ConfigError: an unknown key (naming the nearest valid one) or a value of another type.
    """
    with _as_config_errors():
        return settings.from_json(declared, value, path)


@contextmanager
def _as_config_errors() -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except SettingsError as error:
        raise ConfigError(str(error)) from error


def _plant(tree: _Tree, keys: Sequence[str], text: str) -> None:
    for key in keys[:-1]:
        branch = tree.setdefault(key, {})
        if isinstance(branch, str):
            branch = tree[key] = {}
        tree = branch
    tree[keys[-1]] = text


def _rebuild(declared: Any, value: Any, tree: _Tree, *, path: str, known: Sequence[str]) -> Any:
    if value is None:
        value = _default_of(declared)
    value = _group_with(declared, value, tree)
    if isinstance(value, tuple) and not dataclasses.is_dataclass(value):
        return _rebuild_tuple(value, tree, path=path, known=known)
    if not dataclasses.is_dataclass(value):
        leaf = next(iter(tree))
        raise ConfigError(unknown_key(f"{path}.{leaf}", known))
    hints = typing.get_type_hints(type(value))
    changes = {}
    for name, branch in tree.items():
        inner = f"{path}.{name}" if path else name
        if name not in hints:
            raise ConfigError(unknown_key(inner, known))
        if isinstance(branch, str):
            changes[name] = _from_text(hints[name], branch, inner)
        else:
            current = getattr(value, name)
            changes[name] = _rebuild(hints[name], current, branch, path=inner, known=known)
    return checked(lambda: dataclasses.replace(typing.cast(Any, value), **changes), path)


def _rebuild_tuple(value: tuple, tree: _Tree, *, path: str, known: Sequence[str]) -> tuple:
    items = list(value)
    for key, branch in tree.items():
        inner = f"{path}.{key}"
        if not key.isdigit() or int(key) >= len(items):
            raise ConfigError(
                f"--set: {path} must be followed by a position 0..{len(items) - 1}; got {inner}."
            )
        item = items[int(key)]
        if isinstance(branch, str):
            items[int(key)] = _from_text(type(item), branch, inner)
        else:
            items[int(key)] = _rebuild(type(item), item, branch, path=inner, known=known)
    return tuple(items)


def _group_with(declared: Any, value: Any, tree: _Tree) -> Any:
    """The value; of a union, the defaults of another group where only that one has the keys."""
    groups = [member for member in members(declared) if dataclasses.is_dataclass(member)]
    names = {group: {field.name for field in dataclasses.fields(group)} for group in groups}
    if type(value) not in names or tree.keys() <= names[type(value)]:
        return value
    others = [group for group in groups if tree.keys() <= names[group]]
    return typing.cast(Any, others[0])() if len(others) == 1 else value


def _default_of(declared: Any) -> Any:
    for member in members(declared):
        if dataclasses.is_dataclass(member):
            return typing.cast(Any, member)()
    return None


def _from_text(declared: Any, text: str, path: str) -> Any:
    kinds = members(declared)
    if len(kinds) > 1:
        return first_that_fits(kinds, text, path, declared, read=_from_text)
    if declared is type(None):
        return required(None, text.lower() in ("none", "null"), path, "None", text)
    if typing.get_origin(declared) is Literal:
        return choice(declared, text, path)
    if declared is bool:
        return required(
            _TRUTH.get(text.lower()), text.lower() in _TRUTH, path, "true or false", text
        )
    if declared in (int, float):
        return _number(declared, text, path)
    if declared in (str, Path):
        return declared(text)
    if typing.get_origin(declared) in (tuple, dict):
        return settings.from_json(declared, _literal(declared, text), path)
    if dataclasses.is_dataclass(declared):
        names = ", ".join(field.name for field in dataclasses.fields(declared))
        raise ConfigError(f"configuration: {path} is a group; set one of its fields: {names}.")
    raise wrong_type(path, declared, text)


def _number(declared: Any, text: str, path: str) -> Any:
    try:
        return declared(text)
    except ValueError:
        raise wrong_type(path, declared, text) from None


def _literal(declared: Any, text: str) -> Any:
    """Python's own notation if it is that; else comma-separated words."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = [word.strip() for word in text.strip("()[]").split(",") if word.strip()]
    is_group = typing.get_origin(declared) is tuple
    return [value] if is_group and not isinstance(value, tuple | list) else value
