"""The server of the viewer: one process, one event loop, a few threads for pixels."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from wsi_stain.cluster.threads import processors
from wsi_stain.errors import ConfigError, OutputError
from wsi_stain.view import handlers
from wsi_stain.view.access import Access, Missing
from wsi_stain.view.scene import Scenes, Source

log = logging.getLogger(__name__)

MOST_BODY_BYTES = 64 << 10
LOCAL = ("127.0.0.1", "localhost", "::1")
NUMBER = r"([0-9]{1,6})"


class Viewer:
    """Shows slides in a browser until it is stopped.

        with Viewer(sources) as viewer:
            print(viewer.address)
            asyncio.run(viewer.serve())

    Args:
        sources: the only slides that can be seen.
        host: where to listen; other machines can connect only with `allow_remote`.
        port: 0 takes a free one.
        allow_remote: accept a host that other machines can reach.

    Raises:
        ConfigError: other machines could connect, and `allow_remote` is not given.
        OutputError: the port is taken.
    """

    def __init__(
        self, sources: list[Source], *, host: str = "127.0.0.1", port: int = 0, allow_remote: bool = False
    ) -> None:
        if host not in LOCAL and not allow_remote:
            raise ConfigError(
                f"--host {host} would show the slides to other machines; add --allow-remote if that is intended, or "
                "omit --host and use an SSH tunnel"
            )
        self.access = Access(host, allow_remote)
        try:
            self._sockets = bind_sockets(port, host)
        except OSError as err:
            raise OutputError(f"{host}:{port} cannot be used ({err.strerror}); choose another --port") from err
        self.port = self.access.port = self._sockets[0].getsockname()[1]
        self.scenes = Scenes(sources)
        self._executor = ThreadPoolExecutor(max(2, min(4, processors())), thread_name_prefix="tiles")
        self.application = application(self.access, self.scenes, self._executor)

    @property
    def address(self) -> str:
        """The address that opens it; whoever has it sees the slides."""
        host = "127.0.0.1" if self.access.host in (*LOCAL, "0.0.0.0", "") else self.access.host
        return f"http://{host}:{self.port}/open?token={self.access.token}"

    async def serve(self) -> None:
        """Answer requests until the task is cancelled."""
        server = HTTPServer(self.application, max_body_size=MOST_BODY_BYTES)
        server.add_sockets(self._sockets)
        try:
            await asyncio.Event().wait()
        finally:
            server.stop()
            with suppress(TimeoutError):
                await asyncio.wait_for(server.close_all_connections(), 2)

    def close(self) -> None:
        """End staining, give locks back, close all files."""
        for socket in self._sockets:
            socket.close()
        self._executor.shutdown(cancel_futures=True)
        self.scenes.close()

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def application(access: Access, scenes: Scenes, executor: ThreadPoolExecutor) -> Application:
    """All addresses. Everything else is not found."""
    parts: dict[str, Any] = {"access": access, "scenes": scenes, "executor": executor}
    own = {"access": access}
    slide = f"/slides/{NUMBER}"
    return Application(
        [
            ("/", handlers.Asset, own),
            ("/open", handlers.Open, own),
            ("/open.js", handlers.OpenScript, own),
            (r"/page/([a-z.]+)", handlers.Asset, own),
            ("/slides", handlers.Slides, parts),
            (slide, handlers.Describe, parts),
            (f"{slide}/(he|stain|dab)/{NUMBER}/{NUMBER}/{NUMBER}", handlers.TileHandler, parts),
            (f"{slide}/thumbnail", handlers.Thumbnail, parts),
            (f"{slide}/outlines/(tissue|unreadable)", handlers.Outlines, parts),
            (f"{slide}/look", handlers.Look, parts),
            (f"{slide}/stain", handlers.Stain, parts),
            (f"{slide}/changes", handlers.Changes, parts),
        ],
        default_handler_class=Missing,
        default_handler_args=own,
        compress_response=True,
        log_function=_log,
    )


def _log(handler: RequestHandler) -> None:
    """Requests are not logged; refusals are, once of each kind."""
    log.debug("%d %s %s", handler.get_status(), handler.request.method, handler.request.path)
