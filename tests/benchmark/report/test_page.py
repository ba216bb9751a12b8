"""The page in a real browser; skipped where there is none."""

import shutil
from itertools import pairwise

import pytest

from peft_rag.benchmark.report import write
from tests.benchmark.report.simulated import write_results
from tests.browser import EVIL, needs_browser, opened

METHODS = ("head", "lora", "ia3", "prompt-tuning")

pytestmark = needs_browser


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    evil = {"dataset": EVIL, "shots": 10, "backbone": "tiny", "method": EVIL, "fusion": "knn", "seed": 0}
    folder = write_results(
        tmp_path_factory.mktemp("results"),
        methods=METHODS,
        examples=80,
        failed=("banking77-ia3-concat-s1",),
        diverged=tuple(f"wiki-topics-prompt-tuning-knn-s{seed}" for seed in range(3)),
    )
    extra = write_results(
        tmp_path_factory.mktemp("extra"),
        datasets=("evil",),
        methods=("lora",),
        fusions=("knn",),
        seeds=(0,),
        examples=40,
        changes={"evil-lora-knn-s0": {"cell": evil}},
    )
    shutil.copy(extra / "evil-lora-knn-s0.json", folder)
    write(folder, lambda line: None)
    return (folder / "index.html").as_uri()


def visible_rows(page, section):
    return page.locator(f"#{section} > .frame tbody tr:visible")


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (1400, "dark"), (400, "light"), (400, "dark")])
def test_the_page_fits_and_draws_every_point(browser, address, width, scheme):
    with opened(browser, address, width, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        rows = 3 * len(METHODS) + 1
        figures = page.locator("#banking77-tiny .plots figure")
        assert figures.count() == 4
        points = [figures.nth(place).locator(".point").count() for place in range(4)]
        assert points == [rows, rows, rows - 1, rows]  # retrieval alone has no peak memory of its own
        assert page.locator("#banking77-tiny .intervals .point").count() == rows
        assert page.locator("#wiki-topics-tiny .intervals .point").count() == rows - 2
        for place in range(4):
            box, frame = figures.nth(place).bounding_box(), figures.nth(place).locator("svg").bounding_box()
            assert frame["width"] <= box["width"] + 1


def test_the_front_is_marked_and_holds_what_nothing_beats(browser, address):
    with opened(browser, address) as page:
        marked = page.locator("#banking77-tiny .plots figure").first.locator(".on-front")
        names = [marked.nth(place).get_attribute("aria-label") for place in range(marked.count())]
        data = page.evaluate("JSON.parse(document.getElementById('data').textContent)")
        setting = next(one for one in data["settings"] if one["id"] == "banking77-tiny")
        rows = [
            (one["label"], one["costs"]["trainable_parameters"], one["quality"])
            for one in setting["rows"]
            if not one["shortfall"]
        ]
        best = [
            label
            for label, cost, quality in rows
            if not any(less <= cost and more >= quality and (less, more) != (cost, quality) for _, less, more in rows)
        ]
        assert sorted(name.partition(":")[0] for name in names) == sorted(best)
        assert all(name.endswith("on the front") for name in names)
        assert page.locator("#banking77-tiny .plots figure").first.locator("path.front").count() == 1


def test_filters_change_rows_plots_and_what_is_said(browser, address):
    with opened(browser, address) as page:
        before = visible_rows(page, "banking77-tiny").count()
        page.get_by_label("ia3", exact=True).uncheck(force=True)
        assert visible_rows(page, "banking77-tiny").count() == before - 3
        assert page.locator("#banking77-tiny .plots figure").first.locator(".point").count() == before - 3
        page.get_by_label("knn", exact=True).uncheck(force=True)
        assert visible_rows(page, "banking77-tiny").count() == before - 3 - 3
        page.get_by_label("wiki-topics", exact=True).uncheck(force=True)
        assert not page.locator("#wiki-topics-tiny").is_visible()
        assert page.locator("#cells tbody tr:visible").count() == 3 * (len(METHODS) - 1)
        said = page.locator("#shown").inner_text()
        shown = page.locator("section.setting:visible > .frame tbody tr:visible").count()
        assert said.startswith(f"{shown} of ")
        page.get_by_role("button", name="Show all").click()
        page.wait_for_function("said => document.getElementById('shown').textContent !== said", arg=said)
        assert visible_rows(page, "banking77-tiny").count() == before
        assert page.locator("#wiki-topics-tiny").is_visible()


def test_all_filtered_away_says_so(browser, address):
    with opened(browser, address) as page:
        for fusion in ("none", "knn", "concat"):
            page.get_by_label(fusion, exact=True).uncheck(force=True)
        assert page.locator("#banking77-tiny .plots").inner_text() == "No row passes the filters."


def test_the_page_works_by_keyboard(browser, address):
    with opened(browser, address) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
        before = visible_rows(page, "banking77-tiny").count()
        page.get_by_label("lora", exact=True).focus()
        page.keyboard.press("Space")
        assert visible_rows(page, "banking77-tiny").count() == before - 3
        point = page.locator("#banking77-tiny .plots .on-front").first
        point.focus()
        assert page.locator("#tip").is_visible()
        assert "accuracy" in page.locator("#tip").inner_text()
        page.keyboard.press("Escape")
        assert not page.locator("#tip").is_visible()


def test_a_column_sorts_both_ways(browser, address):
    with opened(browser, address) as page:
        table = page.locator("#banking77-tiny > .frame table")
        head = table.get_by_role("button", name="accuracy")

        def values():
            return [float(text.split(" ")[0]) for text in table.locator("tbody tr td:nth-child(3)").all_inner_texts()]

        head.click()
        assert values() == sorted(values(), reverse=True)
        head.click()
        assert values() == sorted(values())
        assert table.locator("th[aria-sort=ascending]").inner_text().strip().startswith("accuracy")


def test_commands_can_be_copied_and_failures_are_shown_first(browser, address):
    with opened(browser, address, permissions=["clipboard-read", "clipboard-write"]) as page:
        rows = page.locator("#cells tbody tr")
        assert [rows.nth(place).locator(".badge").inner_text() for place in range(5)] == [
            "failed",
            *["diverged"] * 3,
            "done",
        ]
        assert "MemoryError: 24 GB were asked for" in rows.first.inner_text()
        rows.first.get_by_role("button", name="Copy").click()
        command = rows.first.locator("code").inner_text()
        assert page.evaluate("navigator.clipboard.readText()") == command
        assert command.startswith('peft-rag train --train "${DATA}/train.jsonl" --method ia3')


def test_names_are_text_and_nothing_else(browser, address):
    with opened(browser, address) as page:
        assert page.get_by_role("heading", name=EVIL).is_visible()
        assert page.locator("img").count() == 0


def test_pictures_are_named_for_those_who_do_not_see_them(browser, address):
    with opened(browser, address) as page:
        for name in ("svg", "table caption", ".frame"):
            assert page.locator(name).count() > 0
        unnamed = page.evaluate(
            "[...document.querySelectorAll('svg, .point, .frame')].filter(e => !e.getAttribute('aria-label')).length"
        )
        assert unnamed == 0
        levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(e => Number(e.tagName[1]))")
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
