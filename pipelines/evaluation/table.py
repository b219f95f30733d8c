"""The table of a report: each metric beside its control, for terminals and Markdown."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line: what is measured, its key in the report, its control's key, what the control is."""

    group: str
    label: str
    key: str
    control_key: str = ""
    control: str = ""


_OBJECTS = "phrases of other objects"
_IMAGES = "captions of other images"
ROWS: tuple[Row, ...] = (
    Row(group="Segmentation", label="PQ", key="pq"),
    Row(group="Segmentation", label="PQ things", key="pq_things"),
    Row(group="Segmentation", label="PQ stuff", key="pq_stuff"),
    Row(group="Segmentation", label="Mask AP", key="ap"),
    Row(group="Segmentation", label="Box AP", key="box_ap"),
    Row(group="Segmentation", label="mIoU", key="miou"),
    Row(
        group="Referring",
        label="cIoU",
        key="refer_ciou",
        control_key="refer_ciou_shuffled",
        control=_OBJECTS,
    ),
    Row(
        group="Referring",
        label="mIoU",
        key="refer_miou",
        control_key="refer_miou_shuffled",
        control=_OBJECTS,
    ),
    Row(
        group="Referring",
        label="P@0.5",
        key="refer_p50",
        control_key="refer_p50_shuffled",
        control=_OBJECTS,
    ),
    Row(
        group="Referring",
        label="cIoU, relation needed",
        key="refer_ciou_relation",
        control_key="refer_ciou_relation_shuffled",
        control=_OBJECTS,
    ),
    Row(
        group="Captions",
        label="CIDEr",
        key="cider",
        control_key="cider_shuffled",
        control=_IMAGES,
    ),
    Row(
        group="Answers",
        label="VQA accuracy",
        key="vqa_accuracy",
        control_key="vqa_accuracy_shuffled",
        control="questions of other images",
    ),
    Row(
        group="Captions",
        label="BLEU-4",
        key="bleu4",
        control_key="bleu4_shuffled",
        control=_IMAGES,
    ),
    Row(group="Captions", label="ROUGE-L", key="rouge_l"),
    Row(group="Captions", label="METEOR", key="meteor"),
    Row(
        group="Captions",
        label="Token accuracy",
        key="caption_token_accuracy",
        control_key="caption_token_accuracy_shuffled",
        control=_IMAGES,
    ),
    Row(
        group="Retrieval",
        label="R@1",
        key="retrieval_r1",
        control_key="retrieval_r1_shuffled",
        control=_IMAGES,
    ),
    Row(
        group="Retrieval",
        label="R@5",
        key="retrieval_r5",
        control_key="retrieval_r5_shuffled",
        control=_IMAGES,
    ),
    Row(group="Retrieval", label="image to text R@1, all", key="retrieval_full_i2t_r1"),
    Row(group="Retrieval", label="text to image R@1, all", key="retrieval_full_t2i_r1"),
    Row(
        group="Zero-shot",
        label="Name of a new pair, top-1",
        key="zero_shot_top1",
        control_key="zero_shot_top1_shuffled",
        control="names of other objects",
    ),
    Row(
        group="Zero-shot",
        label="cIoU on images with new pairs",
        key="zero_shot_refer_ciou",
        control_key="zero_shot_refer_ciou_shuffled",
        control=_OBJECTS,
    ),
)


def present_rows(report: Mapping[str, Any]) -> list[Row]:
    """The rows whose metric the report has."""
    return [row for row in ROWS if row.key in report]


def shown(report: Mapping[str, Any], key: str) -> str:
    """A percentage with one decimal; a dash where the report has no number."""
    value = report.get(key) if key else None
    return "–" if value is None else f"{value:.1f}"


def rich_table(report: Mapping[str, Any], *, title: str) -> Table:
    """The table for a terminal."""
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("task")
    table.add_column("metric")
    table.add_column("value", justify="right", style="bold")
    table.add_column("control", justify="right")
    table.add_column("control is", style="dim")
    previous = ""
    for row in present_rows(report):
        is_new = row.group != previous
        if is_new and previous:
            table.add_section()
        table.add_row(
            row.group if is_new else "",
            row.label,
            shown(report, row.key),
            shown(report, row.control_key) if row.control else "",
            row.control,
        )
        previous = row.group
    return table


def markdown_table(report: Mapping[str, Any]) -> str:
    """The table as Markdown."""
    lines = ["| task | metric | value | control | control is |", "|---|---|---:|---:|---|"]
    for row in present_rows(report):
        control = shown(report, row.control_key) if row.control else ""
        value = shown(report, row.key)
        lines.append(f"| {row.group} | {row.label} | {value} | {control} | {row.control} |")
    return "\n".join(lines)
