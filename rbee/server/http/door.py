"""Who may come in: by the name that a request has for the server, by the page that sends it, and by its key.

Owns these rules and their refusals. Does not know routes, but for those that need no key.

A page in a browser is a stranger, whatever site it is of. What it sends with its user's rights it must not be able to
send here, or any page could use a server that listens on its reader's own machine. A page whose site's name leads to
this address (DNS rebinding) is of the same origin for the browser; only the name in Host tells.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from rbee.errors import ConfigError
from rbee.server.errors import Refusal, RefusalKind
from rbee.server.http.keys import KeyRing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.types import Scope

_Headers: TypeAlias = "Mapping[bytes, str]"  # their names in lower case

ANY = "*"
_OPEN_PATHS = frozenset({"/health", "/ready"})  # no key needed
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{0,5})?", re.IGNORECASE)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_SHOWN = 64  # characters of what a request has sent that a refusal repeats
_SAFE_METHODS = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, kw_only=True)
class Door:
    """The rules of one server.

    Args:
        keys: of which a request must carry one.
        hosts: names that the server answers to, without a port; None: any.
        origins: of pages that may use the server, as Origin has them; ANY: all.
    """

    keys: KeyRing = field(default_factory=KeyRing)
    hosts: frozenset[str] | None = None
    origins: frozenset[str] = frozenset()

    def refusal(self, scope: Scope) -> Refusal | None:
        """Why this request may not come in, or None. Leaves the number of its key in the scope's state, "caller"."""
        # Of several of one name the first counts.
        headers = {name: value.decode("latin-1") for name, value in reversed(list(scope["headers"]))}
        caller = scope["state"]["caller"] = self._caller(headers)
        return (
            self._of_host(scope)
            or self._of_page(scope, headers)
            or (_unauthenticated() if self._lacks_key(scope, caller) else None)
        )

    def _of_host(self, scope: Scope) -> Refusal | None:
        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if not given and scope["http_version"] == "1.0":
            return None
        match = _HOST.fullmatch(given[0]) if len(given) == 1 else None
        if match is None:
            message = "A request must have one Host header with the server's name or address, and perhaps a port."
            return Refusal(RefusalKind.INVALID, message, code="invalid_host")
        if self.hosts is None or _plain(match[1]) in self.hosts:
            return None
        return Refusal(
            RefusalKind.FORBIDDEN,
            f"This server does not answer to the name {given[0][:_SHOWN]!r}. If it should, start it with "
            "--allowed-host.",
            code="host_not_allowed",
        )

    def _of_page(self, scope: Scope, headers: _Headers) -> Refusal | None:
        origin = headers.get(b"origin")
        if ANY in self.origins or origin in self.origins or not _is_foreign(scope, headers, origin):
            return None
        page = "A page of another site" if origin is None else f"A page of {origin[:_SHOWN]!r}"
        return Refusal(
            RefusalKind.FORBIDDEN,
            f"{page} may not use this server. If it should, start it with --cors-origin.",
            code="origin_not_allowed",
        )

    def _caller(self, headers: _Headers) -> int | None:
        scheme, _, token = headers.get(b"authorization", "").partition(" ")
        sent = token if scheme.lower() == "bearer" else headers.get(b"x-api-key", "")
        return self.keys.number_of(sent.strip().encode())

    def _lacks_key(self, scope: Scope, caller: int | None) -> bool:
        return caller is None and len(self.keys) > 0 and scope["path"] not in _OPEN_PATHS


def allowed_hosts(host: str, given: Sequence[str]) -> frozenset[str] | None:
    """The `Door.hosts` of a server that listens on `host`, with these --allowed-host; None: any.

    On a public address the names are not known, and it needs a key.

    ConfigError: one of those given is no name.
    """
    for name in given:
        if name != ANY and ((match := _HOST.fullmatch(name)) is None or match[2]):
            raise ConfigError(f"--allowed-host {name} is no name or address; give it without scheme, port and path.")
    own = f"[{host}]" if ":" in host and not host.startswith("[") else host
    if ANY in given or not (given or is_loopback(host)):
        return None
    return frozenset(map(_plain, (*_LOOPBACK_NAMES, own, *given)))


def allowed_origins(given: Sequence[str]) -> frozenset[str]:
    """The `Door.origins` for these --cors-origin; ConfigError if one is none."""
    for origin in given:
        if origin != ANY and not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"--cors-origin {origin} is no origin: give scheme, host and perhaps port, in small letters and "
                "without a path, as in https://example.com."
            )
    return frozenset(given)


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to the address."""
    host = host.strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _plain(name: str) -> str:
    return name.lower().removesuffix(".")


def _is_foreign(scope: Scope, headers: _Headers, origin: str | None) -> bool:
    """Whether a page of another origin sends this. What is no browser says nothing of this kind.

    Who follows a link is not sent by the page, although the browser says where it came from.
    """
    site = headers.get(b"sec-fetch-site")
    if site is None:
        return origin is not None and origin.partition("://")[2] != headers.get(b"host", "").lower()
    if scope["method"] in _SAFE_METHODS and headers.get(b"sec-fetch-mode") == "navigate":
        return False
    return site not in ("same-origin", "none")


def _unauthenticated() -> Refusal:
    message = "The API key is missing or wrong; send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
    return Refusal(RefusalKind.UNAUTHENTICATED, message, code="invalid_api_key")
