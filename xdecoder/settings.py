"""Settings as JSON: frozen dataclasses to plain values and back, by their declared types."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

_Settings = TypeVar("_Settings")


class SettingsError(ValueError):
    """A setting that is unknown, of another type, or against a rule of its group."""


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


def from_json(declared: type[_Settings], value: object, path: str = "") -> _Settings:
    """A value of the declared type from what `to_json` wrote.

    Raises:
        SettingsError: an unknown key (naming the nearest valid one) or a value of another type.
    """
    return typing.cast(_Settings, _from_json(declared, value, path))


def _from_json(declared: Any, value: Any, path: str) -> Any:
    kinds = members(declared)
    if len(kinds) > 1:
        return _union_from_json(kinds, value, path, declared)
    if dataclasses.is_dataclass(declared):
        return _group_from_json(declared, value, path)
    origin = typing.get_origin(declared)
    if origin is Literal:
        return choice(declared, value, path)
    if origin is tuple:
        return _tuple_from_json(declared, value, path)
    if origin is dict:
        required(None, isinstance(value, dict), path, "a mapping", value)
        item = typing.get_args(declared)[1]
        return {key: _from_json(item, inner, f"{path}.{key}") for key, inner in value.items()}
    if declared is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if declared is Path and isinstance(value, str):
        return Path(value)
    if declared is Any:
        return value
    # bool is an int to Python, not to a reader of a configuration
    if not isinstance(value, declared) or (declared is int and isinstance(value, bool)):
        raise wrong_type(path, declared, value)
    return value


def _group_from_json(declared: Any, value: Any, path: str) -> Any:
    required(None, isinstance(value, dict), path or "the configuration", "an object", value)
    hints = typing.get_type_hints(declared)
    names = [field.name for field in dataclasses.fields(declared)]
    inner = f"{path}." if path else ""
    for key in value:
        if key not in names:
            raise SettingsError(unknown_key(inner + key, [inner + name for name in names]))
    fields = {key: _from_json(hints[key], item, inner + key) for key, item in value.items()}
    return checked(lambda: declared(**fields), path)


def _union_from_json(kinds: Sequence[Any], value: Any, path: str, declared: Any) -> Any:
    groups = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
    if len(groups) > 1 and isinstance(value, dict):
        return _group_from_json(_closest_group(groups, value), value, path)
    return first_that_fits(kinds, value, path, declared, read=_from_json)


def _closest_group(groups: Sequence[Any], value: Mapping[str, Any]) -> Any:
    """The group of a union that lacks fewest of the keys, and of these has fewest to spare.

    Its own error then names the key that is wrong, where trying all would name none.
    """

    def distance(group: Any) -> tuple[int, int]:
        names = {field.name for field in dataclasses.fields(group)}
        return len(value.keys() - names), len(names - value.keys())

    return min(groups, key=distance)


def _tuple_from_json(declared: Any, value: Any, path: str) -> tuple:
    required(None, isinstance(value, list | tuple), path, "a list of values", value)
    kinds = typing.get_args(declared)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise SettingsError(
            f"configuration: {path} must have {len(kinds)} values; got {len(value)}: {value!r}."
        )
    return tuple(
        _from_json(kind, item, f"{path}.{index}")
        for index, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def checked(build: Callable[[], Any], path: str) -> Any:
    """What `build` makes, with a rule that it breaks reported as a configuration error."""
    try:
        return build()
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(f"configuration: {path + ': ' if path else ''}{error}") from error


def unknown_key(path: str, known: Sequence[str]) -> str:
    """The message for a key that is not there, with the nearest one that is."""

    def similarity(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, path, candidate).ratio()
        leaf, wanted = candidate.rpartition(".")[2], path.rpartition(".")[2]
        return whole + difflib.SequenceMatcher(None, wanted, leaf).ratio()

    nearest = max(known, key=similarity)
    return f"configuration: there is no {path!r}; the nearest key is {nearest!r}."


def members(declared: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type that is none."""
    if typing.get_origin(declared) in (Union, types.UnionType):
        return typing.get_args(declared)
    return (declared,)


def wrong_type(path: str, declared: Any, value: object) -> SettingsError:
    """The error for a value of another type than the declared one."""
    name = (
        getattr(declared, "__name__", str(declared))
        if not typing.get_args(declared)
        else str(declared)
    )
    return SettingsError(f"configuration: {path} must be {name}; got {value!r}.")


def required(value: Any, holds: bool, path: str, wanted: str, got: object) -> Any:
    """The value, if the condition holds."""
    if not holds:
        raise SettingsError(f"configuration: {path} must be {wanted}; got {got!r}.")
    return value


def choice(declared: Any, value: object, path: str) -> Any:
    """The member of a `Literal` that the value or its text is."""
    for each in typing.get_args(declared):
        if each == value or str(each) == value:
            return each
    raise SettingsError(
        f"configuration: {path} must be one of {', '.join(map(str, typing.get_args(declared)))}; "
        f"got {value!r}."
    )


def first_that_fits(
    kinds: Sequence[Any], value: Any, path: str, declared: Any, *, read: Any
) -> Any:
    """The value as the first type of a union that reads it."""
    # None first: "none" must not become a string where both are allowed
    errors = []
    for member in sorted(kinds, key=lambda item: item is not type(None)):
        try:
            return read(member, value, path)
        except SettingsError as error:
            errors.append(error)
    # of `X | None` the reader wants to hear about X
    raise (
        errors[-1] if len(kinds) == 2 and type(None) in kinds else wrong_type(path, declared, value)
    )
