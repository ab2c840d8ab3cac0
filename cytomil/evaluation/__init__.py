"""Metrics, curves and plots on bags that the model was not fitted on."""
