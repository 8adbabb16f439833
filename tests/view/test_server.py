"""The viewer's server: who may ask, what it serves, and that it stains what is looked at."""

import asyncio
import http.client
import json
import logging
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import cv2
import numpy as np
import pytest
import tifffile
from builders.conversions import InvertAndBlur, digest, noise, pixels_of, request_of, write_slide
from builders.he import tile
from builders.slides import tissue, write_svs
from skimage.color import rgb_from_hed

from wsi_stain.conversion.engine import convert
from wsi_stain.errors import ConfigError
from wsi_stain.view import handlers
from wsi_stain.view.scene import Source
from wsi_stain.view.server import Viewer


class Page:
    """A client with the cookie, as a browser has it."""

    def __init__(self, viewer: Viewer) -> None:
        self.port = viewer.port
        self.cookie = f"{viewer.access.cookie}={viewer.access.session}"

    def raw(self, method, path, *, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host="Host" in headers)
        if "Cookie" not in headers:
            headers["Cookie"] = self.cookie
        data = b"" if body is None else json.dumps(body).encode()
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            connection.putheader(name, value)
        connection.endheaders(data)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response, content

    def get(self, path):
        response, content = self.raw("GET", path)
        assert response.status == 200, content
        return json.loads(content) if response.headers["Content-Type"].startswith("application/json") else content

    def post(self, path, body):
        response, content = self.raw("POST", path, body=body)
        assert response.status == 200, content
        return json.loads(content)

    def status(self, method, path, **options):
        return self.raw(method, path, **options)[0].status

    def picture(self, path):
        return cv2.imdecode(np.frombuffer(self.get(path), np.uint8), cv2.IMREAD_UNCHANGED)[..., 2::-1]

    def wait(self, until, seconds=60):
        """Follow the changes until the state satisfies a condition."""
        state, end = self.get("/slides/0")["state"], time.monotonic() + seconds
        while not until(state):
            assert time.monotonic() < end, state
            state = self.get(f"/slides/0/changes?client=a&since={state['version']}")
        return state


@contextmanager
def serving(*sources, **options):
    """A viewer in a thread, and a page of it."""
    with Viewer(list(sources), **options) as viewer:
        loop = asyncio.new_event_loop()
        task = loop.create_task(viewer.serve())
        thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.gather(task, return_exceptions=True)))
        thread.start()
        try:
            yield Page(viewer), viewer
        finally:
            loop.call_soon_threadsafe(task.cancel)
            thread.join()
            loop.close()


def live(tmp_path, h=1300, w=1700, *keys, **fields):
    slide = write_slide(tmp_path / "s.tif", noise(h, w))
    return Source("s.tif", request_of(slide, tmp_path / "s.ome.tiff", "output.compression=jpeg", *keys, **fields))


@pytest.fixture
def finished(tmp_path):
    """A finished pair: the identity of a JPEG slide."""
    slide = tmp_path / "s.svs"
    write_svs(slide, tissue(1400, 1100))
    request = request_of(slide, tmp_path / "s.ome.tiff", "output.compression=jpeg")
    return Source("s.svs", request, convert(request).output)


# ---- who may ask ---------------------------------------------------------------------------------------------------


def test_the_token_is_exchanged_for_a_strict_cookie(tmp_path, finished):
    with serving(finished) as (page, viewer):
        path = viewer.address.partition(str(viewer.port))[2]
        response, content = page.raw("GET", path, Cookie="")
        assert response.status == 200
        cookie = response.headers["Set-Cookie"]
        assert all(word in cookie for word in ("HttpOnly", "SameSite=Strict", "Path=/"))
        assert viewer.access.token.encode() not in content
        page.cookie = cookie.partition(";")[0]
        assert page.get("/slides")["slides"] == [{"name": "s.svs"}]


@pytest.mark.parametrize("path", ["/", "/slides", "/slides/0", "/slides/0/he/0/0/0", "/page/app.js", "/no-such"])
def test_without_the_cookie_nothing_is_served(finished, path):
    with serving(finished) as (page, viewer):
        for cookie in ("", f"{viewer.access.cookie}=", f"{viewer.access.cookie}={viewer.access.token}", "a=b"):
            assert page.status("GET", path, Cookie=cookie) == 403
        assert page.status("GET", "/open?token=wrong", Cookie="") == 403
        assert page.status("GET", "/open", Cookie="") == 403


def test_foreign_hosts_and_pages_are_refused(finished):
    with serving(finished) as (page, viewer):
        for host in ("evil.example", f"evil.example:{viewer.port}", "", "127.0.0.1.evil.example", "10.0.0.1"):
            assert page.status("GET", "/slides", Host=host) == 403, host
        for host in ("localhost", "localhost:9000", f"127.0.0.1:{viewer.port}", "[::1]:80"):
            assert page.status("GET", "/slides", Host=host) == 200, "a tunnel may end at another port"
        here = f"127.0.0.1:{viewer.port}"
        assert page.status("POST", "/slides/0/look", body={}, Host=here, Origin="http://evil.example") == 403
        assert page.status("POST", "/slides/0/look", body={}, Host=here, Origin="http://127.0.0.1:1") == 403
        assert page.status("POST", "/slides/0/look", body={}, Host=here, Origin=f"http://{here}") == 200


@pytest.mark.slow
def test_what_does_not_exist_is_not_found_in_one_line_of_log(finished, caplog):
    caplog.set_level(logging.INFO)
    with serving(finished) as (page, _):
        for path in (
            *(
                "/../../etc/passwd",
                "/page/../server.py",
                "/page/..%2fserver.py",
                "/page/%2e%2e/server.py",
                "//etc/passwd",
            ),
            *("/slides/1", "/slides/7/he/0/0/0", "/slides/-1", "/slides/s.svs", "/slides/0/label", "/slides/0/macro"),
            *("/slides/0/he/9/0/0", "/slides/0/he/0/-1/0", "/slides/0/xx/0/0/0", "/slides/0/he/0/0/0/..", "/page/x.js"),
        ):
            assert page.status("GET", path) == 404, path
        connection = http.client.HTTPConnection("127.0.0.1", page.port)
        for number in range(10_000):
            connection.request("GET", f"/slides/0/stain/0/{100 + number}/{number}", headers={"Cookie": page.cookie})
            response = connection.getresponse()
            response.read()
            assert response.status == 404
        connection.close()
        assert page.status("POST", "/slides/0/look", body=["x"]) == 400
        assert page.status("POST", "/slides/0/stain", body={"box": [1, 2]}) == 400
        assert page.status("PUT", "/slides/0") == 405
        assert page.get("/slides"), "the server is alive"
    lines = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert len([line for line in lines if "no such tile" in line]) == 1
    assert all(line.startswith("refused a request:") for line in lines if "405" not in line), lines
    assert not any(record.exc_info for record in caplog.records)


def test_every_answer_forbids_foreign_content_and_caching(finished):
    with serving(finished) as (page, _):
        for path in ("/", "/slides/0", "/slides/0/he/0/0/0", "/nothing"):
            headers = page.raw("GET", path)[0].headers
            assert headers["Content-Security-Policy"].startswith("default-src 'self';")
            assert headers["Cache-Control"] == "no-store"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"


def test_other_machines_need_a_flag(finished):
    with pytest.raises(ConfigError, match="--allow-remote"):
        Viewer([finished], host="0.0.0.0")
    with serving(finished, host="0.0.0.0", allow_remote=True) as (page, _):
        assert page.status("GET", "/slides", Host="192.168.1.7:80") == 200
        assert page.status("GET", "/slides", Host="evil.example") == 403


# ---- what is served ------------------------------------------------------------------------------------------------


def test_the_page_is_small_and_names_nothing_elsewhere():
    total = 0
    for name in handlers.ASSETS:
        content = handlers.asset(name)
        total += len(content)
        if not name.startswith("openseadragon"):
            text = content.decode().replace("http://www.w3.org/2000/svg", "")
            assert "http://" not in text, name
            assert "https://" not in text, name
            assert "style=" not in text, "the policy forbids it"
            assert "onclick" not in text
    assert total < 500_000


def test_the_vendored_script_is_the_published_one():
    import hashlib

    text = handlers.asset("openseadragon.md").decode()
    assert hashlib.sha256(handlers.asset("openseadragon.min.js")).hexdigest() in text
    assert b"openseadragon 6.1.1" in handlers.asset("openseadragon.min.js")[:40]
    assert b"CodePlex Foundation" in handlers.asset("openseadragon.LICENSE.txt")


def test_a_finished_pair_is_served_from_the_encoded_tiles_of_its_files(finished):
    with serving(finished) as (page, _):
        scene = page.get("/slides/0")
        assert not scene["live"]
        assert scene["notice"] == "VIRTUAL STAIN – research use only"
        assert scene["facts"]["model"] == "identity 1.0.0"
        with tifffile.TiffFile(finished.virtual) as tiff:
            level = tiff.series[0].levels[1].keyframe
            tiff.filehandle.seek(level.dataoffsets[2])
            stored = tiff.filehandle.read(level.databytecounts[2])
        across = scene["stain"][1]["grid"][1]
        assert page.get(f"/slides/0/stain/1/{2 // across}/{2 % across}") == stored
        whole = pixels_of(finished.virtual)
        h, w = scene["stain"][0]["size"]
        assert whole.shape == (h, w, 3)
        tile = page.picture("/slides/0/stain/0/1/1")
        np.testing.assert_allclose(tile[:300, :300].astype(int), whole[512:812, 512:812].astype(int), atol=3)


@pytest.mark.parametrize("ending", ["ome.tiff", "ome.zarr"])
def test_every_tile_of_every_layer_is_the_slide_s(tmp_path, ending):
    image = tissue(1300, 900)
    slide = write_slide(tmp_path / "s.tif", image)
    request = request_of(slide, tmp_path / f"s.{ending}")
    with serving(Source("s", request, convert(request).output)) as (page, _):
        scene = page.get("/slides/0")
        for layer in ("he", "stain"):
            out = np.zeros((*scene[layer][0]["size"], 3), np.uint8)
            (rows, columns), (h, w) = scene[layer][0]["grid"], scene[layer][0]["tile"]
            for row in range(rows):
                for column in range(columns):
                    part = out[row * h : (row + 1) * h, column * w : (column + 1) * w]
                    part[:] = page.picture(f"/slides/0/{layer}/0/{row}/{column}")[: part.shape[0], : part.shape[1]]
            assert np.abs(out.astype(int) - image).mean() < 3, "the same place, up to JPEG"
            assert max(scene[layer][-1]["size"]) <= 512
            page.picture(f"/slides/0/{layer}/{len(scene[layer]) - 1}/0/0")
        assert page.get("/slides/0/thumbnail")[:2] == b"\xff\xd8"
        assert page.get("/slides/0/dab/0/0/0")[:4] == b"\x89PNG"


def test_a_stain_lies_where_its_region_was(tmp_path, use):
    use(InvertAndBlur, mpp=1.0)  # the slide has 0.5 µm/px
    slide = write_slide(tmp_path / "s.tif", noise(1300, 1700))
    request = request_of(slide, tmp_path / "s.ome.tiff", region=(301, 200, 700, 600))
    with serving(Source("s", request)) as (page, _):
        place = page.get("/slides/0")["place"]
    assert place == [300, 200, 2]
    with serving(Source("s", request, convert(request).output)) as (page, _):
        assert page.get("/slides/0")["place"] == place


def test_the_outline_of_the_tissue_is_in_the_slide_s_pixels(finished):
    with serving(finished) as (page, _):
        rings = page.get("/slides/0/outlines/tissue")["rings"]
        corners = np.concatenate([np.array(ring) for ring in rings])
        h, w = page.get("/slides/0")["size"]
        assert corners.min() >= 0
        assert (corners <= (w, h)).all()
        assert page.get("/slides/0/outlines/unreadable")["rings"] == []


def test_a_stain_of_another_slide_is_marked(tmp_path, finished):
    other = tmp_path / "other.svs"
    write_svs(other, 255 - tissue(1400, 1100))
    with serving(replace(finished, request=replace(finished.request, slide=other))) as (page, _):
        end = time.monotonic() + 30
        while not (warnings := page.get("/slides/0")["state"]["warnings"]):
            assert time.monotonic() < end
        assert "another slide" in warnings[0]


def test_a_slide_that_the_model_does_not_know_is_marked_while_it_is_stained(tmp_path, use):
    use(InvertAndBlur).expects = "H&E"
    brown = write_slide(tmp_path / "s.tif", tile(600, vectors=rgb_from_hed[[0, 2]]))
    with serving(Source("s", request_of(brown, tmp_path / "a.ome.tiff"), None)) as (page, _):
        end = time.monotonic() + 30
        while not (warnings := page.get("/slides/0")["state"]["warnings"]):
            assert time.monotonic() < end
        assert "not to be trusted" in warnings[0]


# ---- staining on demand --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_looked_at_is_stained_from_the_centre_and_convert_completes_it(tmp_path, use):
    use(InvertAndBlur)
    source = live(tmp_path, 2300, 2700)
    (tmp_path / "alone").mkdir()
    alone = replace(source.request, output=tmp_path / "alone" / "s.ome.tiff")
    expected = digest(convert(alone).output)
    with serving(source) as (page, _):
        assert page.get("/slides/0")["state"]["share"] == 0
        pale = page.picture("/slides/0/stain/0/1/1")
        assert pale.min() > 120, "a pale H&E"
        page.post("/slides/0/look", {"client": "a", "box": [600, 600, 900, 1100]})
        first = page.wait(lambda state: state["version"] >= 2)
        box = first["boxes"][0]
        assert box[0] < 750 < box[2], "the first tile is the one in the centre"
        assert box[1] < 850 < box[3]
        end = time.monotonic() + 30
        while _painted(tmp_path) < 2:
            assert time.monotonic() < end
        time.sleep(0.5)
        assert _painted(tmp_path) == 2, "blocks outside the view are not painted"
        shown = page.picture("/slides/0/stain/0/1/1")
        with tifffile.TiffFile(alone.output) as tiff:
            whole = tiff.series[0].asarray()
        np.testing.assert_allclose(shown[:512, :512].astype(int), whole[512:1024, 512:1024].astype(int), atol=3)
    assert (tmp_path / "s.ome.tiff.spool").exists()
    assert digest(convert(source.request).output) == expected


def _painted(tmp_path):
    return len(list((tmp_path / "s.ome.tiff.spool").glob("b_*")))


def test_zoomed_out_nothing_is_stained_until_a_button_is_pressed(tmp_path, use, monkeypatch):
    use(InvertAndBlur)
    monkeypatch.setattr("wsi_stain.view.stainer.MOST_PX", 1 << 20)
    source = live(tmp_path)
    with serving(source) as (page, _):
        page.post("/slides/0/look", {"client": "a", "box": [0, 0, 1300, 1700]})
        page.wait(lambda state: state["device"])
        time.sleep(1)
        assert page.get("/slides/0")["state"]["share"] == 0
        state = page.post("/slides/0/stain", {"box": [0, 0, 500, 500]})
        assert state["region"]["total"] > 0
        page.wait(lambda state: state["region"] is None)
        assert _painted(tmp_path) == 1
        page.post("/slides/0/stain", {"everything": True})
        state = page.wait(lambda state: state["complete"])
        assert state["share"] == 1
    assert _painted(tmp_path) == 12


def test_stopping_a_region_and_closing_a_page_end_the_work(tmp_path, use):
    class Slow(InvertAndBlur):
        def __call__(self, tiles):
            time.sleep(0.1)
            return super().__call__(tiles)

    use(Slow)
    with serving(live(tmp_path, 2300, 2700)) as (page, viewer):
        page.post("/slides/0/stain", {"everything": True})
        page.wait(lambda state: state["share"] > 0)
        assert page.post("/slides/0/stain", {"stop": True})["region"] is None
        time.sleep(0.4)
        share = page.get("/slides/0")["state"]["share"]
        time.sleep(0.5)
        assert page.get("/slides/0")["state"]["share"] == share
        page.post("/slides/0/look", {"client": "b", "box": [0, 0, 2300, 2700]})
        version = page.get("/slides/0")["state"]["version"]
        connection = http.client.HTTPConnection("127.0.0.1", page.port)
        connection.request(
            "GET", f"/slides/0/changes?client=b&since={version + 10_000}", headers={"Cookie": page.cookie}
        )
        stainer = viewer.scenes.get(0).stainer
        assert stainer.state()["looks"] == 1
        time.sleep(0.3)
        connection.close()
        end = time.monotonic() + 10
        while stainer.state()["looks"]:
            assert time.monotonic() < end, "the view of a closed page is forgotten"
            time.sleep(0.05)


def test_a_second_viewer_says_who_stains_and_shows_it(tmp_path, use):
    use(InvertAndBlur)
    source = live(tmp_path)
    with serving(source) as (first, _), serving(source) as (second, _):
        first.get("/slides/0")
        assert "in use by process" in second.get("/slides/0")["state"]["blocked"]
        first.post("/slides/0/stain", {"box": [0, 0, 100, 100]})
        first.wait(lambda state: state["region"] is None and state["share"] > 0)
        state = second.wait(lambda state: state["share"] > 0)
        assert state["boxes"] == [[0, 0, 512, 512]]
        assert second.get("/slides/0/stain/0/0/0") == first.get("/slides/0/stain/0/0/0")


def test_an_error_of_staining_is_shown_and_the_server_lives(tmp_path, use):
    class Broken(InvertAndBlur):
        def __call__(self, tiles):
            raise RuntimeError("the device fell over")

    use(Broken)
    with serving(live(tmp_path)) as (page, _):
        page.post("/slides/0/look", {"client": "a", "box": [0, 0, 300, 300]})
        state = page.wait(lambda state: state["error"])
        assert "the device fell over" in state["error"]
        assert page.get("/slides/0/he/0/0/0")


def test_a_slide_that_cannot_be_opened_gives_one_sentence(tmp_path):
    (tmp_path / "s.tif").write_text("not a slide")
    with serving(Source("s", request_of(tmp_path / "s.tif", tmp_path / "s.ome.tiff"))) as (page, _):
        response, content = page.raw("GET", "/slides/0")
        assert response.status == 422
        assert "s.tif" in json.loads(content)["error"]
