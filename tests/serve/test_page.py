"""The page in a real browser: Debian's chromium, driven by Playwright; the model only inverts."""

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from inverting_cli import pixels
from PIL import Image
from serving import WAIT, Running, png, served

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt install chromium")
WORD = "open sesame"
LIGHT, DARK = "rgb(245, 246, 248)", "rgb(18, 20, 24)"  # --back of style.css


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        # Chromium refuses to run as root with its sandbox; it sees no page but ours.
        args = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=args)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    """The page, open; nothing may be asked of another server, and no script may fail."""
    context = browser.new_context(viewport={"width": 900, "height": 700})
    context.set_default_timeout(1000 * WAIT)
    asked, failed = [], []
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(error))
    page.goto(server.url)
    yield page
    context.close()
    assert not failed
    assert [url for url in asked if not url.startswith((server.url, "blob:", "data:"))] == []


def file(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": data}


def drop(page: Any, name: str, data: bytes) -> None:
    """Drop a file on the page."""
    script = """([name, data]) => {
      const files = new DataTransfer();
      files.items.add(new File([new Uint8Array(data)], name, {type: "image/png"}));
      document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true}));
    }"""
    page.evaluate(script, [name, list(data)])


def downloaded(page: Any) -> tuple[str, bytes]:
    with page.expect_download() as download:
        page.click("#save")
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def test_a_dropped_photo_comes_back_sharp(page: Any, server: Running) -> None:
    drop(page, "holiday.png", png(pixels()))
    page.wait_for_selector("#save:visible")
    assert downloaded(page) == ("holiday.png", server.deblur(png(pixels())).content)
    assert page.text_content("#status").startswith("Sharpened in")


def test_the_slider_moves_by_mouse_and_by_keyboard(page: Any) -> None:
    page.set_input_files("#choose", file("a.png", png(pixels(height=200, width=400))))
    page.wait_for_selector("#save:visible")

    def cut() -> str:
        return str(page.evaluate("document.getElementById('after').style.clipPath"))

    assert cut() == "inset(0px 0px 0px 50%)"
    box = page.locator("#view").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    page.mouse.up()
    assert cut() == "inset(0px 0px 0px 25%)"
    # Left of the divider the photo as it was, right of it the sharp one.
    shot = np.asarray(Image.open(io.BytesIO(page.locator("#view").screenshot())).convert("RGB")).astype(int)
    assert abs(shot[150, 20] - pixels(height=200, width=400)[150, 20]).max() < 30
    assert abs(shot[150, 300] - (255 - pixels(height=200, width=400)[150, 300].astype(int))).max() < 30
    page.keyboard.press("Home")
    assert cut() == "inset(0px 0px 0px 0%)"
    page.keyboard.press("ArrowRight")
    assert cut() == "inset(0px 0px 0px 0.5%)"


def test_a_bad_file_is_told_and_the_others_are_done(page: Any) -> None:
    page.set_input_files("#choose", [file("bad.png", b"no image"), file("good.png", png(pixels()))])
    page.wait_for_selector('#strip button[aria-label="good.png: done"]')
    page.click('#strip button[aria-label="bad.png: failed"]')
    assert page.text_content("#status").startswith("bad.png is of no format that is known here")
    assert not page.is_visible("#save")
    page.click('#strip button[aria-label="good.png: done"]')
    assert page.is_visible("#save")


def test_a_large_photo_is_seen_at_100_per_cent(page: Any) -> None:
    page.set_input_files("#choose", file("a.png", png(np.zeros((10, 1000, 3), np.uint8))))
    page.wait_for_selector("#save:visible")
    width = "document.getElementById('after').getBoundingClientRect().width"
    assert page.evaluate(width) < 900
    page.keyboard.press("z")
    assert page.evaluate(width) == 1000
    page.keyboard.press("z")
    assert page.evaluate(width) < 900


def test_options_are_sent(page: Any) -> None:
    page.click("summary")
    page.select_option("[name=format]", "webp")
    page.set_input_files("#choose", file("a.b.png", png(pixels())))
    page.wait_for_selector("#save:visible")
    name, data = downloaded(page)
    assert (name, data[8:12]) == ("a.b.webp", b"WEBP")


def test_the_page_fits_a_phone_and_the_dark(browser: Any, server: Running) -> None:
    for scheme, colour in (("light", LIGHT), ("dark", DARK)):
        context = browser.new_context(viewport={"width": 360, "height": 640}, color_scheme=scheme)
        page = context.new_page()
        page.goto(server.url)
        page.set_input_files("#choose", file("a.png", png(pixels(height=60, width=160))))
        page.wait_for_selector("#save:visible", timeout=1000 * WAIT)
        page.click("summary")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == colour
        context.close()


def test_a_token_is_asked_for_once(browser: Any) -> None:
    with served(token=WORD) as server:
        page = browser.new_page()
        page.goto(server.url)
        page.set_input_files("#choose", file("a.png", png(pixels())))
        page.fill("#token", WORD)
        page.keyboard.press("Enter")
        page.wait_for_selector("#save:visible", timeout=1000 * WAIT)
        page.close()


def test_the_page_may_load_nothing_from_elsewhere(server: Running) -> None:
    answer = httpx.get(server.url)
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    assert "http" not in answer.text.replace("http://www.w3.org/2000/svg", "")
