"""What the released program does otherwise: each switch changes what it says, and nothing else."""

from dataclasses import fields, replace

import pytest
import torch

from xdecoder.batch import PhraseTargets
from xdecoder.losses.draws import Draws
from xdecoder.losses.world import World
from xdecoder.tasks import MultiTask, build_tasks
from xdecoder.tasks.config import ReleasedBehaviour, as_released


@pytest.fixture
def terms_with(small_model, loss_config):
    """Loss terms of batches with some switches on."""

    def compute(batches, draws=None, counts=None, **switches):
        config = replace(loss_config, released=ReleasedBehaviour(**switches))
        return MultiTask(small_model.train(), build_tasks(config))(
            batches, draws or Draws(0), counts
        )

    return compute


def _with_captions(batches):
    captions = (("a dog beside a red ball",), ("a box on a table",))
    return replace(batches[0], captions=captions), batches[1]


def _changed(first, second):
    return {
        key.split("/")[1]
        for key in first
        if not torch.allclose(first[key], second[key], rtol=1e-5, atol=1e-6)
    }


def test_all_switches_are_off_by_default_and_on_as_released():
    values = {
        field.name: getattr(ReleasedBehaviour(), field.name) for field in fields(as_released())
    }
    assert not any(values.values())
    assert all(getattr(as_released(), name) for name in values)


def test_an_image_without_phrases_silences_the_others_only_where_asked(terms_with, batches):
    segmentation, image_text = batches
    first = segmentation.phrases[0]
    nothing = PhraseTargets(phrases=(), masks=first.masks[:0])
    empty = replace(
        segmentation.segments[1],
        masks=segmentation.segments[1].masks[:0],
        class_ids=segmentation.segments[1].class_ids[:0],
    )
    batch = replace(
        segmentation,
        phrases=(first, nothing),
        segments=(segmentation.segments[0], empty),
    )
    grounding = {}
    for is_on in (False, True):
        terms = terms_with((batch, image_text), needs_phrases_everywhere=is_on)
        grounding[is_on] = sum(v for k, v in terms.items() if "/grounding_" in k).item()
    assert grounding[True] == 0
    assert grounding[False] > 0.1


def test_equal_captions_are_wrong_answers_where_told_apart(terms_with, batches):
    batch = replace(batches[1], captions=("a red ball", "a red ball"))
    plain = terms_with((batch,))
    apart = terms_with((batch,), tells_equal_captions_apart=True)
    assert _changed(plain, apart) == {"retrieval", "retrieval_backbone"}
    # no vector tells the two apart, so both directions end at log 2
    expected = 8.0 * torch.tensor(2.0).log()
    assert apart["image_text/retrieval_backbone/3"] >= expected - 1e-3


def test_zeros_of_short_phrases_are_seen_where_asked(terms_with, batches):
    segmentation, image_text = batches
    phrases = list(segmentation.phrases)
    phrases[1] = replace(phrases[1], phrases=("a", "b"))
    batch = (replace(segmentation, phrases=tuple(phrases)), image_text)
    changed = _changed(terms_with(batch), terms_with(batch, shows_padded_tokens=True))
    assert changed == {"grounding_ce", "grounding_bce", "grounding_dice"}


def test_local_counts_ignore_those_of_other_micro_batches(terms_with, batches):
    batches = _with_captions(batches)
    counts = {
        "segmentation/label_weight": 99.0,
        "segmentation/segments": 99.0,
        "segmentation/phrase_images": 99.0,
        "image_text/tokens": 99.0,
    }
    shared = _changed(terms_with(batches), terms_with(batches, counts=counts))
    assert shared >= {"mask_ce", "mask_bce", "grounding_ce", "captioning"}
    local = terms_with(batches, normalises_locally=True)
    with_counts = terms_with(batches, counts=counts, normalises_locally=True)
    assert _changed(local, with_counts) == set()


def test_draws_per_prediction_change_what_points_decide_alone(terms_with, batches):
    batches = _with_captions(batches)
    terms = terms_with(batches, draws_per_prediction=True)
    assert terms.keys() == terms_with(batches).keys()
    changed = _changed(terms_with(batches), terms)
    assert {"mask_bce", "mask_dice"} <= changed
    assert not changed & {"captioning", "retrieval", "retrieval_alignment", "retrieval_backbone"}


def test_cut_gradients_leave_the_values_alone(terms_with, batches):
    batches = _with_captions(batches)
    assert _changed(terms_with(batches), terms_with(batches, cuts_noun_gradient=True)) == set()


def test_gathered_gradients_are_multiplied_unless_kept_local():
    class OneOfTwo(World):
        size = 2
        rank = 0

        def _gather_padded(self, rows):
            return [rows, rows]

    for keeps, factor in ((False, 2.0), (True, 1.0)):
        rows = torch.randn(3, 2, requires_grad=True)
        OneOfTwo(keeps_local_gradient=keeps).gather(rows)[:3].sum().backward()
        assert torch.equal(rows.grad, torch.full((3, 2), factor))
