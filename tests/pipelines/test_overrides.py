import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from pipelines.errors import ConfigError
from pipelines.overrides import dotted_paths, from_json, override, to_json


@dataclass(frozen=True, kw_only=True)
class Part:
    rate: float = 0.5
    count: int = 3
    is_on: bool = False
    kind: Literal["cosine", "step"] = "cosine"
    size_hw: tuple[int, int] = (4, 6)
    names: tuple[str, ...] = ()
    limit: int | None = None
    folder: Path = Path("a")

    def __post_init__(self) -> None:
        if self.count > 100 * self.rate:
            raise ValueError(f"count must be at most 100 * rate; got {self.count}.")


@dataclass(frozen=True, kw_only=True)
class Whole:
    name: str = "run"
    part: Part = field(default_factory=Part)
    spare: Part | None = None
    parts: tuple[Part, ...] = ()
    table: dict[str, float] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("part.rate=2e-3", 2e-3),
        ("part.rate=2", 2.0),
        ("part.count=7", 7),
        ("part.is_on=yes", True),
        ("part.is_on=False", False),
        ("part.kind=step", "step"),
        ("part.size_hw=8,12", (8, 12)),
        ("part.size_hw=(8, 12)", (8, 12)),
        ("part.names=one,two", ("one", "two")),
        ("part.names=one", ("one",)),
        ("part.names=", ()),
        ("part.limit=9", 9),
        ("part.limit=none", None),
        ("part.folder=x/y", Path("x/y")),
        ("name=a=b", "a=b"),
        ("table={'a': 1}", {"a": 1.0}),
    ],
)
def test_assignment_is_read_by_the_declared_type(assignment: str, value: object) -> None:
    changed: object = override(Whole(part=Part(count=0)), [assignment])
    for name in assignment.partition("=")[0].split("."):
        changed = getattr(changed, name)
    assert changed == value
    assert type(changed) is type(value)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("part.count=1.5", "part.count must be int; got '1.5'"),
        ("part.rate=fast", "part.rate must be float; got 'fast'"),
        ("part.is_on=maybe", "part.is_on must be true or false; got 'maybe'"),
        ("part.kind=linear", "part.kind must be one of cosine, step; got 'linear'"),
        ("part.size_hw=3", "part.size_hw must have 2 values; got 1"),
        ("part.size_hw=a,b", "part.size_hw.0 must be int; got 'a'"),
        ("part.limit=many", "part.limit must be int; got 'many'"),
        ("part=3", "part is a group; set one of its fields: rate, count"),
        ("part.rat=3", "there is no 'part.rat'; the nearest key is 'part.rate'"),
        ("rate=3", "there is no 'rate'; the nearest key is 'part.rate'"),
        ("prat.rate=3", "there is no 'prat'; the nearest key is 'part'"),
        ("name.x=3", "there is no 'name.x'"),
        ("part.rate", "must be path=value; got 'part.rate'"),
        ("parts.0.rate=3", "parts must be followed by a position"),
        ("part.rate=1e-5", "part: count must be at most"),
    ],
)
def test_wrong_assignment_says_what_is_wrong(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(Whole(), [assignment])
    assert message in str(caught.value)


def test_rules_are_checked_after_all_assignments() -> None:
    changed = override(Whole(), ["part.rate=1e-5", "part.count=0"])
    assert changed.part.rate == 1e-5


def test_absent_group_is_made_from_its_defaults() -> None:
    assert override(Whole(), ["spare.count=2"]).spare == Part(count=2)


def test_group_in_a_list_is_reached_by_position() -> None:
    config = Whole(parts=(Part(count=1), Part(count=2)))
    assert [part.count for part in override(config, ["parts.1.count=9"]).parts] == [1, 9]


def test_configuration_survives_json() -> None:
    config = Whole(
        part=Part(names=("a",), limit=3, folder=Path("q")),
        spare=Part(),
        parts=(Part(),),
        table={"a": 2.0},
    )
    assert from_json(Whole, json.loads(json.dumps(to_json(config)))) == config


def test_json_with_an_unknown_key_names_the_nearest() -> None:
    values = to_json(Whole())
    values["part"]["cuont"] = 3
    with pytest.raises(
        ConfigError, match=r"there is no 'part.cuont'; the nearest key is 'part.count'"
    ):
        from_json(Whole, values)


def test_json_of_another_type_is_refused() -> None:
    values = to_json(Whole())
    values["part"]["count"] = True
    with pytest.raises(ConfigError, match=r"part\.count must be int; got True"):
        from_json(Whole, values)


def test_paths_are_listed_with_their_groups() -> None:
    paths = list(dotted_paths(Whole()))
    assert paths[:3] == ["name", "part", "part.rate"]
    assert len(paths) == len(dataclasses.fields(Whole)) + len(dataclasses.fields(Part))


@dataclass(frozen=True, kw_only=True)
class OtherPart:
    length: int = 1
    rate: float = 9.0


@dataclass(frozen=True, kw_only=True)
class Either:
    part: Part | OtherPart = field(default_factory=Part)


def test_a_key_of_another_group_of_a_union_chooses_that_group() -> None:
    assert override(Either(), ["part.length=4"]).part == OtherPart(length=4)
    assert override(Either(), ["part.length=4", "part.rate=2"]).part == OtherPart(length=4, rate=2)
    assert override(Either(), ["part.rate=2"]).part == Part(rate=2)


def test_keys_of_two_groups_of_a_union_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"there is no 'part\.length'"):
        override(Either(), ["part.length=4", "part.kind=step"])
