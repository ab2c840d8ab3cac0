"""Aggregators and one-class scorers; `registry` finds them by name."""
