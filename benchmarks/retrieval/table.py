"""Stored measurements of the retrieval engine as Markdown: ``python -m benchmarks.retrieval.table`` prints them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import megabytes, stored, table


def markdown(result: Mapping[str, Any]) -> str:
    """Return the tables of one measurement."""
    size = f"{result['documents']:,} × {result['dimension']}"
    return "\n".join([_search(result, size), _memory(result), _building(result), _opening(result), _epoch(result)])


def _search(result: Mapping[str, Any], size: str) -> str:
    speeds = {row["name"]: row for row in result["search"]}
    raw = speeds["hnswlib"]["queries_per_second"]
    rows = [
        (
            name,
            "" if row["ef"] is None else row["ef"],
            f"{row['recall']:.4f}",
            f"{row['queries_per_second']:,.0f} ({row['slowest']:,.0f} to {row['fastest']:,.0f})",
            f"{row['queries_per_second'] / raw:.2f}",
        )
        for name, row in speeds.items()
    ]
    return table((f"search, {size}", "ef", f"recall@{result['k']}", "queries/s", "÷ hnswlib"), rows)


def _memory(result: Mapping[str, Any]) -> str:
    raw = result["memory"]["hnswlib"]["anonymous"]
    rows = [
        (
            name,
            megabytes(held["anonymous"]),
            megabytes(held["file"]),
            _ratio(held["anonymous"], raw),
            _ratio(sum(_bytes(held)), raw),
        )
        for name, held in result["memory"].items()
    ]
    return table(("memory added", "held", "mapped files", "held ÷ hnswlib", "both ÷ hnswlib"), rows)


def _bytes(held: Mapping[str, Any]) -> tuple[int, int]:
    return held["anonymous"], held["file"]


def _building(result: Mapping[str, Any]) -> str:
    building, changes = result["building"], result["changes"]
    encoding = building["encoding_seconds"]
    rows: list[tuple[Any, ...]] = [("encoding alone", f"{encoding:,.0f} s", "1.00", "")]
    for name in ("plain", "compact"):
        one = building[name]
        rows.append((f"{name}: all else", f"{one['seconds']:,.1f} s", f"{one['ratio']:.3f}", megabytes(one["bytes"])))
    labels = {"add_1000": "add 1,000", "add_1": "add 1", "delete_1000": "delete 1,000", "delete_1": "delete 1"}
    rows += [(f"plain: {label}", f"{changes[name]:.2f} s", "", "") for name, label in labels.items()]
    return table(("building", "time", "÷ encoding alone", "on disk"), rows)


def _opening(result: Mapping[str, Any]) -> str:
    rows = [
        (name, f"{one['warm']:.2f} s", f"{one['cold']:.2f} s", f"{one['graph_alone']:.2f} s", megabytes(one["bytes"]))
        for name, one in result["opening"].items()
    ]
    return table(("opening", "cached files", "uncached", "its graph by hnswlib, unchecked", "bytes read"), rows)


def _epoch(result: Mapping[str, Any]) -> str:
    timed = result["epoch"]
    bare = timed["seconds"]["none"]
    rows = [
        (
            f"fusion {name}",
            f"{seconds:.2f} s ({min(timed['rounds'][name]):.2f} to {max(timed['rounds'][name]):.2f})",
            f"{seconds / bare:.3f}",
        )
        for name, seconds in timed["seconds"].items()
    ]
    return table((f"training, {timed['steps']} steps", "median of the rounds", "÷ no retrieval"), rows)


def _ratio(count: float, raw: float) -> str:
    return f"{count / raw:.2f}"


if __name__ == "__main__":
    for name, result in stored("retrieval").items():
        print(f"{name}\n\n{markdown(result)}")
