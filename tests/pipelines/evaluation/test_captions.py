import json
import shutil
from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from pipelines.evaluation.captions import score_captions
from pipelines.evaluation.ptb import ptb_sentences, ptb_tokens

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs a Java runtime")


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A dog's ball; isn't it?", "a dog 's ball is n't it"),
        ("Mr. Smith at 5 p.m. on St. James street.", "mr. smith at 5 p.m. on st. james street"),
        ("3,000 people, half-full trains -- no. 5...", "3,000 people half-full trains no. 5"),
        ("a (red) cup and/or AT&T van", "a -lrb- red -rrb- cup and/or at&t van"),
        ("I cannot, you’re gonna wait !!", "i can not you 're gon na wait !!"),
        ("$5.00 & 50% off #1", "$ 5.00 & 50 % off # 1"),
    ],
)
def test_tokens_are_those_of_the_treebank(caption: str, tokens: str) -> None:
    assert ptb_tokens(caption) == tokens.split()


def test_recorded_tokens_of_the_java_tool_are_reproduced(shared_dir: Path) -> None:
    path = shared_dir / "metric_refs" / "captions" / "coco_fakecap"
    recorded = json.loads((path / "fakecap_val2017_intersection.json").read_text())
    for key, raw in recorded["references_raw"].items():
        assert ptb_sentences(raw) == recorded["references_tokenized"][key]
        hypothesis = recorded["hypotheses_raw"][key]
        assert ptb_sentences([hypothesis]) == recorded["hypotheses_tokenized"][key]


@needs_java
def test_our_tokens_equal_those_of_java_on_every_caption_at_hand(shared_dir: Path) -> None:
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    annotations = shared_dir / "data" / "coco_mini" / "annotations"
    captions = {
        row["id"]: [{"caption": " ".join(row["caption"].split())}]
        for split in ("train2017", "val2017")
        for row in json.loads((annotations / f"captions_{split}.json").read_text())["annotations"]
    }
    theirs = tokenizer.tokenize(captions)
    ours = {key: ptb_sentences([rows[0]["caption"]]) for key, rows in captions.items()}
    assert {key: ours[key] for key in theirs if ours[key] != theirs[key]} == {}


def test_recorded_scores_of_generated_captions_are_reproduced(shared_dir: Path) -> None:
    path = shared_dir / "metric_refs" / "captions" / "coco_fakecap"
    recorded = json.loads((path / "fakecap_val2017_intersection.json").read_text())
    scores = score_captions(recorded["references_raw"], recorded["hypotheses_raw"])
    expected = recorded["expected"]
    assert scores.bleu == pytest.approx([expected[f"BLEU-{n}"] for n in (1, 2, 3, 4)], abs=1e-12)
    assert scores.rouge_l == pytest.approx(expected["ROUGE_L"], abs=1e-12)
    assert scores.cider == pytest.approx(expected["CIDEr"], abs=1e-12)
    assert scores.cider_per_image == pytest.approx(recorded["cider_per_image"], abs=1e-9)
    assert scores.meteor is None


def test_recorded_scores_of_human_captions_are_reproduced(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "coco_mini" / "annotations"
    recorded = json.loads(
        (shared_dir / "metric_refs/captions/coco_mini_val_human_leave_one_out.json").read_text()
    )
    rows = json.loads((folder / "captions_val2017.json").read_text())["annotations"]
    captions: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row["id"]):
        captions.setdefault(str(row["image_id"]), []).append(row["caption"])
    references = {key: value[1:] for key, value in captions.items()}
    scores = score_captions(references, {key: value[0] for key, value in captions.items()})
    assert scores.cider == pytest.approx(recorded["expected"]["CIDEr"], abs=1e-12)
    assert scores.bleu[3] == pytest.approx(recorded["expected"]["BLEU-4"], abs=1e-12)


@pytest.mark.parametrize(
    ("name", "bleu", "rouge", "cider"),
    [
        ("good", (0.6667, 0.4899, 0.3469, 0.0), 0.4280, 0.5637),
        ("bad", (0.4815, 0.2404, 0.1359, 0.0), 0.3121, 0.2790),
    ],
)
def test_published_example_is_reproduced(
    shared_dir: Path, name: str, bleu: tuple[float, ...], rouge: float, cider: float
) -> None:
    folder = shared_dir / "metric_refs" / "captions" / "clipscore_example"
    references = json.loads((folder / "refs.json").read_text())
    scores = score_captions(references, json.loads((folder / f"{name}_captions.json").read_text()))
    assert scores.bleu == pytest.approx(bleu, abs=5e-5)
    assert (scores.rouge_l, scores.cider) == pytest.approx((rouge, cider), abs=5e-5)


def test_a_caption_of_another_image_scores_less() -> None:
    references = {1: ["a red cup on sand"], 2: ["two blue rings near a lake"], 3: ["a dog"]}
    right = {1: "a red cup on sand", 2: "two blue rings near a lake", 3: "a dog"}
    wrong = {1: right[2], 2: right[3], 3: right[1]}
    assert score_captions(references, right).cider > 2 * score_captions(references, wrong).cider


def test_different_images_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"about the same images.* got 1 and 2, differing in \[7\]"
    ):
        score_captions({3: ["a"], 7: ["b"]}, {3: "a"})


def test_java_that_is_needed_and_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"java=need: no `java` on the path; install"):
        score_captions({3: ["a"]}, {3: "a"}, java="need")


def test_a_metric_without_java_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    scores = score_captions({3: ["a red cup"]}, {3: "a red cup"}, java="auto")
    assert scores.meteor is None
    assert scores.tokenizer == "ptb-rules"
    assert "no `java` on the path" in scores.skipped["meteor"]


def test_unknown_choices_about_java_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"java must be one of .*'auto'.*; got 'maybe'"):
        score_captions({3: ["a"]}, {3: "a"}, java="maybe")


@needs_java
@pytest.mark.slow
def test_java_gives_the_published_meteor_and_takes_odd_captions(shared_dir: Path) -> None:
    folder = shared_dir / "metric_refs" / "captions" / "clipscore_example"
    references = json.loads((folder / "refs.json").read_text())
    good = json.loads((folder / "good_captions.json").read_text())
    scores = score_captions(references, good, java="need")
    assert scores.meteor == pytest.approx(0.3444, abs=5e-5)
    assert scores.tokenizer_check["num_captions_where_tokenizers_differ"] == 0
    odd = {1: "two\rlines\u2028or three", 2: "", 3: "a dog"}
    truth = {1: ["two lines or three"], 2: ["a cat", "the cat"], 3: ["a dog"]}
    assert score_captions(truth, odd, java="need").cider_per_image[3] > 0
