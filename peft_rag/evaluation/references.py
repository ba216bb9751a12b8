"""Several references an example, in the one shape the scores of texts read."""

from __future__ import annotations

from collections.abc import Sequence

from peft_rag.errors import ShapeError

References = Sequence[str | Sequence[str]]
"""For each example its only reference, or all of its references."""


def reference_lists(predictions: Sequence[str], references: References) -> list[tuple[str, ...]]:
    """Return all references of each prediction; a lone one becomes a tuple of one.

    >>> reference_lists(["a cat", "a dog"], ["the cat", ["the dog", "a hound"]])
    [('the cat',), ('the dog', 'a hound')]

    Raises:
        ShapeError: there are more or fewer references than predictions, or no predictions.
    """
    if len(predictions) != len(references) or not predictions:
        raise ShapeError(
            f"{len(predictions)} predictions cannot be scored against the references of {len(references)} examples. "
            "Give one prediction an example, and one example at least."
        )
    return [(given,) if isinstance(given, str) else tuple(given) for given in references]
