"""Fusions: how neighbours enter the model, one mode a file."""
