"""Protocols as data: what distinguishes numbers that carry the same name."""

from collections.abc import Mapping
from dataclasses import dataclass

REFER_PER_SENTENCE = "refer-per-sentence"
REFER_XDECODER = "xdecoder-v2"


@dataclass(frozen=True, kw_only=True)
class ReferProtocol:
    """How referring segmentation is asked and counted.

    is_first_sentence_only: of the last ref of each object, one sentence; is_joint: all phrases of
    an image enter the decoder together and see each other; is_lower_case: phrases are lower-cased
    raw text; epsilon: added to each union before the mean over sentences.
    """

    is_first_sentence_only: bool
    is_joint: bool
    is_lower_case: bool
    epsilon: float
    source: str


REFER_PROTOCOLS: Mapping[str, ReferProtocol] = {
    REFER_PER_SENTENCE: ReferProtocol(
        is_first_sentence_only=False,
        is_joint=False,
        is_lower_case=False,
        epsilon=0.0,
        source="yz93/LAVT-RIS, test.py: one forward pass for each sentence",
    ),
    REFER_XDECODER: ReferProtocol(
        is_first_sentence_only=True,
        is_joint=True,
        is_lower_case=True,
        epsilon=1e-6,
        source="microsoft/X-Decoder v2.0: refcoco2json.py, evaluate_grounding, GroundingEvaluator",
    ),
}
