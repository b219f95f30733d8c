"""VQA accuracy: agreement with ten people, after answers are brought to one spelling.

Source: GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py (the rules, with their
corner cases; the code is our own).
"""

import re
from collections.abc import Sequence

# people who must agree for a full point
_NUM_FOR_FULL = 3
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)
_NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBER_WORDS)}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# the official pattern also means to look behind the stop, but does not; only what follows counts
_STOP = re.compile(r"\.(?!\d)")
# the official call passes a flag where the number of replacements belongs
_MAX_STOPS = 32
_SINGLE = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's "
    "how'd how'll how's i'm i've isn't it'd it'll ma'am might've mightn't must've mustn't needn't "
    "not've o'clock oughtn't shan't should've shouldn't somebody'll somebody's someone'd "
    "someone'll someone's something'd something'll that's there'd there're there's they'd they'll "
    "they're they've wasn't we've weren't what'll what're what's what've when's where'd where's "
    "where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd "
    "you'll you're you've"
)
_DOUBLE = (
    "couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've "
    "someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll "
    "you'd've i'd've"
)


def _contractions() -> dict[str, str]:
    """The spellings with a lost apostrophe that the official table repairs."""
    table = {word.replace("'", ""): word for word in _SINGLE.split()}
    for word in _DOUBLE.split():
        first, second, third = word.split("'")
        table |= {f"{first}{second}'{third}": word, f"{first}'{second}{third}": word}
    # three apostrophes, a leading one, and one entry of the official table that is the wrong way
    table |= dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've")
    table |= dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at")
    return table | {"twas": "'twas", "somebody'd": "somebodyd"}


_CONTRACTIONS = _contractions()


def normal_answer(answer: str) -> str:
    """An answer without punctuation, articles and capitals, small numbers as digits."""
    words = [_NUMBERS.get(word, word) for word in _without_punctuation(answer).lower().split()]
    kept = [word for word in words if word not in _ARTICLES]
    return " ".join(_CONTRACTIONS.get(word, word) for word in kept)


def answer_accuracy(answer: str, people: Sequence[str]) -> float:
    """The mean over people of min(1, agreement with the others / 3), 0..1.

    Spelling is only evened out where the people disagree, as in the official script.

    Raises:
        ValueError: nobody answered.
    """
    if not people:
        raise ValueError("answer_accuracy: needs the answers of people; got none.")
    given, others = _one_line(answer), [_one_line(text) for text in people]
    if len(set(others)) > 1:
        given, others = normal_answer(given), [normal_answer(text) for text in others]
    is_same = [text.lower() == given.lower() for text in others]
    total = sum(is_same)
    return sum(min(1.0, (total - same) / _NUM_FOR_FULL) for same in is_same) / len(is_same)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str) -> str:
    """Marks next to a space are dropped, others become a space; numbers keep their stops."""
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        is_at_edge = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if is_at_edge or has_number else " ")
    return _STOP.sub("", result, count=_MAX_STOPS)
