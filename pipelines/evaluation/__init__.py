"""Metrics of every task, each with its protocol, and the run over a data set that fills them."""

from pipelines.evaluation.options import EvaluationOptions, options_of_run
from pipelines.evaluation.run import evaluate

__all__ = ["EvaluationOptions", "evaluate", "options_of_run"]
