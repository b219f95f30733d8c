from dataclasses import replace

import pytest
import torch

from xdecoder.losses.draws import Draws
from xdecoder.outputs import DecoderOutput, LayerPrediction
from xdecoder.tasks import build_tasks, segmentation


class Oracle:
    """A model that knows the answers: masks and names of the first queries are the targets."""

    def __init__(self, model, batch, *, is_transposed=False, says_phrases=False):
        self._batch, self._is_transposed, self._says_phrases = batch, is_transposed, says_phrases
        self.tokenizer, self.encode_text = model.tokenizer, model.encode_text
        self.decoder, self.token_table = model.decoder, model.token_table
        self.logit_scale = torch.full((1,), 3.0)

    def encode_images(self, images, valid_sizes_hw):
        return images

    def decode(self, images, queries):
        layout = queries.layout(self.decoder.num_latents)
        num_images, num_rows = len(images), layout.pixel_rows.stop
        features = torch.full((num_images, 8, 16, 24), -9.0)
        features[:, 7] = 0
        for image, (segments, phrases) in enumerate(
            zip(self._batch.segments, self._batch.phrases, strict=True)
        ):
            masks = torch.cat([segments.masks, phrases.masks])[:, 2::4, 2::4]
            if self._is_transposed:
                small = torch.nn.functional.interpolate(
                    masks.float().transpose(1, 2)[None], masks.shape[1:]
                )[0]
                masks = small > 0
            features[image, : len(masks), :12, :20] = masks.float() * 18 - 9
        mask_rows = torch.zeros(num_images, num_rows, 8)
        mask_rows[..., 7] = 1
        mask_rows[:, :4, :4] = torch.eye(4)
        mask_rows[:, layout.grounding][:, :2, 4:6] = torch.eye(2)
        names = [f"{name}." for name in (*self._batch.vocabulary.names, "background")]
        words = self.encode_text(self.tokenizer(names)).sentence
        rows = words[-1].expand(num_images, num_rows, -1).clone()
        rows[:, :4] = words[:4]
        for image, phrases in enumerate(self._batch.phrases):
            vectors = self.encode_text(self.tokenizer(phrases.phrases)).sentence
            rows[image, layout.grounding][:2] = vectors
            if self._says_phrases:
                # phrases are about the third and fourth segment
                rows[image, 2:4] = vectors
        layer = LayerPrediction(embeddings=rows, mask_embeddings=mask_rows)
        return DecoderOutput(layers=(layer, layer), layout=layout, mask_features=features)


@pytest.fixture
def task(loss_config):
    # plain names only, as the oracle writes them
    return build_tasks(replace(loss_config, templates=("{}.",)))[0]


def unweighted(terms, term):
    return terms[f"segmentation/{term}/1"].item()


def test_right_answers_cost_little(small_model, task, batches):
    batch = batches[0]
    terms = task.losses(Oracle(small_model, batch), batch, Draws(0))
    assert unweighted(terms, "mask_ce") < 1
    assert unweighted(terms, "mask_bce") < 5 * 0.8
    assert unweighted(terms, "mask_dice") < 5 * 0.3
    assert unweighted(terms, "grounding_dice") < 0.4


def test_transposed_masks_cost_much(small_model, task, batches):
    batch = batches[0]
    oracle = Oracle(small_model, batch, is_transposed=True)
    terms = task.losses(oracle, batch, Draws(0))
    assert unweighted(terms, "mask_dice") > 5 * 0.35


def test_wrong_class_ids_cost_much(small_model, task, batches):
    batch = batches[0]
    wrong = tuple(replace(s, class_ids=s.class_ids.flip(0)) for s in batch.segments)
    right = task.losses(Oracle(small_model, batch), batch, Draws(0))
    terms = task.losses(Oracle(small_model, batch), replace(batch, segments=wrong), Draws(0))
    assert unweighted(terms, "mask_ce") > 2 * unweighted(right, "mask_ce")


def test_exchanged_phrases_cost_much(small_model, task, batches):
    batch = batches[0]
    exchanged = tuple(replace(p, masks=p.masks.flip(0)) for p in batch.phrases)
    right = task.losses(Oracle(small_model, batch), batch, Draws(1))
    terms = task.losses(Oracle(small_model, batch), replace(batch, phrases=exchanged), Draws(1))
    total = sum(unweighted(terms, f"grounding_{part}") for part in ("ce", "bce", "dice"))
    expected = sum(unweighted(right, f"grounding_{part}") for part in ("ce", "bce", "dice"))
    assert total > expected + 0.5


def test_exchanged_phrases_make_the_region_contrast_dearer(small_model, task, batches):
    batch = batches[0]
    exchanged = tuple(replace(p, masks=p.masks.flip(0)) for p in batch.phrases)
    oracle = Oracle(small_model, batch, says_phrases=True)
    # both phrases are drawn with these draws
    right = task.losses(oracle, batch, Draws(1))
    wrong = task.losses(oracle, replace(batch, phrases=exchanged), Draws(1))
    assert unweighted(wrong, "region_text") > unweighted(right, "region_text") + 0.5


def test_counts_are_those_of_the_batch(small_model, task, batches):
    batch = batches[0]
    counts = task.counts(small_model, batch)
    assert counts["segmentation/segments"] == 8
    assert counts["segmentation/phrase_images"] == 2
    # five latents an image, four of them matched
    assert counts["segmentation/label_weight"] == pytest.approx(8 + 0.1 * 2)


def test_prediction_has_the_asked_size_and_sums_to_one(small_model, batches):
    batch = batches[0]
    result = segmentation.predict(small_model, batch.images[0], ["ball", "sky"], (30, 70))
    assert result.class_probs.shape == (5, 3)
    assert result.mask_logits.shape == (5, 30, 70)
    torch.testing.assert_close(result.class_probs.sum(1), torch.ones(5))
    with_global = segmentation.predict(
        small_model, batch.images[0], ["ball", "sky"], (30, 70), has_global_query=True
    )
    torch.testing.assert_close(with_global.class_probs[:5], result.class_probs)
    assert with_global.class_probs.shape == (6, 3)


def test_encoded_vocabulary_gives_the_same_prediction(small_model, batches):
    image, names = batches[0].images[0], ["ball", "sky"]
    vectors = segmentation.encode_vocabulary(small_model, names)
    once = segmentation.predict(small_model, image, names, (30, 70))
    kept = segmentation.predict(small_model, image, names, (30, 70), class_vectors=vectors)
    torch.testing.assert_close(once.class_probs, kept.class_probs)


def test_the_order_of_names_only_permutes_probabilities(small_model, batches):
    image = batches[0].images[0]
    forward = segmentation.predict(small_model, image, ["ball", "sky"], (30, 70))
    backward = segmentation.predict(small_model, image, ["sky", "ball"], (30, 70))
    torch.testing.assert_close(forward.class_probs[:, [1, 0, 2]], backward.class_probs)


def test_region_embeddings_are_unit_vectors_with_masks_of_the_image_size(small_model, batches):
    regions = segmentation.region_embeddings(small_model, batches[0].images[0])
    torch.testing.assert_close(regions.embeddings.norm(dim=1), torch.ones(5))
    assert regions.mask_logits.shape == (5, 48, 80)
