"""Metrics, curves and plots on bags the model has not seen."""
