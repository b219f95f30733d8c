from pipelines.evaluation.table import ROWS, markdown_table, present_rows, rich_table, shown

REPORT = {"pq": 61.23456, "refer_ciou": 45.0, "refer_ciou_shuffled": 12.06, "cider": None}


def test_a_metric_stands_beside_its_control() -> None:
    table = markdown_table(REPORT).splitlines()
    assert table[2] == "| Segmentation | PQ | 61.2 |  |  |"
    assert table[3] == "| Referring | cIoU | 45.0 | 12.1 | phrases of other objects |"


def test_a_number_that_is_not_there_is_a_dash() -> None:
    assert shown(REPORT, "cider") == shown(REPORT, "bleu4") == "–"


def test_only_measured_rows_are_shown() -> None:
    assert [row.key for row in present_rows(REPORT)] == ["pq", "refer_ciou", "cider"]
    assert rich_table(REPORT, title="t").row_count == 3


def test_keys_are_unique() -> None:
    keys = [row.key for row in ROWS]
    assert len(set(keys)) == len(keys)
