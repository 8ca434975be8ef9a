"""Leaves a request as it is if it offers to upgrade its connection: the server may ignore that (RFC 9110, 7.8).

Owns the parser that does so. httptools ends a message at the head that offers, and takes its body for bytes of another
protocol. Java's HttpClient and `curl --http2` offer h2c with a request to any http:// URL. Does not know what a request
asks for.
"""

from __future__ import annotations

from typing import Protocol

import httptools

_NAMED_BY_OFFERS = frozenset({b"upgrade", b"http2-settings"})  # in Connection


class Messages(Protocol):
    """The protocol behind a parser, with what it has gathered of a head."""

    parser: DecliningParser
    url: bytes
    headers: list[tuple[bytes, bytes]]  # names in lower case


class DecliningParser(httptools.HttpRequestParser):
    """Parses requests and declines their offers to upgrade. CONNECT remains what it is.

    While `offered`, `protocol` must ignore the end of a head and of a message: both come again, without the offer, from
    a parser that takes this one's place.
    """

    def __init__(self, protocol: Messages) -> None:
        super().__init__(protocol)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self._protocol = protocol

    @property
    def offered(self) -> bool:
        return self.should_upgrade() and self.get_method() != b"CONNECT"

    def feed_data(self, data: bytes) -> None:  # type: ignore[override] # it gets nothing else
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if self.get_method() == b"CONNECT":
                raise
            head = self._without_offer()
            self._protocol.parser = DecliningParser(self._protocol)
            self._protocol.parser.feed_data(head + data[offer.args[0] :])

    def _without_offer(self) -> bytes:
        version = self.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.get_method(), self._protocol.url, version)]
        for name, value in self._protocol.headers:
            if name == b"connection":
                kept = [token for token in value.split(b",") if token.strip().lower() not in _NAMED_BY_OFFERS]
                lines += [b"connection: " + b",".join(kept)] if kept else []
            elif name != b"upgrade":
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])
