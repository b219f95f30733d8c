import logging

import pytest

from pipelines.data.tolerance import Damage, DamageCount
from pipelines.errors import DataError


def _damage(key: str, shard: str = "a-000003.tar") -> Damage:
    return Damage(task="segmentation", epoch=0, shard=shard, key=key, reason="is damaged.")


def _count(others: list[Damage], **fields: float) -> DamageCount:
    numbers = {"max_damaged": 2, "max_share": 0.01, "total": 0, **fields}
    return DamageCount(gather=lambda own: [own, others], **numbers)


def test_damage_is_logged_at_once_and_counted_over_all_ranks(caplog) -> None:
    count = _count([_damage("of the other rank")])
    with caplog.at_level(logging.WARNING):
        count.add(_damage("k7"))
    assert caplog.messages == ["skipped a damaged sample: a-000003.tar: sample k7 is damaged."]
    assert count.total == 0
    assert [damage.key for damage in count.settle()] == ["k7", "of the other rank"]
    assert count.total == 2
    assert [damage.key for damage in count.settle()] == ["of the other rank"]
    assert count.total == 3


@pytest.mark.parametrize(
    ("total", "num_drawn", "is_tolerated"),
    [(2, 2, True), (3, 299, False), (3, 300, True), (50, 5000, True), (51, 5000, False)],
)
def test_both_number_and_share_must_be_exceeded(
    total: int, num_drawn: int, is_tolerated: bool
) -> None:
    count = _count([], total=total)
    if is_tolerated:
        count.check(num_drawn)
    else:
        with pytest.raises(DataError, match=rf"; {total} of {num_drawn} drawn were"):
            count.check(num_drawn)


def test_too_much_damage_names_shards_keys_and_settings() -> None:
    count = _count([_damage(f"k{number}", f"b-{number}.tar") for number in range(20)])
    count.settle()
    with pytest.raises(
        DataError, match=r"raise data\.max_damaged and data\.max_damaged_sh"
    ) as caught:
        count.check(1000)
    named = str(caught.value).splitlines()[1:]
    assert named == [f"b-{number}.tar: sample k{number} is damaged." for number in range(8)]
