import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from xdecoder.images import ImageFit
from xdecoder.tasks.referring import Referring
from xdecoder.tasks.region_retrieval import RegionRetrieval, image_probabilities
from xdecoder.tasks.retrieval import Embedding, Retrieval, decoder_side, text_embeddings

FIT = ImageFit(size_hw=(48, 80))
PHRASES = ("a red ball", "a box")


@pytest.fixture
def images():
    draw = np.random.default_rng(3)
    sizes = ((60, 100), (48, 90), (70, 50))
    return [draw.integers(0, 256, (*size_hw, 3), dtype=np.uint8) for size_hw in sizes]


def test_each_phrase_chooses_among_the_images(small_model, images):
    answers = small_model.predict(images, RegionRetrieval(phrases=PHRASES, fit=FIT))
    vectors = torch.stack(
        [small_model.predict(image, Embedding(side="decoder", fit=FIT)) for image in images]
    )
    with torch.no_grad():
        texts = text_embeddings(small_model, PHRASES, side="decoder")
        scale = small_model.logit_scale.exp().clamp(max=100)
        expected = (scale * texts @ vectors.T).softmax(1)
    for answer, phrase, probabilities in zip(answers, PHRASES, expected, strict=True):
        torch.testing.assert_close(answer.probabilities, probabilities, rtol=1e-4, atol=1e-6)
        assert answer.best == int(probabilities.argmax())
        region = small_model.predict(images[answer.best], Referring(phrases=(phrase,)))
        assert torch.equal(answer.region.masks, region.masks)


def test_the_scale_is_clamped_like_that_of_training(small_model):
    vectors = normalize(torch.randn(4, 32), dim=-1)
    with torch.no_grad():
        small_model.logit_scale.fill_(np.log(100.0))
        at_limit = image_probabilities(small_model, vectors, PHRASES)
        small_model.logit_scale.fill_(50.0)
        beyond = image_probabilities(small_model, vectors, PHRASES)
    torch.testing.assert_close(beyond, at_limit, rtol=1e-4, atol=1e-6)


def test_texts_are_compared_with_every_image(small_model, images):
    similarity = small_model.predict(images, Retrieval(texts=PHRASES, fit=FIT))
    assert similarity.shape == (2, 3)
    one = small_model.predict([images[1]], Retrieval(texts=PHRASES[1:], fit=FIT))
    torch.testing.assert_close(similarity[1:, 1:2], one)
    assert similarity.abs().max() <= 1 + 1e-5


def test_an_index_of_both_sides_serves_regions_too(small_model, images):
    both = small_model.predict(images[0], Embedding(fit=FIT))
    decoder = small_model.predict(images[0], Embedding(side="decoder", fit=FIT))
    torch.testing.assert_close(decoder_side(both[None])[0], decoder)
