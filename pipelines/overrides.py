"""Configuration values by their declared type: from `--set a.b=c`, from JSON, and back to JSON.

A configuration is a tree of frozen dataclasses. A dotted path names a value in it; the type that
the dataclass declares says how text is read, so `--set schedule.warmup_steps=1e-3` is an error here
and not a surprise in the training loop.
"""

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from pipelines.errors import ConfigError

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
    return _rebuild(type(config), config, tree, path="", known=known)


def dotted_paths(config: object, prefix: str = "") -> Iterator[str]:
    """Every path that `--set` accepts, groups before their fields, in declared order."""
    if not dataclasses.is_dataclass(config):
        return
    for field in dataclasses.fields(config):
        path = f"{prefix}{field.name}"
        yield path
        yield from dotted_paths(getattr(config, field.name), prefix=f"{path}.")


def to_json(value: object) -> Any:
    """The same values as plain dictionaries, lists, strings and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def from_json(declared: type[_Config], value: object, path: str = "") -> _Config:
    """A value of the declared type from what `to_json` wrote.

    Raises:
        ConfigError: an unknown key (naming the nearest valid one) or a value of another type.
    """
    return typing.cast(_Config, _from_json(declared, value, path))


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
    if isinstance(value, tuple) and not dataclasses.is_dataclass(value):
        return _rebuild_tuple(value, tree, path=path, known=known)
    if not dataclasses.is_dataclass(value):
        leaf = next(iter(tree))
        raise ConfigError(_unknown(f"{path}.{leaf}", known))
    hints = typing.get_type_hints(type(value))
    changes = {}
    for name, branch in tree.items():
        inner = f"{path}.{name}" if path else name
        if name not in hints:
            raise ConfigError(_unknown(inner, known))
        if isinstance(branch, str):
            changes[name] = _from_text(hints[name], branch, inner)
        else:
            current = getattr(value, name)
            changes[name] = _rebuild(hints[name], current, branch, path=inner, known=known)
    return _checked(lambda: dataclasses.replace(typing.cast(Any, value), **changes), path)


def _checked(build: Callable[[], Any], path: str) -> Any:
    """What `build` makes, with a rule that it breaks reported as a configuration error."""
    try:
        return build()
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"configuration: {path + ': ' if path else ''}{error}") from error


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


def _default_of(declared: Any) -> Any:
    for member in _members(declared):
        if dataclasses.is_dataclass(member):
            return typing.cast(Any, member)()
    return None


def _unknown(path: str, known: Sequence[str]) -> str:
    def similarity(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, path, candidate).ratio()
        leaf, wanted = candidate.rpartition(".")[2], path.rpartition(".")[2]
        return whole + difflib.SequenceMatcher(None, wanted, leaf).ratio()

    nearest = max(known, key=similarity)
    return f"configuration: there is no {path!r}; the nearest key is {nearest!r}."


def _members(declared: Any) -> tuple[Any, ...]:
    if typing.get_origin(declared) in (Union, types.UnionType):
        return typing.get_args(declared)
    return (declared,)


def _wrong(path: str, declared: Any, value: object) -> ConfigError:
    name = getattr(declared, "__name__", str(declared)) if not _args(declared) else str(declared)
    return ConfigError(f"configuration: {path} must be {name}; got {value!r}.")


def _args(declared: Any) -> tuple[Any, ...]:
    return typing.get_args(declared)


def _from_text(declared: Any, text: str, path: str) -> Any:
    members = _members(declared)
    if len(members) > 1:
        return _first_that_fits(members, text, path, declared, read=_from_text)
    if declared is type(None):
        return _require(None, text.lower() in ("none", "null"), path, "None", text)
    if typing.get_origin(declared) is Literal:
        return _choice(declared, text, path)
    if declared is bool:
        return _require(
            _TRUTH.get(text.lower()), text.lower() in _TRUTH, path, "true or false", text
        )
    if declared in (int, float):
        return _number(declared, text, path)
    if declared in (str, Path):
        return declared(text)
    if typing.get_origin(declared) in (tuple, dict):
        return _from_json(declared, _literal(declared, text), path)
    if dataclasses.is_dataclass(declared):
        names = ", ".join(field.name for field in dataclasses.fields(declared))
        raise ConfigError(f"configuration: {path} is a group; set one of its fields: {names}.")
    raise _wrong(path, declared, text)


def _require(value: Any, holds: bool, path: str, wanted: str, got: object) -> Any:
    if not holds:
        raise ConfigError(f"configuration: {path} must be {wanted}; got {got!r}.")
    return value


def _choice(declared: Any, value: object, path: str) -> Any:
    for choice in _args(declared):
        if choice == value or str(choice) == value:
            return choice
    raise ConfigError(
        f"configuration: {path} must be one of {', '.join(map(str, _args(declared)))}; "
        f"got {value!r}."
    )


def _number(declared: Any, text: str, path: str) -> Any:
    try:
        return declared(text)
    except ValueError:
        raise _wrong(path, declared, text) from None


def _literal(declared: Any, text: str) -> Any:
    """Python's own notation if it is that; else comma-separated words."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = [word.strip() for word in text.strip("()[]").split(",") if word.strip()]
    is_group = typing.get_origin(declared) is tuple
    return [value] if is_group and not isinstance(value, tuple | list) else value


def _first_that_fits(
    members: Sequence[Any], value: Any, path: str, declared: Any, *, read: Any
) -> Any:
    # None first: "none" must not become a string where both are allowed
    errors = []
    for member in sorted(members, key=lambda item: item is not type(None)):
        try:
            return read(member, value, path)
        except ConfigError as error:
            errors.append(error)
    # of `X | None` the reader wants to hear about X
    raise (
        errors[-1] if len(members) == 2 and type(None) in members else _wrong(path, declared, value)
    )


def _from_json(declared: Any, value: Any, path: str) -> Any:
    members = _members(declared)
    if len(members) > 1:
        return _first_that_fits(members, value, path, declared, read=_from_json)
    if dataclasses.is_dataclass(declared):
        return _group_from_json(declared, value, path)
    origin = typing.get_origin(declared)
    if origin is Literal:
        return _choice(declared, value, path)
    if origin is tuple:
        return _tuple_from_json(declared, value, path)
    if origin is dict:
        _require(None, isinstance(value, dict), path, "a mapping", value)
        item = _args(declared)[1]
        return {key: _from_json(item, inner, f"{path}.{key}") for key, inner in value.items()}
    if declared is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if declared is Path and isinstance(value, str):
        return Path(value)
    if declared is Any:
        return value
    # bool is an int to Python, not to a reader of a configuration
    if not isinstance(value, declared) or (declared is int and isinstance(value, bool)):
        raise _wrong(path, declared, value)
    return value


def _group_from_json(declared: Any, value: Any, path: str) -> Any:
    _require(None, isinstance(value, dict), path or "the configuration", "an object", value)
    hints = typing.get_type_hints(declared)
    names = [field.name for field in dataclasses.fields(declared)]
    inner = f"{path}." if path else ""
    for key in value:
        if key not in names:
            raise ConfigError(_unknown(inner + key, [inner + name for name in names]))
    fields = {key: _from_json(hints[key], item, inner + key) for key, item in value.items()}
    return _checked(lambda: declared(**fields), path)


def _tuple_from_json(declared: Any, value: Any, path: str) -> tuple:
    _require(None, isinstance(value, list | tuple), path, "a list of values", value)
    kinds = _args(declared)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ConfigError(
            f"configuration: {path} must have {len(kinds)} values; got {len(value)}: {value!r}."
        )
    return tuple(
        _from_json(kind, item, f"{path}.{index}")
        for index, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )
