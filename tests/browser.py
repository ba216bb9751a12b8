"""Pages opened in a real browser, where there is one."""

import shutil
from contextlib import contextmanager

import pytest

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
EVIL = "<script>window.harmed = true</script><img src=x onerror='window.harmed = true'>"

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")


@contextmanager
def opened(browser, address, width=1400, **about):
    """Open the page, and see to it that nothing went wrong and nothing was asked for while it was open."""
    context = browser.new_context(viewport={"width": width, "height": 900}, **about)
    page = context.new_page()
    wrong, asked = [], []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    yield page
    assert page.evaluate("window.harmed") is None
    assert wrong == []
    assert asked == [address]
    context.close()
