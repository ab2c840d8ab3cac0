"""Trying a triage model on labelled slides of a laboratory before it is used there."""
