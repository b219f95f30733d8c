from dataclasses import replace

import torch

from xdecoder.batch import PhraseTargets
from xdecoder.losses.draws import Draws
from xdecoder.tasks.config import GroundingWeights
from xdecoder.tasks.questions import AskedRegions, draw_questions

TEMPLATES = ("{}.", "a photo of a {}.")


def _drawn(batch, seed=0, *, has_nouns=True, **changes):
    return draw_questions(
        batch,
        Draws(seed),
        grounding=GroundingWeights(**changes),
        templates=TEMPLATES,
        has_nouns=has_nouns,
    )


def _without_phrases(batch, image):
    phrases = list(batch.phrases)
    phrases[image] = PhraseTargets(phrases=(), masks=phrases[image].masks[:0])
    return replace(batch, phrases=tuple(phrases))


def test_an_image_without_phrases_is_asked_for_all_segments_of_some_classes(batches):
    batch = _without_phrases(batches[0], 1)
    segments = batch.segments[1]
    # two balls
    many = replace(segments, class_ids=torch.tensor([0, 2, 2, 3]))
    batch = replace(batch, segments=(batch.segments[0], many))
    numbers = set()
    for seed in range(20):
        asked = _drawn(batch, seed, max_phrases=3).asked
        assert not asked[0].are_classes
        assert asked[1].are_classes
        names = [text.removesuffix(".").split()[-1] for text in asked[1].texts]
        numbers.add(len(set(names)))
        assert names.count("ball") in (0, 2)
        for name, mask, number in zip(names, asked[1].masks, asked[1].ids, strict=True):
            index = batch.vocabulary.names.index(name)
            rows = [i for i, c in enumerate(many.class_ids.tolist()) if c == index]
            assert any(torch.equal(mask, many.masks[row]) for row in rows)
            # one meaning has one number, under whatever prompt
            assert number == asked[1].ids[names.index(name)]
    assert numbers == {1, 2, 3}


def test_classes_are_not_asked_where_that_is_off(batches):
    batch = _without_phrases(batches[0], 1)
    asked = _drawn(batch, asks_classes=False).asked
    assert asked[1].texts == ()
    assert not asked[1].are_classes


def test_nouns_that_are_classes_are_left_out_and_the_caption_comes_last(batches):
    captions = (("Two balls and a dog near some boxes.",), ())
    batch = replace(batches[0], captions=captions)
    nouns = _drawn(batch).nouns
    assert len(nouns[0].texts) == len(nouns[0].ids) == 2
    assert nouns[0].texts[0].removesuffix(".").endswith("dog")
    assert nouns[0].texts[1] == captions[0][0]
    assert nouns[1].texts == ()


def test_a_noun_in_the_plural_means_the_same(batches):
    first = replace(batches[0], captions=(("a dog",), ("dogs",)))
    nouns = _drawn(first).nouns
    assert nouns[0].ids[0] == nouns[1].ids[0]
    assert nouns[0].ids[1] != nouns[1].ids[1]


def test_without_captions_or_where_they_are_off_there_are_no_nouns(batches):
    with_captions = replace(batches[0], captions=(("a dog",), ("a cat",)))
    assert not any(nouns.texts for nouns in _drawn(batches[0]).nouns)
    assert not any(nouns.texts for nouns in _drawn(with_captions, has_nouns=False).nouns)


def test_the_first_text_of_each_meaning_is_shown():
    asked = AskedRegions(
        texts=("a cat.", "art of a cat.", "a sky."),
        masks=torch.zeros(3, 4, 6, dtype=torch.bool),
        ids=(4, 4, 9),
        are_classes=True,
    )
    assert asked.distinct_texts() == ["a cat.", "a sky."]
    assert asked.without_classes().texts == ()
