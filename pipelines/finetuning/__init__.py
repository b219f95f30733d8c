"""Downstream tasks by name: their data, schedule, metric and protocol."""
