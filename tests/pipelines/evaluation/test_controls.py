from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluation.controls import shuffled_partners


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(0, 3))
def test_partners_are_a_permutation_that_leaves_the_group_where_it_can(
    groups: list[int], seed: int
) -> None:
    partners = shuffled_partners(groups, seed=seed)
    assert sorted(partners) == list(range(len(groups)))
    largest = max((groups.count(group) for group in groups), default=0)
    if 2 * largest <= len(groups):
        assert all(groups[item] != groups[other] for item, other in enumerate(partners))


def test_the_seed_decides() -> None:
    groups = list(range(40))
    assert shuffled_partners(groups, seed=1) == shuffled_partners(groups, seed=1)
    assert shuffled_partners(groups, seed=1) != shuffled_partners(groups, seed=2)
