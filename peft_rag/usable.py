"""The examples of a source that can be used, and the records that are left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peft_rag.records import iter_records, read_records, short_name
from peft_rag.refusals import LeftOut, sift
from peft_rag.tasks.base import Example, Task

if TYPE_CHECKING:
    from peft_rag.records import Record, Source


@dataclass(frozen=True)
class Usable:
    """Examples, each with the line it came from, and what was refused.

    Attributes:
        examples: in the order of the source.
        lines: of each.
        refused: lines of the other records, in order, and why each is left out.
    """

    examples: list[Example]
    lines: list[int]
    refused: list[tuple[int, str]]

    @property
    def left_out(self) -> LeftOut:
        """What is left out, for a report."""
        return LeftOut(len(self.lines) + len(self.refused), tuple(reason for _, reason in self.refused))

    def check(self, what: str) -> None:
        """Raise `DataError` where nothing is left; ``what`` as the message begins."""
        self.left_out.check(what, len(self.examples))

    def that(self, use: Callable[[Sequence[Example]], object]) -> Usable:
        """Return those that can be used; ``use`` as `peft_rag.refusals.sift` takes it."""
        kept, others = sift(range(len(self.lines)), lambda places: use([self.examples[one] for one in places]))
        refused = [*self.refused, *((self.lines[place], str(error)) for place, error in others)]
        return Usable([self.examples[one] for one in kept], [self.lines[one] for one in kept], sorted(refused))


@dataclass(frozen=True)
class Given:
    """The records of a source, not yet read by a task.

    Attributes:
        name: of the source, for messages.
        records: in its order.
        skip: whether records that cannot be used are left out.
        refused: lines that are no record, and why.
    """

    name: str
    records: list[Record]
    skip: bool
    refused: list[tuple[int, str]]

    def read(self, task: Task, *, labelled: bool = True) -> Usable:
        """Let a task read them.

        Args:
            task: reads records.
            labelled: whether these must say what is right.

        Raises:
            DataError: one cannot be used; or where such are skipped, none can.
        """
        records, refused = self.records, self.refused
        if self.skip:
            records, others = sift(records, lambda part: task.read(part, labelled=labelled))
            refused = sorted([*refused, *((record.line, str(error)) for record, error in others)])
        read = Usable(task.read(records, labelled=labelled), [record.line for record in records], refused)
        read.check(self.name)
        return read


def read_given(source: Source, *, skip: bool) -> Given:
    """Read the records of a source.

    Args:
        source: as `peft_rag.records.read_records` takes it.
        skip: whether records that cannot be used are left out; the first is an error otherwise.

    Raises:
        DataError: the source cannot be read, or holds no record.
    """
    name = short_name(str(source)) if isinstance(source, (str, Path)) else "the data given"
    if not skip:
        return Given(name, read_records(source), skip, [])
    refused: list[tuple[int, str]] = []
    records = list(iter_records(source, lambda line, error: refused.append((line, str(error)))))
    if not (records or refused):
        read_records(source)  # says so
    return Given(name, records, skip, refused)
