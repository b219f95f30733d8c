import numpy as np

from pipelines.scenes.layout import draw_layout
from pipelines.scenes.render import PALETTE, render

SIZE_HW = (72, 104)


def test_things_show_their_colour_where_their_mask_is() -> None:
    palette = np.array(list(PALETTE.values()), float)
    names = list(PALETTE)
    right = total = 0
    for i in range(30):
        rng = np.random.default_rng((5, i))
        layout = draw_layout(rng, SIZE_HW, None)
        image = render(rng, layout)
        assert image.shape == (*SIZE_HW, 3)
        assert image.dtype == np.uint8
        for index, thing in enumerate(layout.things):
            median = np.median(image[layout.visible_mask(index)], axis=0)
            nearest = names[int(np.square(palette - median).sum(axis=1).argmin())]
            right += nearest == thing.look.colour
            total += 1
    assert total > 80
    assert right == total


def test_every_stuff_has_a_texture_of_its_own() -> None:
    means: dict[int, list[np.ndarray]] = {}
    for i in range(30):
        rng = np.random.default_rng((6, i))
        layout = draw_layout(rng, SIZE_HW, None)
        image = render(rng, layout).astype(float)
        for code in np.unique(layout.stuff):
            region = (layout.stuff == code) & (layout.owner == 0)
            if region.sum() > 200:
                assert image[region].std(axis=0).max() > 4
                means.setdefault(int(code), []).append(image[region].mean(axis=0))
    centers = [np.mean(values, axis=0) for values in means.values()]
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(centers) for b in centers[:i]]
    assert min(gaps) > 30
