"""Aggregators, fitting, the triage model on disk."""
