"""Nouns of captions by rules; the captions are of the kinds that people write of photographs."""

import pytest

from xdecoder.text.nouns import nouns_of, word_stem


@pytest.mark.parametrize(
    ("caption", "nouns"),
    [
        ("A man riding an elephant in a river.", ("man", "elephant", "river")),
        ("Two small dogs standing next to a toilet", ("dogs", "toilet")),
        ("A kitchen with stove, window, and sink in it.", ("kitchen", "stove", "window", "sink")),
        ("The men are surfing the wave on surfboards.", ("men", "wave", "surfboards")),
        ("a parked red car and a smiling woman", ("car", "woman")),
        ("A cat sits on a mat near the cat.", ("cat", "mat")),
        ("A person walks by the building", ("person", "building")),
        ("It is very large.", ()),
        ("", ()),
    ],
)
def test_nouns_of_plain_captions_are_found(caption, nouns):
    assert nouns_of(caption) == nouns


def test_every_noun_is_a_word_of_the_caption():
    caption = "Three giraffes stuck behind the confines of a zoo's fence!"
    assert set(nouns_of(caption)) <= set(caption.lower().replace("!", "").split())


@pytest.mark.parametrize(
    ("word", "stem"),
    [
        ("Dogs", "dog"),
        ("people", "person"),
        ("benches", "bench"),
        ("puppies", "puppy"),
        ("glass", "glass"),
        ("bus", "bus"),
        ("traffic lights", "traffic light"),
        ("", ""),
    ],
)
def test_words_for_one_kind_of_thing_share_a_stem(word, stem):
    assert word_stem(word) == stem
