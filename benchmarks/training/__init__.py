"""Our training beside a bare loop of transformers' Trainer and peft; run by ``python -m benchmarks.training``."""
