"""Objectives: what training minimises, one a file."""
