import pytest
import torch

from xdecoder.openseed.proposals import most_nameable, proposals

_SIZES = [(2, 3), (4, 6), (8, 12)]


@pytest.mark.parametrize(
    ("sizes", "sides"),
    [("against_stride", (0.05, 0.1, 0.2)), ("with_stride", (0.2, 0.1, 0.05))],
)
def test_sides_follow_the_level(sizes, sides):
    logits, is_valid = proposals(_SIZES, sizes=sizes, like=torch.zeros(1))
    boxes = logits.sigmoid()
    first = 0
    for (height, width), side in zip(_SIZES, sides, strict=True):
        level = slice(first, first + height * width)
        assert is_valid[level].all()
        assert torch.allclose(boxes[level, 2:], torch.tensor(side), atol=1e-6)
        assert torch.allclose(boxes[first, :2], torch.tensor([0.5 / width, 0.5 / height]))
        first += height * width


def test_places_at_the_very_edge_are_infinite_and_never_first():
    logits, is_valid = proposals([(1, 80)], sizes="with_stride", like=torch.zeros(1))
    assert not is_valid[0]
    assert is_valid[1]
    assert logits[0].isinf().all()
    class_logits = torch.zeros(1, 80, 2)
    class_logits[0, 0] = 100.0
    class_logits[0, 7] = 1.0
    assert most_nameable(class_logits, is_valid, 2)[0, 0].item() == 7


def test_more_queries_than_places_are_refused():
    with pytest.raises(ValueError, match=r"at least 7 places .* got 6"):
        most_nameable(torch.zeros(1, 6, 2), torch.ones(6, dtype=torch.bool), 7)


def test_coordinates_keep_their_digits_under_autocast(tiny_model, images):
    """Also of a map whose places 16 bits cannot tell apart."""
    sizes_hw = ((3, 5), (20, 300))
    found = [
        proposals(sizes_hw, sizes="with_stride", like=torch.zeros(1, dtype=dtype))[0]
        for dtype in (torch.bfloat16, torch.float32)
    ]
    assert torch.equal(*found)
    heads = tiny_model.eval().decoder.heads
    torch.nn.init.normal_(heads.box_mlp.layers[-1].weight)
    states = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = heads.shifts(states)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(heads.shifts(states), expected)
            names = torch.nn.functional.normalize(torch.ones(3, 40), dim=1)
            output = tiny_model.decode(tiny_model.encode_images(images), names)
    for prediction in (output.selected, *output.layers):
        assert prediction.boxes_cxcywh01.dtype == torch.float32
