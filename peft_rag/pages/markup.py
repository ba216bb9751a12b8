"""HTML written so that no text can become markup: what is not made here is escaped."""

from __future__ import annotations

import json
from html import escape
from typing import Any

_VOID = frozenset({"br", "input", "meta"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """Return an element; children are escaped unless they are markup, None and False are left out.

    Attributes are named with underscores for hyphens and one at the end where Python knows the word; True stands for an
    attribute without value, None and False for none.

    >>> element("p", "a < b", class_="note", hidden=True)
    '<p class="note" hidden>a &lt; b</p>'
    """
    opened = f"<{name}{''.join(_attribute(key, value) for key, value in attributes.items())}>"
    return Markup(opened if name in _VOID else f"{opened}{fragment(*children)}</{name}>")


def fragment(*children: object) -> Markup:
    """Return elements and text one after the other."""
    shown = (child for child in children if child is not None and child is not False)
    return Markup("".join(child if isinstance(child, Markup) else escape(str(child)) for child in shown))


def embedded_json(value: Any, name: str) -> Markup:
    r"""Return data for scripts; no text within can end the element or open a comment.

    >>> print(embedded_json("</script>", "x"))
    <script type="application/json" id="x">"\u003c/script\u003e"</script>
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return element("script", Markup(text), type="application/json", id=name)


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
