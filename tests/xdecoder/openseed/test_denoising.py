import torch

from xdecoder.losses.draws import Draws, RecordedDraws
from xdecoder.openseed.config import DenoisingConfig
from xdecoder.openseed.denoising import conditions, disturbed

_IDS = [torch.tensor([4]), torch.tensor([1, 2, 3])]
_BOXES = [torch.full((1, 4), 0.5), torch.full((3, 4), 0.25)]


def test_groups_hold_every_image_and_pad_the_smaller_ones():
    found = conditions(_IDS, _BOXES, num_groups=2)
    assert found.count == 6
    assert found.is_used.tolist() == [[True, False, False] * 2, [True] * 6]
    assert found.class_ids[1].tolist() == [1, 2, 3, 1, 2, 3]
    assert found.image_index.tolist() == [0, 1, 1, 1] * 2
    assert found.place.tolist() == [0, 0, 1, 2, 3, 3, 4, 5]
    assert found.target.tolist() == [0, 1, 2, 3] * 2


def test_groups_see_themselves_and_the_ordinary_queries_which_see_no_group():
    sees = conditions(_IDS, _BOXES, num_groups=2).may_attend(2)[0, 0]
    assert sees[0].tolist() == [True] * 3 + [False] * 3 + [True] * 2
    assert sees[5].tolist() == [False] * 3 + [True] * 3 + [True] * 2
    assert sees[6].tolist() == [False] * 6 + [True] * 2


def test_disturbed_edges_move_by_at_most_the_noise():
    config = DenoisingConfig(num_queries=9, box_noise=0.4)
    found = disturbed(_IDS, _BOXES, Draws(0), config)
    assert found.num_groups == 3
    moved = found.boxes_cxcywh01[found.image_index, found.place]
    exact = torch.cat(_BOXES).repeat(3, 1)
    reach = torch.cat([exact[:, 2:] / 2, exact[:, 2:]], 1) * 0.4
    assert ((moved - exact).abs() <= reach + 1e-6).all()
    assert (moved != exact).any()


def test_the_middle_of_the_noise_leaves_boxes_alone():
    draws = RecordedDraws([torch.full((12, 4), 0.5)])
    found = disturbed(_IDS, _BOXES, draws, DenoisingConfig(num_queries=9))
    assert found.boxes_cxcywh01[1].equal(torch.full((9, 4), 0.25))


def test_no_targets_or_too_many_leave_one_query_of_padding():
    empty = [torch.zeros(0, dtype=torch.long)] * 2
    none = [torch.zeros(0, 4)] * 2
    config = DenoisingConfig(num_queries=2)
    for ids, boxes in ((empty, none), (_IDS, _BOXES)):
        found = disturbed(ids, boxes, Draws(0), config)
        assert (found.count, found.num_groups) == (1, 1)
        assert not found.is_used.any()
        assert len(found.target) == 0
    assert disturbed(_IDS, _BOXES, Draws(0), DenoisingConfig(num_queries=0)) is None
