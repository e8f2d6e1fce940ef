"""Evaluation: the one evaluator that client, server and simulation use."""

from medmap_model.evaluation.metrics import METRICS, interval, resampled, scores

__all__ = ["METRICS", "interval", "resampled", "scores"]
