"""``python -m peft_rag`` is ``peft-rag``."""

from __future__ import annotations

import sys

from peft_rag.cli import main

if __name__ == "__main__":
    sys.exit(main())
