"""The page in a real browser; needs Chromium and playwright."""

import shutil
import signal
import subprocess
import sys
import time
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from builders.conversions import digest, noise, request_of, write_slide
from builders.slides import tissue

from wsi_stain.conversion.engine import convert

pytestmark = [pytest.mark.slow, pytest.mark.browser]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def chromium():
    """A headless browser."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=[*FLAGS, "--disable-sync", "--no-first-run"])
        yield browser
        browser.close()


@pytest.fixture
def view():
    """Start `wsi-stain view`; gives the process and the address."""
    processes = []

    def start(*arguments):
        command = [sys.executable, "-m", "wsi_stain", "view", *map(str, arguments), "--no-browser"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def page(chromium):
    """A page that notes its requests and complaints."""
    context = chromium.new_context(viewport={"width": 1000, "height": 700})
    page = context.new_page()
    page.requests, page.errors = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    yield page
    context.close()


def settle(page):
    page.wait_for_function(
        "() => window.pictures && Object.values(pictures).every((p) => p.viewer.world.getItemCount() > 0"
        " && p.viewer.world.getItemAt(0).getFullyLoaded())",
        timeout=60_000,
    )
    page.wait_for_timeout(700)


def pixels(page):
    """The middle of the page, uint8 (h, w, 3)."""
    image = cv2.imdecode(np.frombuffer(page.locator("main").screenshot(caret="initial"), np.uint8), cv2.IMREAD_COLOR)
    return image[200:400, 100:900, ::-1].astype(int)


def test_the_curtain_shows_the_pixels_of_both_files(tmp_path, view, page):
    image = tissue(1500, 1600)
    he, stain = write_slide(tmp_path / "he.tif", image), write_slide(tmp_path / "stain.tif", 255 - image)
    process, address = view(he, stain)
    page.goto(address + "#slide=0&x=800&y=750&zoom=1&mode=curtain&at=50")
    settle(page)
    box = page.evaluate("() => pictures.he.box")
    y, x = round(box[0]) + 200, round(box[1]) + 100
    of_he = image[y : y + 200, x : x + 800].astype(int)
    for at, key in ((50, None), (0, "["), (100, "]")):
        while key and page.evaluate("() => view.at") != at:
            page.keyboard.press(key)
        page.wait_for_timeout(300)
        shown, line = pixels(page), 10 * at - 100
        left, right = slice(0, max(0, line - 20)), slice(max(0, line + 20), 800)
        for part, expected in ((left, of_he), (right, 255 - of_he)):
            if part.start < min(part.stop, 800):
                assert np.abs(shown[:, part] - expected[:, part]).mean() < 6, at
    page.keyboard.press("3")
    settle(page)
    boxes = page.evaluate("() => [pictures.he.box, pictures.stain.box]")
    np.testing.assert_allclose(boxes[0], boxes[1], atol=1)
    page.mouse.move(200, 300)
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(1500)
    moved = page.evaluate("() => [pictures.he.box, pictures.stain.box]")
    np.testing.assert_allclose(moved[0], moved[1], atol=1)
    assert moved[0] != boxes[0]
    assert "mode=side" in page.url
    page.keyboard.press("h")
    assert page.locator("#help").is_visible()
    hosts = {urlsplit(url).netloc for url in page.requests}
    assert hosts == {urlsplit(address).netloc}, "nothing is asked of another machine"
    assert [error for error in page.errors if "inline style" not in error] == []  # playwright's own, in screenshots
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


def test_a_view_is_stained_while_one_looks_and_survives_a_kill(tmp_path, view, page):
    slide = write_slide(tmp_path / "s.tif", noise(3300, 3700))
    options = ("--model", "identity", "--mask", "none", "--set", "grid.block=512", "--set", "grid.tile=256")
    output = tmp_path / "s.ome.tiff"
    process, address = view(slide, "-o", output, *options)
    page.goto(address + "#slide=0&x=1000&y=1000&zoom=1")
    settle(page)
    spool = tmp_path / "s.ome.tiff.spool"
    end = time.monotonic() + 60
    while len(list(spool.glob("b_*"))) < 4:
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(500)
        assert time.monotonic() < end
    page.click("#region")
    page.wait_for_timeout(800)
    process.kill()
    process.wait()
    page.wait_for_function("() => document.getElementById('message').textContent.includes('does not answer')")
    painted = len(list(spool.glob("b_*")))
    assert 4 <= painted < 56
    keys = ("grid.tile=256", "output.compression=jpeg")
    other = tmp_path / "alone"
    other.mkdir()
    resumed = convert(request_of(slide, output, *keys))
    assert resumed.record["blocks"]["painted_in_this_run"] <= 56 - painted
    assert digest(resumed.output) == digest(convert(request_of(slide, other / "s.ome.tiff", *keys)).output)
