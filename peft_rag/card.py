"""The model card of an artefact, written from what was measured and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft_rag.backbone_name import BackboneName
from peft_rag.evaluation.bootstrap import Score, in_percent
from peft_rag.evaluation.overlap import overlap_lines


def model_card(manifest: Mapping[str, Any], metrics: Mapping[str, Any], sample: str | Mapping[str, Any]) -> str:
    """Return the README.md of an artefact.

    Args:
        manifest: content of ``peft_rag.json``.
        metrics: content of ``metrics.json``; what is missing in it is left out of the card.
        sample: what the model may be asked, a text or a record.
    """
    method, backbone = manifest["method"]["name"], manifest["backbone"]["name"]
    parts = [
        _front_matter(manifest, metrics),
        f"# {method} for {manifest['task']['name']} on {backbone}\n",
        f"A small set of weights for the frozen backbone `{backbone}`, trained with the PEFT method `{method}`; "
        f"neighbours enter by the fusion `{manifest['fusion']['name']}`{_gate(manifest)}{_tower(manifest)}. "
        "The backbone itself is unchanged.\n",
        _results(metrics),
        _costs(manifest, metrics),
        _use(manifest, sample),
    ]
    return "\n".join(part for part in parts if part)


def results_table(arms: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return the results as a Markdown table: a row an arm, a column a metric, 95% intervals in brackets."""
    names = list(dict.fromkeys(name for scores in arms.values() for name in scores))
    rows = [["answers", *names], ["---"] * (len(names) + 1)]
    for arm, scores in arms.items():
        cells = [_cell(scores[name]) if name in scores else "" for name in names]
        rows.append([arm.replace("_", " "), *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _cell(score: Mapping[str, float]) -> str:
    return str(Score(score["value"], score["low"], score["high"], bool(score.get("percent", True))))


def _gate(manifest: Mapping[str, Any]) -> str:
    gate = manifest["fusion"].get("gate")
    return "" if gate is None else f", and count {gate:.0%} beside the answer without them, as validation decided"


def _tower(manifest: Mapping[str, Any]) -> str:
    tower = manifest.get("query_tower")
    return "" if tower is None else f", found by queries tuned with the PEFT method `{tower['method']['name']}`"


def _front_matter(manifest: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    lines = [
        "---",
        "library_name: peft",
        *_base_model(manifest["backbone"]["name"]),
        f"pipeline_tag: {manifest['task']['name']}",
        "tags: [peft-rag, retrieval-augmented, " + manifest["method"]["name"] + "]",
    ]
    if metrics.get("test"):
        lines.append("metrics: [" + ", ".join(metrics["test"]) + "]")
    return "\n".join([*lines, "---", ""])


def _base_model(name: str) -> list[str]:
    """Return the line that names the backbone where it is one of the hub, which refuses cards that name another."""
    place = BackboneName.parse(name).place
    of_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", place) and not Path(place).exists()
    return [f"base_model: {place}"] if of_hub else []


def _results(metrics: Mapping[str, Any]) -> str:
    if not metrics.get("arms"):
        return "## Results\n\nNot measured.\n"
    overlap = "".join(f" {line}." for line in overlap_lines(metrics["overlap"])) if "overlap" in metrics else ""
    scores = [item for arm in metrics["arms"].values() for item in arm.items()]
    scale = in_percent(name for name, score in scores if not score.get("percent", True))
    where = f"{metrics['test_examples']:,} examples ({metrics['data']['test']})"
    return (
        f"## Results\n\n{scale[0].upper()}{scale[1:]} on {where}, with 95% "
        f"bootstrap intervals; seed {metrics['seed']}.{overlap}\n\n{results_table(metrics['arms'])}"
    )


def _costs(manifest: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    method = manifest["method"]
    lines = ["## Costs", ""]
    if "trainable_parameters" in metrics:
        lines.append(
            f"- trained: {metrics['trainable_parameters']:,} parameters, "
            f"{metrics['trainable_percent']:.2f}% of the model"
        )
    else:
        lines.append(f"- trained in the backbone: {method['trainable_parameters']:,} parameters")
    if "artefact_bytes" in metrics:
        lines.append(f"- artefact: {metrics['artefact_bytes'] / 1000:,.0f} kB")
    measured = (
        ("train_seconds", "{:.0f} s", 1),
        ("examples_per_second", "{:.3g} examples/s", 1),
        ("peak_memory_bytes", "peak memory {:,.0f} MB", 1e6),
    )
    training = [words.format(metrics[name] / unit) for name, words, unit in measured if metrics.get(name)]
    if training:
        lines.append(f"- training: {', '.join(training)}")
    return "\n".join([*lines, ""])


def _use(manifest: Mapping[str, Any], sample: str | Mapping[str, Any]) -> str:
    knowledge = manifest.get("knowledge")
    labels = manifest["task"]["settings"].get("labels") or []
    known = [f"Labels: {', '.join(labels)}."] if labels else []
    if knowledge:
        known.append(
            f"It retrieves from `{knowledge['corpus']['source']}`; where that lies elsewhere, say so: "
            '`from_pretrained(…, corpus="path/to/it")`.'
        )
    asked = json.dumps(sample, ensure_ascii=False)
    return (
        "## Use\n\n```python\nfrom peft_rag import RetrievalAugmentedModel\n\n"
        'model = RetrievalAugmentedModel.from_pretrained("this-folder-or-hub-id")\n'
        f"model.predict([{asked}]{', explain=True' if knowledge else ''})\n```\n"
        + "".join(f"\n{line}\n" for line in ([" ".join(known)] if known else []))
    )
