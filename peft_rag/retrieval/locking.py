"""One writer at a time for a folder; readers need no lock."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft_rag.errors import RetrievalError

if sys.platform != "win32":
    import fcntl

LOCK = "lock"


@contextmanager
def writer_lock(folder: Path, doing: str) -> Iterator[None]:
    """Hold a folder's lock while the block runs; the system lets go of it even if the process is killed.

    Args:
        folder: the folder; it must exist.
        doing: what the holder does, named to whoever is refused, e.g. ``add``.

    Raises:
        RetrievalError: another process, or another writer of this one, holds it.
    """
    path = folder / LOCK
    with path.open("a+", encoding="utf-8") as file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RetrievalError(
                    f"the index '{folder}' is being written by {_holder(path)}. "
                    "Wait until it has finished, then try again; reading and searching go on."
                ) from None
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "doing": doing}))
        file.flush()
        yield


def _holder(path: Path) -> str:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return f"process {held['pid']} on {held['host']} ({held['doing']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
