import copy
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdecoder.config import ConfigError
from xdecoder.text.tokenizer import Tokenizer

WHOLE = Tokenizer(context_length=77)
CUT = Tokenizer(context_length=40, num_merges=1000)
SENTENCES = [
    "the large red circle left of a blue square",
    "two dogs play frisbee",
    "naïve café",
    "a 21 year old",
]


@pytest.mark.parametrize("tokenizer", [WHOLE, CUT], ids=["whole", "cut"])
@pytest.mark.parametrize("text", SENTENCES)
def test_decode_gives_back_what_was_encoded(tokenizer, text):
    decoded = tokenizer.decode(tokenizer([text])[0])
    # digits are words of their own
    assert decoded.replace(" ", "") == text.replace(" ", "")
    assert tokenizer.decode(tokenizer([decoded])[0]) == decoded


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=20))
def test_any_text_can_be_written_with_few_merges(text):
    ids = CUT([text], length=40)[0]
    assert ids.shape == (40,)
    assert ids.min() >= 0
    assert ids.max() == CUT.end_id


def test_vocabulary_shrinks_with_merges_and_common_words_stay_whole():
    assert WHOLE.vocabulary_size == 49408
    assert CUT.vocabulary_size == 1514
    assert CUT(["the"])[0].tolist() == [CUT.start_id, WHOLE(["the"])[0, 1].item(), CUT.end_id]


def test_texts_are_padded_with_the_end_to_the_longest():
    ids = CUT(["the", "the the the"])
    assert ids.shape == (2, 5)
    assert ids[0].tolist()[2:] == [CUT.end_id] * 3


def test_long_texts_are_cut_and_end():
    ids = CUT(["word " * 100])
    assert ids.shape == (1, 40)
    assert ids[0, -1] == CUT.end_id
    short = CUT(["a b c d e f"], length=4)[0].tolist()
    assert short[0] == CUT.start_id
    assert short[-1] == CUT.end_id


def test_letter_case_and_spaces_do_not_matter():
    assert CUT([" A  Red\tCircle "]).tolist() == CUT(["a red circle"]).tolist()


def test_names_of_special_tokens_in_a_text_are_plain_text():
    body = CUT(["<end_of_text>"])[0].tolist()[1:-1]
    assert CUT.end_id not in body


def test_copies_and_pickles_encode_alike():
    for other in (copy.deepcopy(CUT), pickle.loads(pickle.dumps(CUT))):
        assert other(SENTENCES).tolist() == CUT(SENTENCES).tolist()


def test_a_bare_string_is_refused():
    with pytest.raises(TypeError, match="sequence of strings; got 'a cat'"):
        CUT("a cat")


def test_too_many_merges_are_refused():
    with pytest.raises(ConfigError, match=r"num_merges must be in 0\.\.48894.*got 50000"):
        Tokenizer(context_length=8, num_merges=50000)


def test_a_context_without_room_is_refused():
    with pytest.raises(ConfigError, match=r"context_length must be at least 3.*got 2"):
        Tokenizer(context_length=2)
