"""Scores of anyone's prediction files against ground-truth files; no model is involved."""

from pipelines.evaluation.files.score import METRICS, FileOptions, score_files

__all__ = ["METRICS", "FileOptions", "score_files"]
