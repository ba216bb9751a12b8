"""What a conformance kit notes while it checks one plugin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from peft_rag.errors import ConformanceError


@dataclass
class Case:
    """What has been found of a plugin so far; a kit adds what it checks.

    Attributes:
        checked: the properties that hold.
        skipped: the properties not asked for, with the reason.
    """

    checked: list[str] = field(default_factory=list, init=False)
    skipped: dict[str, str] = field(default_factory=dict, init=False)

    @contextmanager
    def property(self, name: str) -> Iterator[None]:
        """Note that a property holds, or say which does not."""
        try:
            yield
        except (ConformanceError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise ConformanceError(f"{name}: {type(error).__name__}: {error}") from error
        self.checked.append(name)
