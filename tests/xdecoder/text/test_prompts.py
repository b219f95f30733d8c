import pytest
import torch

from xdecoder.text import prompts

NAMES = ("red circle", "wall-other-merged", "background")


def test_there_are_81_templates_and_a_photo_comes_second():
    assert len(prompts.TEMPLATES) == len(set(prompts.TEMPLATES)) == 81
    assert prompts.TEMPLATES[:3] == ("{}.", "a photo of a {}.", "a bad photo of a {}.")
    assert all(template.count("{}") == 1 for template in prompts.TEMPLATES)


def test_names_lose_the_endings_of_coco():
    assert prompts.prompt("wall-other-merged", "a photo of a {}.") == "a photo of a wall."
    assert prompts.training_prompt("rug, mat+floor-stuff", "{}.") == "rug mat floor."


def test_class_vectors_are_unit_means_over_templates(small_model):
    templates = prompts.TEMPLATES[:3]
    vectors = prompts.class_embeddings(small_model, NAMES, templates=templates)
    texts = [prompts.prompt(NAMES[1], template) for template in templates]
    mean = torch.cat([prompts.sentence_embeddings(small_model, [text]) for text in texts]).mean(0)
    assert vectors.shape == (3, 32)
    torch.testing.assert_close(vectors[1], mean / mean.norm())


def test_equal_texts_get_equal_vectors_in_their_places(small_model):
    vectors = prompts.sentence_embeddings(small_model, ["a", "b", "a", "c"])
    assert torch.equal(vectors[0], vectors[2])
    alone = prompts.sentence_embeddings(small_model, ["c"])
    torch.testing.assert_close(vectors[3:], alone)


def test_batches_of_prompts_do_not_change_vectors(small_model, monkeypatch):
    at_once = prompts.class_embeddings(small_model, NAMES, templates=prompts.TEMPLATES[:5])
    monkeypatch.setattr(prompts, "PROMPTS_PER_CALL", 4)
    in_parts = prompts.class_embeddings(small_model, NAMES, templates=prompts.TEMPLATES[:5])
    torch.testing.assert_close(at_once, in_parts)


def test_class_vectors_teach_the_text_encoder(small_model):
    prompts.class_embeddings(small_model, NAMES).sum().backward()
    assert small_model.text_encoder.projection.weight.grad.abs().sum() > 0


def test_kept_vectors_are_made_again_when_weights_change_behind_autograds_back(small_model):
    cache = prompts.ClassEmbeddingCache()
    first = cache(small_model, NAMES)
    assert cache(small_model, NAMES) is first
    assert not first.requires_grad
    # as an optimizer with flat buffers writes
    small_model.text_encoder.projection.weight.data[0, 0] += 1.0
    second = cache(small_model, NAMES)
    assert not torch.equal(first, second)
    torch.testing.assert_close(second, prompts.class_embeddings(small_model, NAMES))


def test_kept_vectors_belong_to_their_names_and_templates(small_model):
    cache = prompts.ClassEmbeddingCache()
    first = cache(small_model, NAMES)
    assert not torch.equal(first[:2], cache(small_model, NAMES[:2], templates=("a {}!",)))
    assert torch.equal(first.flip(0), cache(small_model, NAMES[::-1]))


def test_no_names_are_refused(small_model):
    with pytest.raises(ValueError, match=r"at least one name.*got 0 names and 1 templates"):
        prompts.class_embeddings(small_model, [])
