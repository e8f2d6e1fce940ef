"""Evaluation: the one evaluator that client, server and simulation use."""

from medmap_model.evaluation.metrics import METRICS, interval, resampled, scores
from medmap_model.evaluation.metrics_curves import curves
from medmap_model.evaluation.metrics_likelihood import negative_log_likelihood
from medmap_model.evaluation.subgroups import by_class, by_group
from medmap_model.evaluation.thresholds import operating_points

__all__ = [
    "METRICS",
    "by_class",
    "by_group",
    "curves",
    "interval",
    "negative_log_likelihood",
    "operating_points",
    "resampled",
    "scores",
]
