"""The evaluation sets that have names, each a split of a source."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """A split of a source, with the name of the source."""

    source: str
    split: str
    split_by: str = ""


EVALUATION_SETS: dict[str, EvaluationSet] = {
    **{
        f"{name}-unc-{split}": EvaluationSet(source=name, split=split, split_by="unc")
        for name in ("refcoco", "refcoco+")
        for split in ("val", "testA", "testB")
    },
    "refcocog-umd-val": EvaluationSet(source="refcocog", split="val", split_by="umd"),
    "refcocog-umd-test": EvaluationSet(source="refcocog", split="test", split_by="umd"),
    "refcocog-google-val": EvaluationSet(source="refcocog", split="val", split_by="google"),
    "karpathy-val": EvaluationSet(source="coco-karpathy", split="val"),
    "karpathy-test": EvaluationSet(source="coco-karpathy", split="test"),
    "coco-2017-val": EvaluationSet(source="coco", split="val2017"),
    "coco-2014-val": EvaluationSet(source="coco", split="val2014"),
    "flickr30k-val": EvaluationSet(source="flickr30k", split="val"),
    "flickr30k-test": EvaluationSet(source="flickr30k", split="test"),
    "ade20k-val": EvaluationSet(source="ade20k-150", split="val"),
    "cityscapes-val": EvaluationSet(source="cityscapes", split="val"),
    "bdd10k-val": EvaluationSet(source="bdd10k", split="val"),
    "scannet-val": EvaluationSet(source="scannet25k-20", split="val"),
    "sunrgbd-test": EvaluationSet(source="sunrgbd-37", split="test"),
    "voc2012-val": EvaluationSet(source="voc2012", split="val"),
    "pascal-context-val": EvaluationSet(source="pascal-context-59", split="val"),
}
