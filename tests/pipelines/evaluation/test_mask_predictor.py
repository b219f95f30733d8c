"""What a model with a fixed list of classes answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.errors import ConfigError
from pipelines.evaluation.mask_predictor import MaskPredictor, known_classes
from pipelines.evaluation.model_predictor import ModelPredictor
from pipelines.evaluation.options import EvaluationOptions
from pipelines.evaluation.predictors import predictor_of, stages_of
from xdecoder.batch import Vocabulary
from xdecoder.config import PixelDecoderConfig
from xdecoder.mask_former.build import build_mask_former
from xdecoder.mask_former.config import MaskFormerConfig, QueryDecoderConfig, SwinConfig

VOCABULARY = Vocabulary(names=("cup", "ball", "sand"), is_thing=(True, True, False))
OPTIONS = EvaluationOptions(
    size_hw=(64, 96), text_size_hw=(32, 64), object_threshold=0.0, overlap_threshold=0.0
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    config = MaskFormerConfig(
        num_classes=3,
        class_names=VOCABULARY.names,
        is_thing=VOCABULARY.is_thing,
        backbone=SwinConfig(
            dim=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window=4, drop_path=0.0
        ),
        pixel_decoder=PixelDecoderConfig(num_layers=1, num_heads=4, ffn_dim=48),
        decoder=QueryDecoderConfig(dim=32, num_layers=2, num_heads=4, ffn_dim=40, num_queries=9),
        pixel_dim=32,
        mask_dim=32,
    )
    model = build_mask_former(config).eval()
    # an untrained model is undecided everywhere
    model.head.decoder.heads.class_projection.weight.data *= 40
    return model


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (50, 33, 3), dtype=np.uint8)


def found_by(model, image, vocabulary, **changes):
    return MaskPredictor(model, options=replace(OPTIONS, **changes)).segment([image], vocabulary)[0]


def named(found, vocabulary):
    segments = {vocabulary.names[index] for index in found.classes.values()}
    instances = [(vocabulary.names[each.class_id], each.score) for each in found.instances]
    return segments, instances, np.array(vocabulary.names)[found.semantic].tolist()


def test_the_order_of_the_names_does_not_matter(model, image):
    other = Vocabulary(names=("sand", "cup", "ball"), is_thing=(False, True, True))
    first = named(found_by(model, image, VOCABULARY), VOCABULARY)
    second = named(found_by(model, image, other), other)
    assert first == second
    assert first[0]
    assert first[1]


def test_answers_have_the_size_of_the_image(model, image):
    found = found_by(model, image, VOCABULARY)
    assert found.segment_ids.shape == found.semantic.shape == (50, 33)
    assert all(instance.region.shape == (50, 33) for instance in found.instances)


def test_a_name_that_the_model_lacks_is_never_found(model, image):
    wanted = Vocabulary(names=("unicorn", "ball"), is_thing=(True, True))
    found = found_by(model, image, wanted)
    assert set(found.classes.values()) <= {1}
    assert {instance.class_id for instance in found.instances} == {1}
    assert set(np.unique(found.semantic)) == {1}


def test_a_vocabulary_of_strangers_is_refused(model, image):
    strangers = Vocabulary(names=("unicorn",), is_thing=(True,))
    with pytest.raises(ConfigError, match=r"it has 3 of its own: cup, ball, sand"):
        found_by(model, image, strangers)


def test_names_may_be_written_as_in_the_files_of_coco():
    assert known_classes(("wall-other-merged", "dog"), ("dog", "wall")) == [1, 0]
    assert known_classes(("wall", "dog"), ("dog", "wall-other-merged")) == [1, 0]


def test_doubtful_instances_are_left_out(model, image):
    scores = [each.score for each in found_by(model, image, VOCABULARY).instances]
    limit = sorted(scores)[len(scores) // 2]
    kept = [
        each.score for each in found_by(model, image, VOCABULARY, minimum_score=limit).instances
    ]
    assert kept == [score for score in scores if score >= limit]
    assert len(kept) < len(scores)


def test_the_rule_of_maskformer_keeps_faint_pixels(model, image):
    strict = found_by(model, image, VOCABULARY)
    whole = found_by(model, image, VOCABULARY, keeps_faint_pixels=True)
    assert (whole.segment_ids > 0).sum() > (strict.segment_ids > 0).sum()


def test_questions_about_texts_are_refused(model, image):
    predictor = MaskPredictor(model, options=OPTIONS)
    questions = (
        lambda: predictor.refer(image, ["a cup"]),
        lambda: predictor.caption([image]),
        lambda: predictor.caption_hits([image], ["a cup"]),
        lambda: predictor.embed_images([image]),
        lambda: predictor.embed_texts(["a cup"]),
        lambda: predictor.name_regions(image, ["a cup"]),
    )
    for ask in questions:
        with pytest.raises(ConfigError, match=r"a fixed list of classes knows no .*; it segments"):
            ask()


def test_each_family_has_its_predictor_and_stages(model, tiny_model):
    assert isinstance(predictor_of(model, options=OPTIONS), MaskPredictor)
    assert isinstance(predictor_of(tiny_model, options=OPTIONS), ModelPredictor)
    every = ("segmentation", "referring")
    assert stages_of(model, every) == ["segmentation"]
    assert stages_of(tiny_model, every) == list(every)
