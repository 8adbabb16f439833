"""The addresses of the viewer; slides are numbers, and no part of an address is ever a path of a file."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Callable
from concurrent.futures import Executor
from importlib.resources import files
from typing import Any, TypeVar

from tornado.web import Finish

from wsi_stain.errors import WsiStainError
from wsi_stain.geometry import Box
from wsi_stain.view.access import Access, Guarded
from wsi_stain.view.layers import MIME, picture
from wsi_stain.view.scene import Scene, Scenes

T = TypeVar("T")

ASSETS = {
    "index.html": "text/html; charset=utf-8",
    "open.html": "text/html; charset=utf-8",
    "open.js": "text/javascript; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "picture.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "style.css": "text/css; charset=utf-8",
    "openseadragon.min.js": "text/javascript; charset=utf-8",
}
THUMBNAIL_PX = 256
WAIT_S, LOOK_EVERY_S = 20.0, 0.1
"""How long a page waits for a change, and how often it is looked for."""


def asset(name: str) -> bytes:
    """A file of the page."""
    return (files("wsi_stain.view") / "page" / name).read_bytes()


class Asset(Guarded):
    """A file of the page, by its exact name."""

    def get(self, name: str = "index.html") -> None:
        """See tornado."""
        if name not in ASSETS:
            raise self.access.refuse(404, "no such address")
        self.set_header("Content-Type", ASSETS[name])
        self.finish(asset(name))


class Open(Guarded):
    """Exchanges the token for the cookie."""

    needs_cookie = False

    def get(self) -> None:
        """A page that leads to `/`: a redirect after a link of another site would arrive without the strict cookie."""
        token = self.get_query_argument("token", "")
        if not hmac.compare_digest(token.encode(), self.access.token.encode()):
            raise self.access.refuse(403, "wrong token")
        self.set_cookie(self.access.cookie, self.access.session, httponly=True, samesite="Strict", path="/")
        self.set_header("Content-Type", ASSETS["open.html"])
        self.finish(asset("open.html"))


class OpenScript(Asset):
    """The script of that page: the only file for which no cookie is needed."""

    needs_cookie = False

    def get(self, name: str = "open.js") -> None:
        """See tornado."""
        super().get("open.js")


class OfScenes(Guarded):
    """A request about slides; work on pixels runs in the executor and is dropped if the browser gives it up."""

    def initialize(self, access: Access, **parts: Any) -> None:
        """See tornado."""
        super().initialize(access)
        self.scenes: Scenes = parts["scenes"]
        self._executor: Executor = parts["executor"]
        self._job: asyncio.Future[Any] | None = None

    def on_connection_close(self) -> None:
        """The browser no longer waits."""
        if self._job is not None:
            self._job.cancel()

    async def run(self, func: Callable[..., T], *arguments: Any) -> T:
        """Call a function in a thread."""
        self._job = asyncio.get_running_loop().run_in_executor(self._executor, func, *arguments)
        try:
            return await self._job
        except asyncio.CancelledError as err:  # the browser gave it up, or the server ends
            raise Finish from err
        except WsiStainError as err:
            self.set_status(422)
            self.finish({"error": str(err)})
            raise Finish from err

    async def scene(self, number: str) -> Scene:
        """The slide of that number."""
        if int(number) >= len(self.scenes.sources):
            raise self.access.refuse(404, "no such slide")
        return await self.run(self.scenes.get, int(number))

    def body(self) -> dict[str, Any]:
        """The JSON object that the page sent."""
        try:
            content = json.loads(self.request.body)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise self.access.refuse(400, "the request is not a JSON object")
        return content

    def box(self, value: Any) -> Box:
        """A box (y0, x0, y1, x1) that the page sent."""
        if not (isinstance(value, list) and len(value) == 4 and all(isinstance(n, int | float) for n in value)):
            raise self.access.refuse(400, "the request has no box")
        return Box(*(int(max(-(2**40), min(2**40, n))) for n in value))


class Slides(OfScenes):
    """The list of slides, and the address to pass on."""

    def get(self) -> None:
        """See tornado."""
        names = [{"name": source.name} for source in self.scenes.sources]
        self.finish({"slides": names, "link": f"/open?token={self.access.token}"})


class Describe(OfScenes):
    """A slide's levels, place of the stain, and facts."""

    async def get(self, number: str) -> None:
        """See tornado."""
        scene = await self.scene(number)
        self.finish({**scene.describe(), "state": scene.state()})
        asyncio.get_running_loop().run_in_executor(self._executor, scene.check_source)


class TileHandler(OfScenes):
    """A tile of a layer."""

    async def get(self, number: str, name: str, level: str, row: str, column: str) -> None:
        """See tornado."""
        scene = await self.scene(number)
        layer, at = scene.layer(name), (int(level), int(row), int(column))
        if layer is None or at[0] >= len(layer.levels):
            raise self.access.refuse(404, "no such tile")
        grid = layer.levels[at[0]].grid
        if at[1] >= grid.h or at[2] >= grid.w:
            raise self.access.refuse(404, "no such tile")
        data = await self.run(layer.tile, *at)
        self.set_header("Content-Type", MIME[data[:2]])
        self.finish(data)


class Thumbnail(OfScenes):
    """A small picture of a slide's H&E; never its label or macro."""

    async def get(self, number: str) -> None:
        """See tornado."""
        scene = await self.scene(number)
        pixels = await self.run(scene.slide.thumbnail, THUMBNAIL_PX)
        self.set_header("Content-Type", "image/jpeg")
        self.finish(picture(pixels))


class Outlines(OfScenes):
    """Rings around tissue, or around what could not be read."""

    async def get(self, number: str, kind: str) -> None:
        """See tornado."""
        scene = await self.scene(number)
        self.finish({"rings": await self.run(scene.outlines, kind)})


class Look(OfScenes):
    """What a page shows now."""

    async def post(self, number: str) -> None:
        """Body: `client`, and `box` in px of the stain or null."""
        scene, body = await self.scene(number), self.body()
        if scene.stainer is not None:
            box = None if body.get("box") is None else self.box(body["box"])
            scene.stainer.look(str(body.get("client"))[:64], box)
        self.finish({})


class Stain(OfScenes):
    """The buttons: stain a region, stain everything, stop."""

    async def post(self, number: str) -> None:
        """Body: `box` in px of the stain, or `everything`, or `stop`."""
        scene, body = await self.scene(number), self.body()
        if scene.stainer is None:
            raise self.access.refuse(400, "this stain is finished")
        if body.get("stop"):
            scene.stainer.stop()
        else:
            await self.run(scene.stainer.stain, None if body.get("everything") else self.box(body.get("box")))
        self.finish(scene.state())


class Changes(OfScenes):
    """Waits for a change; the page asks again at once."""

    _scene: Scene | None = None
    _is_gone = False

    async def get(self, number: str) -> None:
        """Queries: `client`, and `since`, the last version that the page knows."""
        scene = await self.scene(number)
        self._scene, self._client = scene, self.get_query_argument("client", "")[:64]
        since = self.get_query_argument("since", "0")
        known = int(since) if since.isascii() and since.isdigit() else 0
        end = asyncio.get_running_loop().time() + WAIT_S
        while scene.version <= known and asyncio.get_running_loop().time() < end:
            if self._is_gone:
                raise Finish
            await asyncio.sleep(LOOK_EVERY_S)
        boxes = scene.stainer.changes(known) if scene.stainer is not None else []
        self.finish({**scene.state(), "boxes": boxes})

    def on_connection_close(self) -> None:
        """The page was closed: its view is no longer stained."""
        super().on_connection_close()
        self._is_gone = True
        if self._scene is not None and self._scene.stainer is not None:
            self._scene.stainer.look(self._client, None)
