"""Records that cannot be used: an error, or left out, counted and reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from peft_rag.errors import ConfigError, CorpusError, DataError

ERROR, SKIP = ON_BAD_RECORD = ("error", "skip")

Refuse = Callable[[int, DataError], None]
"""Takes the line, or row, of a record that cannot be read, and why."""

_SHOWN = 5

Item = TypeVar("Item")


@dataclass(frozen=True)
class LeftOut:
    """The records of a split that are not used.

    Attributes:
        of: how many records there were.
        reasons: why each of those was left out, with its file and line.
    """

    of: int
    reasons: tuple[str, ...] = ()

    def and_these(self, reasons: Sequence[str]) -> LeftOut:
        """Return these and others."""
        return replace(self, reasons=(*self.reasons, *reasons))

    def check(self, what: str, left: int) -> None:
        """Raise `DataError` where nothing is left.

        Args:
            what: what the records are, as the message begins.
            left: how many are used.
        """
        if self.reasons and not left:
            raise DataError(
                f"{what}: no record is left of {self.of:,}, because {len(self.reasons):,} were refused. "
                f"The first: {self.reasons[0]}"
            )

    def lines(self, what: str) -> list[str]:
        """Say how many were left out and why the first few were; nothing where none was."""
        if not self.reasons:
            return []
        more = len(self.reasons) - _SHOWN
        return [
            f"{what}: {len(self.reasons):,} of {self.of:,} records left out",
            *(f"  {reason}" for reason in self.reasons[:_SHOWN]),
            *([f"  and {more:,} more"] if more > 0 else []),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return what ``metrics.json`` says of them: ``count``, ``of``, and the ``first`` reasons."""
        return {"count": len(self.reasons), "of": self.of, "first": list(self.reasons[:_SHOWN])}


def sift(
    items: Sequence[Item], use: Callable[[Sequence[Item]], object]
) -> tuple[list[Item], list[tuple[Item, DataError]]]:
    """Tell the items that can be used from those that cannot, by halving what is refused as a whole.

    Args:
        items: records, examples, or what stands for them.
        use: raises `DataError` where one of the items it is given cannot be used, whatever the others are.

    Returns:
        those that can be used, in their order, and the others with why not.

    Raises:
        CorpusError: a corpus is refused, which is no record.

    >>> def even(numbers):
    ...     if any(number % 2 for number in numbers):
    ...         raise DataError("odd")
    >>> sift([0, 1, 2, 3], even)
    ([0, 2], [(1, DataError('odd')), (3, DataError('odd'))])
    """
    if not items:
        return [], []
    try:
        use(items)
    except CorpusError:
        raise
    except DataError as error:
        if len(items) == 1:
            return [], [(items[0], error)]
        middle = len(items) // 2
        (first, refused), (second, others) = sift(items[:middle], use), sift(items[middle:], use)
        return [*first, *second], [*refused, *others]
    return list(items), []


def check_on_bad_record(policy: str) -> None:
    """Raise `ConfigError` on anything but ``error`` and ``skip``."""
    if policy not in ON_BAD_RECORD:
        raise ConfigError(f"on_bad_record is '{policy}'. Choose {' or '.join(ON_BAD_RECORD)}.")
