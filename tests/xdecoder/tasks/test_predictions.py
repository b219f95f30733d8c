"""Referring, captioning and retrieval."""

import pytest
import torch

from xdecoder.queries import QuerySet
from xdecoder.tasks import captioning, referring, retrieval
from xdecoder.tasks.texts import encode_distinct


@pytest.fixture
def images(batches):
    return batches[1].images


def test_a_phrase_asked_alone_does_not_depend_on_the_others(small_model, images, monkeypatch):
    phrases = ["a red ball", "a box", "the sky"]
    together = referring.predict(small_model, images[0], phrases, (30, 70))
    alone = [referring.predict(small_model, images[0], [p], (30, 70)) for p in phrases]
    assert together.shape == (3, 30, 70)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(referring, "PHRASES_PER_CALL", 2)
    cut = referring.predict(small_model, images[0], phrases, (30, 70))
    torch.testing.assert_close(together, cut, rtol=1e-4, atol=1e-5)


def test_the_grounding_query_most_similar_to_the_phrase_answers(small_model, images):
    texts = encode_distinct(small_model, ["a red ball"])
    output = small_model(images[:1], QuerySet(grounding=texts.grounding([["a red ball"]])))
    rows = output.layout.grounding
    similarity = torch.nn.functional.cosine_similarity(
        output.layers[-1].embeddings[0, rows], texts.sentences(["a red ball"])
    )
    best = rows.start + int(similarity.argmax())
    small = output.mask_logits(-1, slice(best, best + 1))[0].detach()
    # 48x80 pixels lie in a canvas of 64x96
    canvas = torch.nn.functional.interpolate(small[None], (64, 96), mode="bilinear")[0]
    predicted = referring.predict(small_model, images[0], ["a red ball"], (48, 80))
    torch.testing.assert_close(predicted, canvas[:, :48, :80], rtol=1e-4, atol=1e-5)


def test_phrases_asked_together_see_each_other(small_model, images):
    phrases = ["a red ball", "a box"]
    joint = referring.predict(small_model, images[0], phrases, (30, 70), is_joint=True)
    alone = referring.predict(small_model, images[0], phrases, (30, 70))
    assert joint.shape == alone.shape
    assert not torch.allclose(joint, alone)


def test_no_phrases_give_no_masks(small_model, images):
    assert referring.predict(small_model, images[0], [], (30, 70)).shape == (0, 30, 70)


def test_a_token_is_scored_from_those_before_it_only(small_model, images):
    features = small_model.encode_images(images)
    ids = small_model.tokenizer(["a red ball in a box", "a box"])
    whole = captioning._token_logits(small_model, features, ids)
    start = captioning._token_logits(small_model, features, ids[:, :3])
    torch.testing.assert_close(whole[:, :3], start, rtol=1e-4, atol=1e-5)


def test_greedy_captions_say_the_likeliest_token_each_time(small_model, images):
    features = small_model.encode_images(images)
    ids = torch.full((2, 1), small_model.tokenizer.start_id)
    for _ in range(4):
        likeliest = captioning._token_logits(small_model, features, ids)[:, -1].argmax(-1)
        ids = torch.cat([ids, likeliest[:, None]], dim=1)
    expected = [small_model.tokenizer.decode(row) for row in ids]
    assert captioning.predict(small_model, images, 4) == expected


def test_a_caption_has_no_more_tokens_than_asked_or_than_fit(small_model, images):
    features = small_model.encode_images(images)
    short = captioning.generate(small_model, features, max_tokens=3)
    long = captioning.generate(small_model, features, max_tokens=99, num_beams=2)
    assert all(caption.num_tokens <= 3 for caption in short)
    assert all(caption.num_tokens <= 11 for caption in long)


@pytest.mark.parametrize(("max_tokens", "num_beams"), [(0, 1), (5, 0)])
def test_a_caption_needs_a_token_and_a_beam(small_model, images, max_tokens, num_beams):
    features = small_model.encode_images(images)
    with pytest.raises(ValueError, match=f"at least 1; got {max_tokens} and {num_beams}"):
        captioning.generate(small_model, features, max_tokens=max_tokens, num_beams=num_beams)


def test_more_beams_are_at_least_as_likely_per_token(small_model, images):
    features = small_model.encode_images(images)
    means = [
        [c.log_prob / c.num_tokens for c in captioning.generate(small_model, features, **settings)]
        for settings in ({"max_tokens": 6}, {"max_tokens": 6, "num_beams": 8})
    ]
    assert all(many >= one - 1e-6 for one, many in zip(*means, strict=True))
    assert any(many > one + 1e-3 for one, many in zip(*means, strict=True))


def test_accuracy_counts_words_and_ends_of_the_true_caption(small_model, images):
    captions = ["a red ball", "a box"]
    accuracy = captioning.token_accuracy(small_model, images, captions)
    lengths = [int(ids.argmax()) for ids in small_model.tokenizer(captions)]
    assert accuracy.num_tokens == sum(lengths)
    assert 0 <= accuracy.num_correct <= accuracy.num_tokens


def test_a_model_that_knows_the_next_token_is_right_everywhere(small_model, images, monkeypatch):
    def knowing(model, features, ids):
        following = torch.cat([ids[:, 1:], ids[:, :1]], dim=1)
        return torch.nn.functional.one_hot(following, len(small_model.token_table)).float()

    monkeypatch.setattr(captioning, "_token_logits", knowing)
    accuracy = captioning.token_accuracy(small_model, images, ["a red ball", "a box"])
    assert accuracy.num_correct == accuracy.num_tokens > 0


def test_both_sides_give_the_mean_of_the_two_cosines(small_model, images):
    captions = ["a red ball", "a box"]
    scores = {
        side: retrieval.image_embeddings(small_model, images, side=side)
        @ retrieval.text_embeddings(small_model, captions, side=side).T
        for side in ("decoder", "backbone", "both")
    }
    torch.testing.assert_close(scores["both"], (scores["decoder"] + scores["backbone"]) / 2)
    vectors = retrieval.image_embeddings(small_model, images)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))


def test_images_are_embedded_by_their_global_query(small_model, images):
    with torch.no_grad():
        output = small_model(images, QuerySet())
    row = output.layers[-1].embeddings[:, output.layout.global_query].squeeze(1)
    expected = torch.nn.functional.normalize(row, dim=-1)
    torch.testing.assert_close(
        retrieval.image_embeddings(small_model, images, side="decoder"), expected
    )
