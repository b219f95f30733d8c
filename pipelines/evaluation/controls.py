"""Assignments that break the link between image and text, for the controls beside each metric."""

from collections.abc import Sequence

import numpy as np


def shuffled_partners(groups: Sequence[object], *, seed: int = 0) -> list[int]:
    """For each item, the item of another group whose text it gets; a permutation.

    groups: what an item's text is about (object, image, name); an item never gets a text of its
    own group where that can be avoided. The same groups and seed give the same permutation.
    """
    count = len(groups)
    order = np.random.default_rng(seed).permutation(count).tolist()
    # by group, and rotated by the largest group: no item meets its own group unless one group
    # holds more than half of the items
    rank = {group: place for place, group in enumerate(dict.fromkeys(groups[i] for i in order))}
    ordered = sorted(order, key=lambda item: rank[groups[item]])
    sizes = np.bincount([rank[group] for group in groups]) if count else np.zeros(1, np.int64)
    shift = int(sizes.max())
    partners = [0] * count
    for position, item in enumerate(ordered):
        partners[item] = ordered[(position + shift) % count]
    return partners
