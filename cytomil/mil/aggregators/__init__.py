"""Aggregators and one-class scorers, one concept a file; `registry` knows them by name."""
