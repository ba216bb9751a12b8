"""Benchmarks: a suite of cells, each a normal run of the main job, and what they say together."""
