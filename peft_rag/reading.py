"""Run a model over a split in batches, longest inputs first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from peft_rag.fusion.base import PASSAGES, READ, Fusion, Outputs, Split
from peft_rag.fusion.batching import tokens_in

if TYPE_CHECKING:
    from peft_rag.model import RetrievalAugmentedModel


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
    model.eval()
    rows = model.encode(split, fusion=fusion)
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
            for place, one, vector in zip(chosen, given["log_probs"].cpu(), given["features"].cpu(), strict=True):
                log_probs[place], features[place] = one, vector
            for place, shares in zip(chosen, given.get("weights", torch.empty(0)).tolist(), strict=False):
                weights[place] = shares[: len(rows[place].get(READ, ()))]
            bar.update(len(chosen))
    read = [row.get(READ, ()) for row in rows]
    joined = any(PASSAGES in row for row in rows)
    return Outputs(torch.stack(log_probs), torch.stack(features), read, weights if any(weights) else (), joined)
