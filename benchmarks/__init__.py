"""Measurements, each run by one command; README.md holds what they gave."""
