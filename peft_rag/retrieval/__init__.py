"""Retrieval: encoders, indexes, and neighbours that never leak. Importing this loads nothing heavy."""
