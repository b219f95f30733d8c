"""Metrics of every task, each with its protocol, and the run over a data set that fills them."""
