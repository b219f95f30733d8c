"""Published figures, in percent, to print beside ours: what was measured, on what, and by whom.

A figure belongs to the protocol of its source; `protocol_note` says where that is known to differ
from the field's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_README = "microsoft/X-Decoder README"
_MMDET = "open-mmlab/mmdetection projects/XDecoder"
_OPENSEED = "IDEA-Research/OpenSeeD, figures in the repository; OpenSeeD, arXiv 2303.08131"
_PAPER = "X-Decoder, arXiv 2212.11270"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the paper's tables: a data set of ours, a metric of ours, and a heading."""

    data_set: str
    key: str
    heading: str


# the order of X-Decoder's paper: task-specific transfer first, then zero-shot segmentation
COLUMNS: tuple[Column, ...] = (
    Column(data_set="ade20k-panoptic", key="pq", heading="ADE PQ"),
    Column(data_set="ade20k-instance", key="ap", heading="ADE AP"),
    Column(data_set="ade20k-instance", key="box_ap", heading="ADE box AP"),
    Column(data_set="ade20k-panoptic", key="miou", heading="ADE mIoU"),
    Column(data_set="coco-panoptic", key="pq", heading="COCO PQ"),
    Column(data_set="coco-panoptic", key="ap", heading="COCO AP"),
    Column(data_set="coco-panoptic", key="box_ap", heading="COCO box AP"),
    Column(data_set="coco-panoptic", key="miou", heading="COCO mIoU"),
    Column(data_set="refcocog-umd-val", key="refer_ciou", heading="RefCOCOg cIoU"),
    Column(data_set="coco-karpathy", key="retrieval_full_t2i_r1", heading="COCO IR@1"),
    Column(data_set="coco-karpathy", key="retrieval_full_i2t_r1", heading="COCO TR@1"),
    Column(data_set="coco-karpathy", key="cider", heading="COCO CIDEr"),
    Column(data_set="coco-karpathy", key="bleu4", heading="COCO BLEU-4"),
    Column(data_set="flickr30k", key="retrieval_full_t2i_r1", heading="Flickr IR@1"),
    Column(data_set="flickr30k", key="retrieval_full_i2t_r1", heading="Flickr TR@1"),
    Column(data_set="ade20k-847", key="miou", heading="A-847 mIoU"),
    Column(data_set="voc2012", key="miou", heading="VOC mIoU"),
    Column(data_set="pascal-context-59", key="miou", heading="PC-59 mIoU"),
    Column(data_set="pascal-context-459", key="miou", heading="PC-459 mIoU"),
    Column(data_set="sunrgbd-37", key="miou", heading="SUN mIoU"),
    Column(data_set="scannet-20", key="miou", heading="Scan-20 mIoU"),
    Column(data_set="scannet-40", key="miou", heading="Scan-40 mIoU"),
    Column(data_set="cityscapes", key="miou", heading="Cityscapes mIoU"),
    Column(data_set="cityscapes", key="ap", heading="Cityscapes AP"),
    Column(data_set="cityscapes", key="pq", heading="Cityscapes PQ"),
    Column(data_set="bdd10k-semantic", key="miou", heading="BDD mIoU"),
    Column(data_set="bdd10k-panoptic", key="pq", heading="BDD PQ"),
)


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """The figures of one model by heading of `COLUMNS`."""

    source: str
    figures: Mapping[str, float]
    protocol_note: str = ""


PUBLISHED: Mapping[str, PublishedModel] = {
    "focalt-last": PublishedModel(
        source=_README,
        figures={
            "ADE AP": 9.6, "ADE mIoU": 23.9,
            "COCO PQ": 50.8, "COCO AP": 39.5, "COCO mIoU": 62.4,
            "RefCOCOg cIoU": 57.6, "COCO IR@1": 30.0, "COCO TR@1": 48.3, "COCO CIDEr": 83.3,
        },
        protocol_note="RefCOCOg by protocol xdecoder-v2",
    ),
    "focalt-best-openseg": PublishedModel(
        source=f"{_README} and {_MMDET}",
        figures={
            "ADE PQ": 19.1, "ADE AP": 10.1, "ADE mIoU": 25.1,
            "COCO PQ": 48.8, "COCO AP": 37.0, "COCO mIoU": 60.2,
            "COCO IR@1": 30.2, "COCO TR@1": 48.4,
            "A-847 mIoU": 6.2, "SUN mIoU": 35.7, "Scan-20 mIoU": 38.4, "Scan-40 mIoU": 22.4,
            "Cityscapes mIoU": 50.2, "Cityscapes AP": 18.5, "Cityscapes PQ": 37.7,
            "BDD mIoU": 47.6, "BDD PQ": 16.9,
        },
        protocol_note="panoptic object threshold 0.4 on ADE, Cityscapes and BDD",
    ),
    "focalt-last-novg": PublishedModel(
        source=_MMDET,
        figures={
            "COCO PQ": 51.16, "COCO AP": 39.7, "COCO mIoU": 62.1, "RefCOCOg cIoU": 57.85,
            "COCO CIDEr": 116.81, "COCO BLEU-4": 35.26,
        },
        protocol_note="RefCOCOg by protocol xdecoder-v2",
    ),
    "focall-last": PublishedModel(
        source=_README,
        figures={
            "ADE AP": 11.5, "ADE mIoU": 23.6,
            "COCO PQ": 56.2, "COCO AP": 46.4, "COCO mIoU": 65.5,
            "RefCOCOg cIoU": 62.8, "COCO IR@1": 34.9, "COCO TR@1": 54.4,
        },
        protocol_note="RefCOCOg by protocol xdecoder-v2",
    ),
    "paper-T-finetuned": PublishedModel(
        source=_PAPER,
        figures={"ADE PQ": 41.6, "COCO PQ": 52.6, "COCO AP": 41.3, "COCO mIoU": 62.4},
    ),
    "paper-L-zeroshot": PublishedModel(
        source=f"{_PAPER}, as confirmed by later papers' tables",
        figures={
            "ADE PQ": 21.8, "ADE AP": 13.1, "ADE mIoU": 29.6, "A-847 mIoU": 9.2, "VOC mIoU": 97.7,
            "PC-59 mIoU": 64.0, "PC-459 mIoU": 16.1, "SUN mIoU": 43.0, "Scan-20 mIoU": 49.5,
            "Scan-40 mIoU": 29.7,
        },
        protocol_note="VOC with only the classes that occur in the image",
    ),
    "openseed-T": PublishedModel(
        source=_OPENSEED,
        figures={
            "ADE PQ": 19.8, "ADE AP": 14.1, "ADE box AP": 17.0, "ADE mIoU": 22.9,
            "COCO PQ": 55.4, "COCO AP": 47.6, "COCO box AP": 52.0, "COCO mIoU": 64.0,
            "Scan-20 mIoU": 45.1, "Cityscapes mIoU": 46.1, "Cityscapes AP": 26.2,
            "Cityscapes PQ": 37.3, "BDD mIoU": 44.8, "BDD PQ": 17.2,
        },
        protocol_note="boxes ranked by name and mask",
    ),
    "openseed-L": PublishedModel(
        source=_OPENSEED,
        figures={
            "ADE PQ": 19.7, "ADE AP": 15.0, "ADE box AP": 17.7, "ADE mIoU": 23.4,
            "COCO PQ": 59.5, "COCO AP": 53.2, "COCO box AP": 58.2, "COCO mIoU": 68.6,
            "Scan-20 mIoU": 48.7, "Cityscapes mIoU": 47.8, "Cityscapes AP": 33.2,
            "Cityscapes PQ": 41.4, "BDD mIoU": 47.4, "BDD PQ": 19.4,
        },
        protocol_note="boxes ranked by name and mask",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One figure: ours, the published one, and by how much ours is higher; None where unknown."""

    heading: str
    data_set: str
    ours: float | None
    published: float | None

    @property
    def difference(self) -> float | None:
        """Ours minus the published figure."""
        if self.ours is None or self.published is None:
            return None
        return self.ours - self.published


def compare(results: Mapping[str, Mapping[str, object]], against: str) -> list[Comparison]:
    """Every column of the paper for which there is a figure of ours or a published one.

    Empty where there is no figure of ours at all.
    """
    figures = PUBLISHED[against].figures
    rows = []
    for column in COLUMNS:
        value = results.get(column.data_set, {}).get(column.key)
        ours = float(value) if isinstance(value, int | float) else None
        if ours is not None or column.heading in figures:
            rows.append(
                Comparison(
                    heading=column.heading,
                    data_set=column.data_set,
                    ours=ours,
                    published=figures.get(column.heading),
                )
            )
    return rows if any(row.ours is not None for row in rows) else []


def comparison_markdown(rows: Sequence[Comparison], against: str) -> str:
    """The comparison as Markdown, one figure a line."""
    lines = [f"| | ours | {against} | difference |", "|---|---:|---:|---:|"]
    lines += [f"| {row.heading} | {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join([*lines, "", _source_line(against)])


def comparison_latex(rows: Sequence[Comparison], against: str) -> str:
    """The comparison as a LaTeX table with a column for each figure, as the paper prints it."""
    cells = [_cells(row) for row in rows]
    lines = [
        f"% {_source_line(against)}",
        rf"\begin{{tabular}}{{l{'r' * len(rows)}}}",
        r"\toprule",
        " & ".join(["", *(row.heading.replace("%", r"\%") for row in rows)]) + r" \\",
        r"\midrule",
    ]
    for place, name in enumerate(("ours", against, "difference")):
        values = [cell[place].replace("–", "--") for cell in cells]
        lines.append(" & ".join([name.replace("_", r"\_"), *values]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _cells(row: Comparison) -> tuple[str, str, str]:
    difference = "–" if row.difference is None else f"{row.difference:+.1f}"
    return _shown(row.ours), _shown(row.published), difference


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _source_line(against: str) -> str:
    model = PUBLISHED[against]
    note = f"; {model.protocol_note}" if model.protocol_note else ""
    return f"{against}: {model.source}{note}."
