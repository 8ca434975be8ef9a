"""The fixture that opens a server in each of the ways into it."""

from __future__ import annotations

import itertools
import ssl
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trustme

from tests.faults.door_parts import Door

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Server


class Certificate(NamedTuple):
    """Of localhost: its files, and what a client needs to trust it."""

    cert: Path
    key: Path
    authority: Path  # the file of who has issued it
    trust: ssl.SSLContext

    @property
    def options(self) -> tuple[str, ...]:
        """Of `rbee serve`."""
        return "--tls-cert", str(self.cert), "--tls-key", str(self.key)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate of an authority that nobody else trusts."""
    folder = tmp_path_factory.mktemp("certificate")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    for pem in issued.cert_chain_pems:
        pem.write_to_path(folder / "cert.pem", append=True)
    issued.private_key_pem.write_to_path(folder / "key.pem")
    authority.cert_pem.write_to_path(folder / "authority.pem")
    trust = ssl.create_default_context(cafile=folder / "authority.pem")
    return Certificate(folder / "cert.pem", folder / "key.pem", folder / "authority.pem", trust)


@pytest.fixture(scope="session")
def open_door(
    start_server: Callable[..., Server], certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Door]:
    """`open_door(way, *options)`: a server with these options, and the way into it: "tcp", "tls" or "uds".

    It ends with the session, or with the block of `with door.server`.
    """
    folder = tmp_path_factory.mktemp("sockets")
    numbers = itertools.count()

    def open_(way: str, *options: str) -> Door:
        if way == "uds":
            path = str(folder / str(next(numbers)))
            return Door(start_server("--uds", path, *options), path=path)
        if way == "tls":
            return Door(start_server(*certificate.options, *options), trust=certificate.trust)
        return Door(start_server(*options))

    return open_
