"""Who may ask the viewer: the token of the address, its cookie, the names of this server, and what a page may load.

/open?token=…   sets the cookie, and leads to /
everything      refused without the cookie, under a foreign `Host`, or from a foreign page
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import secrets
import socket
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tornado.web import HTTPError, RequestHandler

log = logging.getLogger(__name__)

POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; "
    "script-src 'self'; style-src 'self'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address of the first page holds the token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",  # no picture of a patient in the browser's cache
    "Server": "wsi-stain",
}


@dataclass(slots=True)
class Access:
    """The secrets of one server, and the names under which it may be called."""

    host: str
    is_remote: bool
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    session: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    port: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def cookie(self) -> str:
        """Name of the cookie: cookies of all ports share one jar."""
        return f"wsi-stain-{self.port}"

    def is_ours(self, host: str) -> bool:
        """Whether a `Host` header names this server; any port, as the far end of a tunnel has another one.

        A foreign name that resolves to this machine is an attack (DNS rebinding), which addresses cannot be.
        """
        name = urlsplit(f"//{host}").hostname or ""
        if name in ("localhost", "127.0.0.1", "::1"):
            return True
        return self.is_remote and (name in _names(self.host) or _is_address(name))

    def refuse(self, status: int, reason: str) -> HTTPError:
        """The error of a refused request; each kind is logged once, so that a flood of them cannot fill the log."""
        self.refused[reason] += 1
        if self.refused[reason] == 1:
            log.warning("refused a request: %s (%d); further ones are not logged", reason, status)
        return HTTPError(status, reason=reason)


def _reason(error: BaseException | None) -> str:
    """Why a request failed; nothing about an unexpected error."""
    return str(error.reason) if isinstance(error, HTTPError) and error.reason else "the request failed"


class Guarded(RequestHandler):
    """A request that needs the cookie. Answers carry the headers above; errors are one line of text."""

    needs_cookie = True

    def initialize(self, access: Access, **_: Any) -> None:
        """See tornado."""
        self.access = access

    def set_default_headers(self) -> None:
        """See tornado."""
        for name, value in HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        """Refuse what does not come from our own page."""
        if not self.access.is_ours(self.request.headers.get("Host", "")):
            raise self.access.refuse(403, "unknown host name")
        origin = self.request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != self.request.headers.get("Host"):
            raise self.access.refuse(403, "request of another page")
        session = self.get_cookie(self.access.cookie, "") or ""
        if self.needs_cookie and not hmac.compare_digest(session.encode(), self.access.session.encode()):
            raise self.access.refuse(403, "open the address that wsi-stain view printed")

    def write_error(self, status_code: int, **details: Any) -> None:
        """One line."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{status_code} {_reason(details.get('exc_info', (None, None))[1])}\n")


class Missing(Guarded):
    """Every other address."""

    def prepare(self) -> None:
        """Not found, or refused."""
        super().prepare()
        raise self.access.refuse(404, "no such address")


def _names(host: str) -> set[str]:
    return {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
