"""SetFit (Tunstall et al. 2022, arXiv:2209.11055) with its own defaults, as many optimiser steps as the suite has."""

from __future__ import annotations

import tempfile
import time

import datasets
import numpy as np
import setfit
from cell import Answer, main

from peft_rag.benchmark.costs import peak_memory
from peft_rag.config import RunConfig
from peft_rag.data import Splits
from peft_rag.packaged import model_location


def contrastive(config: RunConfig, splits: Splits) -> Answer:
    """Tune the sentence encoder on pairs, fit its logistic head, and answer the test split."""
    labels = list(splits.task.labels)
    model = setfit.SetFitModel.from_pretrained(model_location(config.backbone), labels=labels)
    train = datasets.Dataset.from_dict(
        {
            "text": [example.text for example in splits.train],
            "label": splits.task.targets(splits.train).tolist(),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = setfit.TrainingArguments(
            output_dir=folder,
            max_steps=config.training["max_steps"],
            batch_size=32,
            seed=config.seed,
            report_to="none",
            show_progress_bar=False,
        )
        begun = time.perf_counter()
        setfit.Trainer(model=model, args=arguments, train_dataset=train).train()
        seconds = time.perf_counter() - begun
    answers = model.predict_proba([example.text for example in splits.test], as_numpy=True)
    trained = sum(parameter.numel() for parameter in model.model_body.parameters())
    costs = {
        **peak_memory(),
        "trainable_parameters": trained + len(labels) * (model.model_body.get_embedding_dimension() + 1),
        "train_seconds": seconds,
        "steps": config.training["max_steps"],
    }
    return Answer(np.asarray(answers, dtype=float), costs)


if __name__ == "__main__":
    main("setfit", "set_fit.py", ["setfit", "sentence-transformers", "transformers", "torch"], contrastive)
