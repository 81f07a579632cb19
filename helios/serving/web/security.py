"""Who may come in: keys, tickets, Host and Origin, decided before anything else runs.

Default is no: every route and every handshake needs a key unless it is on a short list, and the
decision looks at the path that is routed, nothing rebuilt from headers (specification
"reliability", 3.5).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from helios.serving.config import LOOPBACK, ServeConfig
from helios.serving.errors import ApiError

__all__ = ["NOBODY", "Guard", "read_keys", "ticket_shape"]

NOBODY = "local"
"""Owner of everything on a server without keys."""
TICKET_SECONDS = 30.0
MOST_TICKETS = 10_000
FAILURES, FAILURE_SECONDS = 60, 60.0
_OPEN_PATHS = frozenset({"/", "/health/live", "/favicon.ico"})
_HOST = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?", re.ASCII)
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def read_keys(text: str) -> dict[str, str]:
    """Keys of a file: ``KEY`` or ``NAME KEY`` a line; ``#`` begins a comment.

    Raises:
        ValueError: for a line that is neither, or a name that is there twice. The key is never
            part of the message.
    """
    keys: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split("#", 1)[0].split()
        if not parts:
            continue
        if len(parts) > 2:
            raise ValueError(f"line {number} of the key file must be KEY or NAME KEY")
        name = parts[0] if len(parts) == 2 else f"key{number}"
        if name in keys or name == NOBODY:
            raise ValueError(f"line {number} of the key file: the name is taken")
        keys[name] = parts[-1]
    if not keys:
        raise ValueError("the key file holds no key")
    return keys


def refused() -> ApiError:
    """One answer for a missing and for a wrong key."""
    return ApiError(
        401,
        "invalid_api_key",
        "a valid API key is needed: Authorization: Bearer KEY",
        headers={"WWW-Authenticate": "Bearer"},
    )


class Guard:
    """The decisions for one server.

    Args:
        config: keys, names and pages that are allowed.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._digests = {name: _digest(key) for name, key in config.keys.items()}
        self._open = _OPEN_PATHS | ({"/metrics"} if config.metrics_open else frozenset())
        self._hosts = {host.lower() for host in (*config.hosts, config.host)}
        self._any_host = config.insecure and config.host in ("0.0.0.0", "::")
        if config.loopback:
            self._hosts |= set(LOOPBACK)
        self._origins = {origin.lower().rstrip("/") for origin in config.origins}
        self._tickets: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    # --------------------------------------------------------------------------- the whole

    def admit(self, method: str, path: str, headers: Mapping[str, str], address: str) -> str:
        """Decide about a request by its host, its page and its key.

        Returns:
            Whose it is; empty where nobody is asked.

        Raises:
            ApiError: 400, 401, 403 or 429.
        """
        changes = method not in _SAFE
        self.check_host(headers.get("host"))
        self.check_origin(headers.get("origin"), headers.get("host"), strict=changes)
        if changes and headers.get("sec-fetch-site") == "cross-site":
            raise ApiError(403, "origin_not_allowed", "this page may not use the server")
        return "" if self.is_open(path, method) else self.owner(headers, address)

    def admit_socket(self, headers: Mapping[str, str], protocols: list[str], address: str) -> str:
        """The same for a handshake, which always has an owner."""
        self.check_host(headers.get("host"))
        self.check_origin(headers.get("origin"), headers.get("host"), strict=True)
        return self.owner_of_socket(headers, protocols, address)

    # --------------------------------------------------------------------------- the borders

    def check_host(self, host: str | None) -> None:
        """Refuse a Host header that is malformed or not one of ours.

        Raises:
            ApiError: 400 ``invalid_host`` or 403 ``host_not_allowed``.
        """
        match = _HOST.fullmatch(host or "")
        if match is None:
            raise ApiError(400, "invalid_host", "the Host header is missing or malformed")
        name = match[1].strip("[]").lower()
        if not (name in self._hosts or self._any_host or self._is_own_address(name)):
            raise ApiError(403, "host_not_allowed", "this server does not answer to that name")

    def _is_own_address(self, name: str) -> bool:
        """A server that listens everywhere is reached by its addresses, which cannot be rebound."""
        if not self._hosts & {"0.0.0.0", "::"}:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in LOOPBACK
        return True

    def check_origin(self, origin: str | None, host: str | None, *, strict: bool) -> None:
        """Refuse a foreign page.

        Args:
            origin: the header, none if there is none (not a browser, or the same page).
            host: the header, checked.
            strict: whether something changes, or a socket opens.

        Raises:
            ApiError: 403 ``origin_not_allowed``.
        """
        if origin is None or not strict:
            return
        parts = urlsplit(origin)
        own = parts.scheme in ("http", "https") and parts.netloc.lower() == (host or "").lower()
        plain = not (parts.path or parts.query or parts.fragment or "@" in parts.netloc)
        if not (plain and (own or origin.lower() in self._origins)):
            raise ApiError(403, "origin_not_allowed", "this page may not use the server")

    # ---------------------------------------------------------------------------------- keys

    def is_open(self, path: str, method: str) -> bool:
        """Whether the routed path needs no key: liveness and the shell of the page."""
        return method in _SAFE and (path in self._open or path.startswith("/static/"))

    def owner(self, headers: Mapping[str, str], address: str) -> str:
        """Whose key the request carries.

        Raises:
            ApiError: 401, always the same; 429 after many failures from one address.
        """
        if not self._digests:
            return NOBODY
        self._check_failures(address)
        kind, _, key = headers.get("authorization", "").partition(" ")
        name = self._known(key.strip()) if kind.lower() == "bearer" else None
        if name is None:
            if key:
                self._failed(address)
            raise refused()
        return name

    def owner_of_socket(
        self, headers: Mapping[str, str], protocols: list[str], address: str
    ) -> str:
        """The same for a handshake, where a browser can only say it as a sub-protocol."""
        if not self._digests:
            return NOBODY
        self._check_failures(address)
        for protocol in protocols:
            kind, _, value = protocol.partition(".")
            name = None
            if kind == "ticket":
                name = self._redeemed(value)
            elif kind == "bearer":
                name = self._known(value)
            if name is not None:
                return name
        return self.owner(headers, address)

    def _known(self, key: str) -> str | None:
        found = None
        digest = _digest(key)
        for name, own in self._digests.items():
            if hmac.compare_digest(own, digest):
                found = name
        return found

    def ticket(self, owner: str) -> str:
        """A word that opens one socket within 30 s."""
        now = time.monotonic()
        while self._tickets and (
            len(self._tickets) >= MOST_TICKETS or next(iter(self._tickets.values()))[1] < now
        ):
            self._tickets.popitem(last=False)
        word = secrets.token_urlsafe(32)
        self._tickets[_digest(word)] = owner, now + TICKET_SECONDS
        return word

    def _redeemed(self, word: str) -> str | None:
        owner, until = self._tickets.pop(_digest(word), (None, 0.0))
        return owner if time.monotonic() <= until else None

    def _check_failures(self, address: str) -> None:
        times = self._failures.get(address, [])
        recent = [t for t in times if time.monotonic() - t < FAILURE_SECONDS]
        if len(recent) >= FAILURES:
            raise ApiError(
                429,
                "too_many_failures",
                "too many wrong keys from this address",
                headers={"Retry-After": str(int(FAILURE_SECONDS))},
            )

    def _failed(self, address: str) -> None:
        times = self._failures.pop(address, [])[-FAILURES:]
        self._failures[address] = [*times, time.monotonic()]
        while len(self._failures) > MOST_TICKETS:
            self._failures.popitem(last=False)


def ticket_shape(word: str) -> dict[str, Any]:
    """What whoever asked for a ticket is told."""
    return {"ticket": word, "expires_in": int(TICKET_SECONDS)}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
