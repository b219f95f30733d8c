from dataclasses import replace

import pytest
import torch

from xdecoder.batch import PhraseTargets, SegmentTargets
from xdecoder.losses.draws import Draws
from xdecoder.losses.matching import NonFiniteCostError
from xdecoder.losses.world import World
from xdecoder.tasks import MultiTask, build_tasks


class TwoOfUs(World):
    """Another process that holds the same counts, and no rows."""

    size = 2
    rank = 0

    def mean(self, counts):
        return counts

    def gather(self, rows):
        return rows


@pytest.fixture
def trained(small_model, loss_config):
    return MultiTask(small_model.train(), build_tasks(loss_config))


def gradients(module, terms):
    module.zero_grad()
    sum(terms.values()).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def without_targets(batch):
    size_hw = batch.images.shape[2:]
    nothing = torch.zeros(0, *size_hw, dtype=torch.bool)
    empty = SegmentTargets(masks=nothing, class_ids=torch.zeros(0, dtype=torch.long))
    return replace(
        batch,
        segments=tuple(empty for _ in batch.keys),
        phrases=tuple(PhraseTargets(phrases=(), masks=nothing) for _ in batch.keys),
    )


def test_every_parameter_learns_from_one_step(trained, batches):
    gradient = gradients(trained, trained(batches, Draws(0)))
    missing = [name for name, _ in trained.named_parameters() if name not in gradient]
    assert missing == []
    silent = {name for name, value in gradient.items() if not value.any()}
    # deformable attention starts with weights of zero behind the level embedding
    assert silent <= {"model.pixel_decoder.level_embedding.weight"}


def test_a_step_without_any_target_is_finite_and_reaches_every_parameter(trained, batches):
    terms = trained((without_targets(batches[0]), batches[1]), Draws(0))
    assert all(torch.isfinite(value) for value in terms.values())
    gradient = gradients(trained, terms)
    assert [name for name, _ in trained.named_parameters() if name not in gradient] == []
    assert all(torch.isfinite(value).all() for value in gradient.values())


def test_images_without_segments_or_phrases_and_empty_masks_are_finite(trained, batches):
    segmentation, image_text = batches
    nothing = without_targets(segmentation)
    hollow = replace(segmentation.segments[1], masks=segmentation.segments[1].masks & False)
    unseen = replace(segmentation.phrases[1], masks=segmentation.phrases[1].masks & False)
    mixed = [
        replace(segmentation, segments=(nothing.segments[0], segmentation.segments[1])),
        replace(segmentation, phrases=(segmentation.phrases[0], nothing.phrases[1])),
        replace(
            segmentation,
            segments=(segmentation.segments[0], hollow),
            phrases=(segmentation.phrases[0], unseen),
        ),
    ]
    for batch in mixed:
        terms = trained((batch, image_text), Draws(0))
        assert all(torch.isfinite(value) for value in terms.values())
        assert all(torch.isfinite(value).all() for value in gradients(trained, terms).values())


def test_more_segments_than_queries_are_finite(trained, batches):
    segmentation, image_text = batches
    first = segmentation.segments[0]
    many = SegmentTargets(masks=first.masks.repeat(2, 1, 1), class_ids=first.class_ids.repeat(2))
    crowded = replace(segmentation, segments=(many, segmentation.segments[1]))
    terms = trained((crowded, image_text), Draws(0))
    assert all(torch.isfinite(value) for value in terms.values())


def test_equal_draws_give_equal_losses_and_others_do_not(trained, batches):
    first, again, other = (trained(batches, Draws(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_losses_keep_float64_and_leave_half_precision(trained, batches):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved = trained(batches, Draws(0))
    assert {value.dtype for value in halved.values()} == {torch.float32}
    assert all(torch.isfinite(value) for value in halved.values())
    doubled = trained.double()
    images = [replace(batch, images=batch.images.double()) for batch in batches]
    terms = doubled(images, Draws(0))
    assert {value.dtype for value in terms.values()} == {torch.float64}
    # bfloat16 has 8 bits; the terms are sums of many rows
    for key, value in terms.items():
        assert halved[key].item() == pytest.approx(value.item(), rel=0.25, abs=0.25), key


def test_terms_are_named_by_task_term_and_layer(trained, batches):
    names = set(trained(batches, Draws(0)))
    for layer in range(4):
        assert f"segmentation/mask_dice/{layer}" in names
    # the last three predictions
    assert "image_text/captioning/1" in names
    assert "image_text/captioning/0" not in names
    assert "image_text/retrieval_backbone/3" in names


def test_accumulated_halves_give_the_gradient_of_the_whole(
    trained, batches, halves, same_draws, loss_config
):
    """Terms that contrast examples with each other depend on the split, and are left out."""
    contrasts = ("region_text", "nouns", "retrieval")

    def own(terms):
        return {k: v for k, v in terms.items() if not k.split("/")[1].startswith(contrasts)}

    # the second scene has fewer segments and no phrases, so that the halves count differently
    batches = (_thinned(batches[0], 1), batches[1])
    halves = [halves[0], (_thinned(halves[1][0], 0), halves[1][1])]
    whole = gradients(trained, own(trained(batches, same_draws)))
    parts = [trained.counts(half) for half in halves]
    counts = {key: (parts[0][key] + parts[1][key]) / 2 for key in parts[0]}
    summed: dict = {}
    for half in halves:
        for key, value in gradients(trained, own(trained(half, same_draws, counts))).items():
            summed[key] = summed.get(key, 0) + value / 2
    for key, value in whole.items():
        # float32 sums in another order; gradients of this size carry about 1e-6
        torch.testing.assert_close(summed[key], value, rtol=1e-3, atol=1e-4, msg=key)


def _thinned(batch, image):
    segments, phrases = list(batch.segments), list(batch.phrases)
    few = segments[image]
    segments[image] = replace(few, masks=few.masks[:2], class_ids=few.class_ids[:2])
    phrases[image] = PhraseTargets(phrases=(), masks=few.masks[:0])
    return replace(batch, segments=tuple(segments), phrases=tuple(phrases))


def test_own_counts_are_the_default(trained, batches, same_draws):
    given = trained(batches, same_draws, trained.counts(batches))
    default = trained(batches, same_draws)
    assert all(torch.equal(given[key], default[key]) for key in given)


def test_a_loss_is_divided_by_the_mean_count_of_the_processes(small_model, loss_config, batches):
    """Two processes with equal counts: each divides by its own, the average is over both."""
    alone = MultiTask(small_model, build_tasks(loss_config))(batches, Draws(0))
    world = TwoOfUs()
    together = MultiTask(small_model, build_tasks(loss_config, world))(batches, Draws(0))
    for key in alone:
        torch.testing.assert_close(alone[key], together[key])


def test_a_batch_without_a_task_is_refused(small_model, loss_config, batches):
    module = MultiTask(small_model, build_tasks(loss_config)[:1])
    with pytest.raises(ValueError, match=r"one of the tasks \['segmentation'\]; got 'image_text'"):
        module(batches, Draws(0))


def test_permuted_latent_queries_leave_the_losses_unchanged(trained, batches):
    order = torch.tensor([3, 0, 4, 1, 2, 5])
    before = trained(batches, Draws(0))
    decoder = trained.model.decoder
    with torch.no_grad():
        for table in (decoder.query_content.weight, decoder.query_positions.weight):
            table.copy_(table[order].clone())
    after = trained(batches, Draws(0))
    for key in before:
        torch.testing.assert_close(after[key], before[key], rtol=1e-4, atol=1e-5, msg=key)


def test_costs_that_cannot_be_matched_are_raised_after_every_batch_with_all_terms(
    trained, batches, monkeypatch
):
    """Other processes wait for the collectives of every batch."""
    gathered = []

    def gather(_world, rows):
        gathered.append(len(rows))
        return rows

    monkeypatch.setattr(World, "gather", gather)
    whole = trained(batches, Draws(0))
    num_gathered, gathered[:] = len(gathered), []
    head = trained.model.decoder.heads.mask_mlp
    with torch.no_grad():
        next(head.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteCostError, match="has inf or nan in mask_logits") as found:
        trained(batches, Draws(0))
    assert found.value.terms.keys() == whole.keys()
    assert len(gathered) == num_gathered > 0
