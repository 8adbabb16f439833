"""The page and the table of a cohort: what they say, that they need nothing else, and the page in a browser."""

import csv
import json
import re
import shutil
import subprocess
import time
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from builders.cohorts import request_of, write_slides
from PIL import Image

from wsi_stain.cohort import lease as lease_module
from wsi_stain.cohort.check import checked
from wsi_stain.cohort.files import Folder
from wsi_stain.cohort.status import overview
from wsi_stain.cohort.summary import write_summary
from wsi_stain.errors import OutputError
from wsi_stain.files import lock, record
from wsi_stain.files.page import jpeg

COLOURS = {"he": (200, 40, 120), "mask": (20, 160, 60), "stain": (150, 90, 20)}


@pytest.fixture
def out(tmp_path) -> Path:
    """Three slides: two done, of which one is remarkable, and one failed."""
    folder = tmp_path / "out"
    folder.mkdir()
    request = request_of(write_slides(tmp_path / "slides", 3), folder)
    rows = checked(request)
    files = Folder(folder)
    files.begin(request, rows)
    for row, positive, seconds in ((rows[0], 0.5, 20.0), (rows[2], 0.031, 100.0)):
        files.output(row).write_bytes(b"a stain")
        record.write(record.path_of(files.output(row)), {"seconds": {"all": seconds}})
        account = {
            "stain": "HER2 <i>",
            "model": "he2her2",
            "size_px": [3000, 4000],
            "mpp": 0.5,
            "positive": positive,
            "positive_mpp": 2.0,
            "seconds": seconds,
            "warnings": ["no tissue & no luck"] if row is rows[2] else [],
            "seams": {"verdict": "pass", "difference_mean": 0.25, "difference_allowed": 1.0, "reasons": []},
            "thumbnails": {key: jpeg(np.full((96, 128, 3), colour, np.uint8)) for key, colour in COLOURS.items()},
        }
        record.write(files.account_file(row), account)
    files.fail(rows[1], "s1.tif is damaged <script>alert(1)</script>", trace="Traceback …")
    return folder


class Page(HTMLParser):
    """Collects the texts of cells, what is loaded, and what is linked; every element must be closed in order."""

    void = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        assert len(values) == len(attrs), "no attribute twice"
        self.tags.append(tag)
        if tag not in self.void:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag != "a":
            self.loaded += [values[key] for key in ("src", "href", "srcset", "data") if values.get(key)]
        elif values.get("href"):
            self.links.append(values["href"])

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data + " "


def test_the_page_says_what_became_of_every_slide(out):
    text = write_summary(out).read_text(encoding="utf-8")
    head, one, failed, other = Page(text).rows
    assert [name.strip() for name in head][4:8] == ["Positive area", "Seams", "State", "Time"]
    assert (one[0].split()[0], one[4].strip(), one[6].strip(), one[7].strip()) == ("s0", "50.0 %", "done", "20.0 s")
    assert "pass" in one[5]
    assert "4000 × 3000 px at 0.5 µm/px" in one[0]
    assert "s1.tif is damaged <script>alert(1)</script>" in failed[6]
    assert "no tissue & no luck" in other[6]
    assert "RESEARCH USE ONLY" in text
    assert "2 done, 1 failed" in text


def test_names_and_messages_stay_text_whatever_they_contain(out):
    hostile = """</td><script>alert('1')</script> & "x" onload='2'"""
    content = json.loads((out / "cohort.json").read_text())
    for row in content["rows"]:
        row["slide_id"], row["slide"], row["model"] = hostile.replace("/", ""), hostile, hostile
    (out / "cohort.json").write_text(json.dumps(content))
    for path in out.glob("*.account.json"):
        account = json.loads(path.read_text()) | {"stain": hostile, "model": hostile, "warnings": [hostile]}
        (out / f"{hostile.replace('/', '')}.account.json").write_text(
            json.dumps(account | {"seams": {"verdict": hostile}, "mask_file": hostile})
        )
    text = write_summary(out).read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("script") == 1, "the page's own"
    assert len(page.rows) == 4
    done = [row for row in page.rows[1:] if "done" in row[6]]
    assert len(done) == 2
    for row in done:
        assert f"{hostile} by {hostile}" in row[0]
        assert hostile in row[5]
        assert hostile in row[6]
    assert "alert('1')" not in text


def test_the_page_needs_no_other_file_and_its_links_lead_somewhere(out):
    page = Page(write_summary(out).read_text(encoding="utf-8"))
    assert len(page.loaded) == 6
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.loaded)
    assert page.links
    assert all((out / link).exists() for link in page.links)
    assert "../slides/s1.tif" in page.links
    assert "url(" not in page.rawdata


def test_the_table_holds_the_same_for_programs(out):
    write_summary(out)
    with (out / "summary.csv").open(encoding="utf-8", newline="") as file:
        one, failed, other = csv.DictReader(file)
    assert (one["slide_id"], one["state"], float(one["positive_area_fraction"]), one["seams"]) == (
        "s0",
        "done",
        0.5,
        "pass",
    )
    assert (failed["state"], failed["reason"]) == ("failed", "s1.tif is damaged <script>alert(1)</script>")
    assert (other["warnings"], float(other["seconds"]), other["width_px"]) == ("no tissue & no luck", 100.0, "4000")


def test_a_page_of_thousands_of_slides_is_not_held_in_memory(out):
    content = json.loads((out / "cohort.json").read_text())
    content["rows"] = content["rows"] * 100
    account = json.loads((out / "s0.account.json").read_text())
    account["thumbnails"] = dict.fromkeys(COLOURS, "A" * 20_000)
    (out / "s0.account.json").write_text(json.dumps(account))
    (out / "cohort.json").write_text(json.dumps(content))
    tracemalloc.start()
    path = write_summary(out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 100 * 60_000
    assert peak < path.stat().st_size / 4


def test_what_is_left_is_told_from_the_files(out, tmp_path, monkeypatch):
    actual = overview(out)
    assert actual.counts == {"done": 2, "failed": 1}
    assert actual.seconds_left is None, "nothing runs"
    (out / "s0.identity.ome.tiff").unlink()
    lease = {**lock.this_process(), "token": "t", "beat": time.time(), "progress": 0.25, "seconds": 7.0}
    (out / "s0.running.json").write_text(json.dumps(lease))
    actual = overview(out)
    assert actual.counts == {"done": 1, "failed": 1, "running": 1}
    assert actual.seconds_left == pytest.approx(75, rel=0.05), "100 s for a slide of this size, a quarter done"
    page = write_summary(out).read_text(encoding="utf-8")
    assert "running (25 %)" in page
    assert "wsi-stain view out<" in page
    monkeypatch.setattr(lease_module, "WATCH_S", 0.2)
    (out / "s0.running.json").write_text(json.dumps(lease | {"host": "elsewhere", "beat": time.time() - 1000}))
    assert next(actual for _, actual in overview(out).slides).state == "interrupted"
    with pytest.raises(OutputError, match="contains no cohort"):
        overview(tmp_path)


@pytest.fixture
def chromium() -> str:
    actual = shutil.which("chromium") or shutil.which("chromium-browser")
    if not actual:
        pytest.skip("no Chromium on this machine: the page is not looked at")
    return actual


def browse(chromium: str, profile: Path, page: Path, *options: str) -> str:
    """What Chromium prints for a page."""
    quiet = "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", *quiet.split(), f"--user-data-dir={profile}", *options]
    return subprocess.run(
        [chromium, *flags, page.as_uri()], check=True, capture_output=True, text=True, timeout=120
    ).stdout


@pytest.mark.browser
def test_a_browser_shows_the_pictures_and_sorts(out, tmp_path, chromium):
    page = write_summary(out)
    shot = tmp_path / "shot.png"
    browse(chromium, tmp_path / "one", page, "--window-size=1400,900", f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    for colour in COLOURS.values():  # two pictures of 128 × 96 px each
        near = (np.abs(pixels - colour).max(-1) < 12).sum()
        assert near == pytest.approx(2 * 128 * 96, rel=0.02)
    # Presses a head, waits for nothing, and writes down what the page has become; and that nothing failed.
    script = (
        "<script>const order = () => [...document.querySelectorAll('tbody strong')].map(x => x.textContent).join();"
        "const head = document.querySelectorAll('th')[4]; const said = [order()];"
        "head.click(); said.push(order()); head.click(); said.push(order());"
        "document.querySelectorAll('th')[7].click(); said.push(order());"
        "const broken = [...document.images].filter(x => !x.naturalWidth && x.complete).length;"
        "document.title = JSON.stringify([said, broken, document.scripts.length]);</script>"
    )
    pressed = out / "pressed.html"
    pressed.write_text(page.read_text(encoding="utf-8").replace("</main>", script + "</main>"), encoding="utf-8")
    dom = browse(chromium, tmp_path / "two", pressed, "--dump-dom")
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title, dom[:500]
    said, broken, scripts = json.loads(title[1])
    assert said == ["s0,s1,s2", "s2,s0,s1", "s0,s2,s1", "s0,s2,s1"], "what is not known comes last, up and down"
    assert (broken, scripts) == (0, 2)
    assert "alert(1)" in dom, "the reason is text"
