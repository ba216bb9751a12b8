"""Whether the Hugging Face hub can be asked, so that a machine without a network does not wait for it."""

from __future__ import annotations

import os
import socket
import urllib.request
from urllib.parse import urlsplit


def hub_forbidden() -> bool:
    """Return whether ``HF_HUB_OFFLINE`` says to use nothing but what was downloaded before."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def hub_reachable() -> bool:
    """Return whether the hub's host name resolves; behind a proxy, which resolves it itself, always true."""
    if urllib.request.getproxies():
        return True
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        socket.getaddrinfo(address.hostname or "", address.port or 443)
    except OSError:
        return False
    return True
