from dataclasses import replace

import pytest
import torch

from xdecoder.losses.draws import Draws
from xdecoder.tasks import build_tasks


@pytest.fixture
def task(loss_config):
    return build_tasks(loss_config)[1]


def test_counts_are_words_and_ends(small_model, task, batches):
    batch = batches[1]
    lengths = [int(ids.argmax()) for ids in small_model.tokenizer(batch.captions)]
    assert task.counts(small_model, batch) == {"image_text/tokens": float(sum(lengths))}


def test_captioning_of_an_untrained_model_is_about_the_log_of_the_vocabulary(
    small_model, task, batches
):
    with torch.no_grad():
        small_model.decoder.heads.caption_projection.weight.zero_()
    terms = task.losses(small_model, batches[1], Draws(0))
    size = torch.tensor(float(len(small_model.token_table)))
    assert terms["image_text/captioning/3"].item() == pytest.approx(2.0 * size.log().item())


def test_equal_captions_are_right_answers_for_each_other(small_model, task, batches):
    """With one caption for all images nothing is left to tell apart."""
    batch = replace(batches[1], captions=("a red ball", "A red  ball"))
    terms = task.losses(small_model, batch, Draws(0))
    # one column: its softmax over texts is 1; over images the target is even
    rows = terms["image_text/retrieval/3"] / 2.0
    assert rows.item() >= 0.5 * torch.tensor(2.0).log().item() - 1e-5
    swapped = replace(batch, images=batch.images.flip(0))
    again = task.losses(small_model, swapped, Draws(0))
    torch.testing.assert_close(again["image_text/retrieval/3"], terms["image_text/retrieval/3"])


def test_exchanged_images_change_the_contrast(small_model, task, batches):
    terms = task.losses(small_model, batches[1], Draws(0))
    swapped = replace(batches[1], images=batches[1].images.flip(0))
    again = task.losses(small_model, swapped, Draws(0))
    key = "image_text/retrieval_backbone/3"
    assert abs(terms[key].item() - again[key].item()) > 1e-4
