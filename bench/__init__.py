"""Measurements of speed, memory and accuracy; never run by the tests."""
