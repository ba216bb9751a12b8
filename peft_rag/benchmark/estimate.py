"""How long a suite will take: a few batches of its data run through the backbone, and what a run does with them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peft_rag.benchmark.pieces import Piece
from peft_rag.benchmark.plan import Cell, Search, Setting, as_run, fusion_of
from peft_rag.benchmark.sources import expand
from peft_rag.benchmark.suite import NO_FUSION
from peft_rag.counts import check_count
from peft_rag.tasks.generation import Generation

if TYPE_CHECKING:
    from peft_rag.backbone import Backbone

_BATCH = 32
_MEASURED = 3 * _BATCH
_START = 14.0
"""Seconds that a process spends on imports, models and costs, on two cores."""
_STEP = 2.5
"""A training step over a forward pass, where the backbone's own weights need no gradient."""
_EVALUATIONS = 5


@dataclass(frozen=True)
class Pace:
    """What a setting costs.

    Attributes:
        train, validation, test, documents: numbers of examples.
        seconds: of one example's forward pass by label of the fusion that reads neighbours beside it; its own text
            alone under the empty label.
        writing: seconds that writing the texts of one arm takes; 0 where the task writes none.
        probes: whether the head is fitted to features of the training examples.
    """

    train: int
    validation: int
    test: int
    documents: int
    seconds: dict[str, float]
    writing: float = 0.0
    probes: bool = True


def estimate(pieces: Iterable[Piece]) -> float:
    """Return the seconds that pieces will take one after the other, by a few batches measured on this machine."""
    paces: dict[str, Pace] = {}
    total = 0.0
    for piece in pieces:
        setting = piece.work.setting
        if setting.name not in paces:
            paces[setting.name] = _measure(setting)
        total += _expected(piece, paces[setting.name])
    return total


def _expected(piece: Piece, pace: Pace) -> float:
    setting, plain = piece.work.setting, pace.seconds[""]
    if isinstance(piece.work, Search):
        return _START * len(setting.suite.fusions) + plain * 2 * (pace.documents + pace.test)
    label = piece.work.fusion.label if isinstance(piece.work, Cell) else ""
    each = pace.seconds.get(label, plain)
    batch: int = as_run(setting.settings).training.get("per_device_train_batch_size", _BATCH)
    check_count("per_device_train_batch_size", batch, 1)
    trained = _STEP * batch * setting.suite.budget.max_steps + _EVALUATIONS * pace.validation
    trained += pace.train if pace.probes else 0  # its tuned features; those of the frozen backbone are kept
    if not isinstance(piece.work, Cell):
        return _START + each * trained
    reads = label in pace.seconds
    passes = 1 + len(setting.suite.controls) if reads else 0
    encoded = pace.test + (0 if reads else pace.documents)
    arms = 2 if piece.work.fusion.name == NO_FUSION else 3
    return 2 * _START + each * (trained + passes * pace.test) + plain * encoded + arms * pace.writing


def _measure(setting: Setting) -> Pace:
    """Read a setting's data and time a few batches of its test texts, alone and with as many more as neighbours."""
    from peft_rag.backbone import load_backbone
    from peft_rag.job import read_data

    sources = {name: expand(source) for name, source in setting.data.sources.items()}
    config = as_run({**setting.settings, **sources})
    splits = read_data(config)
    chosen = splits.test[:: max(1, len(splits.test) // _MEASURED)][:_MEASURED]
    task, texts = splits.task, [example.text for example in chosen]
    if task.generates:  # what is written is read too
        texts = [" ".join([text, *(example.labels or ())[:1]]) for text, example in zip(texts, chosen, strict=True)]
    backbone = load_backbone(config.backbone_name, head=task.backbone_head)
    seconds = {"": _forward(backbone, texts, config.max_length)}
    for entry in setting.suite.fusions:
        fusion = fusion_of(entry, setting)
        if fusion.reads_neighbours:
            more = [" ".join(texts[row : row + 1 + fusion.neighbours_wanted]) for row in range(len(texts))]
            longest = as_run({**setting.settings, **entry.options}).max_length
            seconds[entry.label] = _forward(backbone, more, longest)
    writing = 0.0
    if isinstance(task, Generation):
        written = min(task.scored, len(splits.test))
        writing = written * task.target_length * _forward(backbone, [text[:1] for text in texts], config.max_length)
    sizes = (len(splits.train), len(splits.validation), len(splits.test), len(splits.corpus))
    return Pace(*sizes, seconds, writing, probes=task.probes)


def _forward(backbone: Backbone, texts: Sequence[str], max_length: int) -> float:
    """Return the seconds of one example's forward pass, in batches of texts of like length as training groups them."""
    import torch

    from peft_rag.language_model import decoder_start, last_states

    model, tokenizer = backbone.model, backbone.tokenizer
    ordered = sorted(texts, key=len)
    begun = time.perf_counter()
    for start in range(0, len(ordered), _BATCH):
        given = tokenizer(
            ordered[start : start + _BATCH], truncation=True, max_length=max_length, padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            if backbone.generates:
                last_states(model, dict(given), decoder_start(backbone))
            else:
                model(**given)
    return (time.perf_counter() - begun) / len(ordered)
