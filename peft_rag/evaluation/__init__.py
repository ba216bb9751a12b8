"""Scores, their intervals, and the `evaluate.Metric` modules that carry them."""
