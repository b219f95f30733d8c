"""The official rules on cases computed by hand."""

import pytest

from pipelines.vqa import answer_accuracy, normal_answer


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The red cup.", "red cup"),
        ("Two", "2"),
        ("none", "0"),
        ("an  apple,  a pear", "apple pear"),
        ("dont know", "don't know"),
        ("wouldnt've", "wouldn't've"),
        ("youve", "you've"),
        ("yall'd've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        # a mark between letters becomes a space, beside a space it goes
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("what?!", "what"),
        # a comma inside a number makes every mark go
        ("1,000 t-shirts", "1000 tshirts"),
        # only the stop that no digit follows goes
        ("3.5 p.m.", "3.5 pm"),
        ("eleven", "eleven"),
        ("it's", "it's"),
    ],
)
def test_answers_are_brought_to_one_spelling(answer: str, normal: str) -> None:
    assert normal_answer(answer) == normal


@pytest.mark.parametrize(
    ("answer", "people", "accuracy"),
    [
        ("yes", ["yes"] * 10, 1.0),
        ("no", ["yes"] * 10, 0.0),
        # one agrees: the nine others see one, the one sees none
        ("red", ["red"] + ["blue"] * 9, 9 * (1 / 3) / 10),
        # two agree: eight see two, two see one
        ("red", ["red"] * 2 + ["blue"] * 8, (8 * 2 / 3 + 2 * 1 / 3) / 10),
        # three agree: seven see three, three see two
        ("red", ["red"] * 3 + ["blue"] * 7, (7 * 1 + 3 * 2 / 3) / 10),
        ("red", ["red"] * 4 + ["blue"] * 6, 1.0),
        # spelling is evened out where people disagree, on both sides
        ("The two.", ["2"] * 9 + ["3"], 1.0),
        # and left alone where they agree
        ("two", ["2"] * 10, 0.0),
        ("YES", ["yes"] * 10, 1.0),
        ("yes\n", ["yes\t"] * 10, 1.0),
    ],
)
def test_accuracy_by_hand(answer: str, people: list[str], accuracy: float) -> None:
    assert answer_accuracy(answer, people) == pytest.approx(accuracy, abs=1e-15)


def test_a_question_that_nobody_answered_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the answers of people; got none"):
        answer_accuracy("yes", [])
