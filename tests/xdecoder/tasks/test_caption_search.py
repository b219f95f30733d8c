"""Searches on a small language whose probabilities are written down."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from xdecoder.tasks.caption_search import beam_search, greedy

# a start, an end and four words
START, END = 4, 5
ENDS = SimpleNamespace(start_id=START, end_id=END)


class Language:
    """Next tokens that depend on the text so far, image by image; kept texts can be reordered."""

    def __init__(self, seeds, num_beams=1):
        self.tables = [
            torch.randn(6, 6, 6, generator=torch.Generator().manual_seed(seed)) for seed in seeds
        ]
        self.texts = [(START,)] * (len(seeds) * num_beams)
        self.is_new = True
        self.num_beams = num_beams

    def step(self, token_ids):
        if not self.is_new:
            added = zip(self.texts, token_ids.tolist(), strict=True)
            self.texts = [(*text, token) for text, token in added]
        self.is_new = False
        rows = [self.logits(i // self.num_beams, text) for i, text in enumerate(self.texts)]
        return torch.stack(rows)

    def reorder(self, streams):
        self.texts = [self.texts[i] for i in streams.tolist()]

    def logits(self, image, text):
        logits = self.tables[image][text[-2] if len(text) > 1 else START, text[-1]].clone()
        logits[START] = -30.0
        # no text is empty
        logits[END] -= 30.0 if len(text) == 1 else 0.0
        return logits

    def log_prob(self, image, ids):
        text = (START, *ids)
        return sum(
            float(self.logits(image, text[:i]).log_softmax(0)[text[i]]) for i in range(1, len(text))
        )


def all_texts(max_tokens):
    words = range(4)
    for length in range(1, max_tokens + 1):
        for ids in itertools.product(words, repeat=length):
            if length == max_tokens:
                yield ids
            else:
                yield (*ids, END)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_takes_the_likeliest_token_each_time(seed):
    language = Language([seed, seed + 50])
    for image, found in enumerate(greedy(language, ENDS, 2, 6)):
        text = (START,)
        while len(text) <= 6 and text[-1] != END:
            text = (*text, int(language.logits(image, text).argmax()))
        assert found.ids == text[1:]
        assert found.log_prob == pytest.approx(language.log_prob(image, found.ids), abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_wide_beams_find_the_best_of_all_texts(seed):
    max_tokens = 4
    language = Language([seed, seed + 50], num_beams=100)
    found = beam_search(language, ENDS, 2, max_tokens, 100)
    for image in range(2):
        texts = {ids: language.log_prob(image, ids) / len(ids) for ids in all_texts(max_tokens)}
        assert found[image].ids == max(texts, key=texts.__getitem__)
        assert found[image].log_prob == pytest.approx(
            language.log_prob(image, found[image].ids), abs=1e-4
        )


def test_beams_find_better_texts_than_greedy_steps():
    gains = []
    for seed in range(20):
        one = greedy(Language([seed]), ENDS, 1, 6)[0]
        many = beam_search(Language([seed], num_beams=4), ENDS, 1, 6, 4)[0]
        gains.append(many.log_prob / len(many.ids) - one.log_prob / len(one.ids))
    assert sum(gains) > 0
    assert sum(gain > 1e-6 for gain in gains) >= 5


def test_nothing_is_added_after_the_end():
    for seed in range(10):
        for found in greedy(Language([seed, seed + 9]), ENDS, 2, 8):
            assert END not in found.ids[:-1]
            assert math.isfinite(found.log_prob)
