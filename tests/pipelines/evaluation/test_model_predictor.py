import numpy as np
import pytest

from pipelines.evaluation.model_predictor import ModelPredictor
from pipelines.evaluation.options import EvaluationOptions
from xdecoder.batch import Vocabulary
from xdecoder.model import XDecoder

OPTIONS = EvaluationOptions(
    size_hw=(48, 80),
    text_size_hw=(32, 64),
    object_threshold=0.0,
    overlap_threshold=0.0,
    max_instances=9,
    max_caption_tokens=5,
)
VOCABULARY = Vocabulary(names=("cup", "ball", "sand"), is_thing=(True, True, False))


@pytest.fixture(scope="module")
def predictor(tiny_model: XDecoder) -> ModelPredictor:
    return ModelPredictor(tiny_model, options=OPTIONS)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(48, 80), (31, 17), (150, 90), (1, 40)])
def test_answers_have_the_size_of_the_image(
    predictor: ModelPredictor, height: int, width: int
) -> None:
    image = picture(height, width)
    found = predictor.segment([image], VOCABULARY)[0]
    assert found.segment_ids.shape == found.semantic.shape == (height, width)
    assert all(instance.region.shape == (height, width) for instance in found.instances)
    assert predictor.refer(image, ["a cup"])[0].shape == (height, width)
    assert predictor.name_regions(image, ["a cup", "sand"]).regions.shape[1:] == (height, width)


def test_ids_classes_and_scores_go_together(predictor: ModelPredictor) -> None:
    found = predictor.segment([picture(48, 80)], VOCABULARY)[0]
    present = set(np.unique(found.segment_ids).tolist()) - {0}
    assert present == set(found.classes) == set(found.scores)
    assert found.semantic.max() < len(VOCABULARY.names)


def test_only_things_are_instances_and_the_surest_come_first(predictor: ModelPredictor) -> None:
    found = predictor.segment([picture(48, 80)], VOCABULARY)[0].instances
    assert all(VOCABULARY.is_thing[instance.class_id] for instance in found)
    scores = [instance.score for instance in found]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) <= OPTIONS.max_instances


def test_a_phrase_is_answered_whatever_is_asked_beside_it(predictor: ModelPredictor) -> None:
    image = picture(60, 90)
    alone = predictor.refer(image, ["the red cup"])[0]
    beside = predictor.refer(image, ["a ball on the left", "the red cup"])[1]
    assert (alone == beside).mean() > 0.999


def test_vectors_have_length_one_and_similarities_are_cosines(predictor: ModelPredictor) -> None:
    vectors = predictor.embed_images([picture(48, 80), picture(80, 48)])
    texts = predictor.embed_texts(["a cup", "a ball", "sand"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(2), abs=1e-5)
    assert np.linalg.norm(texts, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    similarity = predictor.name_regions(picture(48, 80), ["a cup", "sand"]).similarity
    assert similarity.shape[1] == 2
    assert np.abs(similarity).max() <= 1 + 1e-5


def test_captions_are_counted_for_images_of_several_shapes(predictor: ModelPredictor) -> None:
    images = [picture(48, 80), picture(80, 48)]
    assert len(predictor.caption(images)) == 2
    correct, total = predictor.caption_hits(images, ["a cup", "a ball on sand"])
    assert 0 <= correct <= total
    assert total >= 6
