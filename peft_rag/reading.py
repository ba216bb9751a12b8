"""Run a model over examples in batches, longest inputs first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from peft_rag.decisions import Decisions
from peft_rag.errors import ConfigError
from peft_rag.fusion.base import PASSAGES, READ, Fusion, Outputs, Split
from peft_rag.fusion.batching import tokens_in

if TYPE_CHECKING:
    from peft_rag.model import RetrievalAugmentedModel


_WRITTEN_AT_ONCE = 8


def read_split(
    model: RetrievalAugmentedModel, split: Split, fusion: Fusion | None, batch_size: int, progress: str
) -> Outputs:
    """Return what a model gives for a split, before what a fusion does once it is trained.

    Args:
        model: put in evaluation mode.
        split: examples with what was retrieved for them.
        fusion: how inputs are read; `RetrievalAugmentedModel.effective_fusion` where None.
        batch_size: examples run at once.
        progress: what the progress bar says; no bar if empty.
    """
    decisions = Decisions.on(model.task, split.examples)
    return read_rows(model, model.encode(split, fusion=fusion), decisions, batch_size, progress)


def read_rows(
    model: RetrievalAugmentedModel,
    rows: Sequence[dict[str, Any]],
    decisions: Decisions,
    batch_size: int,
    progress: str = "",
) -> Outputs:
    """Return what a model gives for N encoded examples.

    Args:
        model: put in evaluation mode.
        rows: from its `encode`.
        decisions: how many each takes.
        batch_size: examples run at once.
        progress: what the progress bar says; no bar if empty.

    Raises:
        ConfigError: the batch size is below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1.")
    model.eval()
    if model.task.appends:  # logits of a whole vocabulary for each token of an answer, or of all choices
        batch_size = min(batch_size, _WRITTEN_AT_ONCE)
    order = sorted(range(len(rows)), key=lambda place: -tokens_in(rows[place]))
    log_probs: list[Tensor] = [torch.empty(0)] * len(rows)
    features: list[Tensor] = [torch.empty(0)] * len(rows)
    weights: list[list[float]] = [[]] * len(rows)
    shown = bool(progress and model.progress_bars)
    with tqdm(total=len(rows), desc=progress, unit="text", disable=not shown, leave=False) as bar:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = model.collate([{k: v for k, v in rows[place].items() if k != "labels"} for place in chosen])
            with torch.no_grad():
                given = model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
            counts = list(decisions.of(chosen).counts)
            parts = (given[name].cpu().split(counts) for name in ("log_probs", "features"))
            for place, answers, vectors in zip(chosen, *parts, strict=True):
                log_probs[place], features[place] = answers, vectors
            if "weights" in given:
                for place, shares in zip(chosen, _by_example(given["weights"].cpu(), counts), strict=True):
                    weights[place] = shares[: len(rows[place].get(READ, ()))]
            bar.update(len(chosen))
    read = [row.get(READ, ()) for row in rows]
    joined = any(PASSAGES in row for row in rows) or not model.task.probes
    return Outputs(
        torch.cat(log_probs),
        torch.cat(features),
        read,
        weights if any(weights) else (),
        joined,
        None if model.task.one_decision else decisions,
    )


def _by_example(weights: Tensor, counts: Sequence[int]) -> list[list[float]]:
    """Return the neighbours' weights of each example; the mean over its decisions where these weigh for themselves."""
    if len(weights) == len(counts):
        return [list(row) for row in weights.tolist()]
    return [list(part.mean(0).tolist()) for part in weights.split(counts)]
