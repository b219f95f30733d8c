"""Which family answers which question."""

import pytest

import xdecoder
from xdecoder.prediction import ANSWERED, check_answered

_NO_QUESTIONS = {"XDecoder", "MaskFormer", "OpenSeeD", "Vocabulary"}


def test_every_question_has_a_family_that_answers_it():
    questions = set(xdecoder.__all__) - _NO_QUESTIONS
    assert {name for names in ANSWERED.values() for name in names} == questions
    assert set(ANSWERED) == _NO_QUESTIONS - {"Vocabulary"}


def test_a_question_of_ones_own_may_ask_anything():
    class Captioning:
        pass

    class OpenSeeD:
        pass

    check_answered(OpenSeeD(), Captioning())
    with pytest.raises(TypeError, match="must be asked of XDecoder; got a model of the family Op"):
        check_answered(OpenSeeD(), xdecoder.Captioning())
