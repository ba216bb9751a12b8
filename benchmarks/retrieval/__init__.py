"""The retrieval engine beside what a user would take instead; run by ``python -m benchmarks.retrieval``."""
