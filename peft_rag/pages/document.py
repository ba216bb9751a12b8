"""A whole page in one file, which runs and loads nothing but what was put into it."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

from peft_rag.pages.markup import Markup, element


def document(title: str, *body: object, style: str, script: str = "") -> str:
    """Return a page as HTML; it asks for nothing over a network.

    Its content security policy names the page's own style and script by their hashes, so that a browser takes no other,
    whatever the texts in the page hold.

    Args:
        title: of the page.
        body: what is in it.
        style: CSS, after what all pages share.
        script: JavaScript, run at the end; none if empty.
    """
    css = static(__package__, "base.css") + style
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(css, script)),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(css)),
    )
    content = element("body", *body, element("script", Markup(script)) if script else None)
    return f"<!doctype html>\n{element('html', head, content, lang='en')}\n"


def static(package: str, name: str) -> str:
    """Return a file of a package's folder ``static``."""
    return (files(package) / "static" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    allowed = f"style-src {_hash(style)}" + (f"; script-src {_hash(script)}" if script else "")
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
