"""An authority in this process: real database, real response store, software lanes, a clock that tests move."""

import datetime as dt
import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from structlog.typing import FilteringBoundLogger

from ocsp.store import Status
from pkix.names import SerialNumber
from pkix.ocsp_response import HashName
from server.app import Parts, open_parts
from server.auth.clients import Client
from server.authority import prepare_home
from server.clock import utc_now
from server.config import Config, load_config
from server.issuance.order import Order
from signer_pool.lane_config import LaneConfig
from tests.support.ca import make_csr
from tests.support.profiles import TLS_SERVER

MINISTRY = Client(name="ministry", profiles=("*",), names=("*",), organizations=("*",), identifiers=("*",))


class MovableClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = utc_now().replace(microsecond=0)

    def __call__(self) -> dt.datetime:
        return self.now

    def advance(self, **amount: float) -> None:
        self.now += dt.timedelta(**amount)


def quiet_logger() -> FilteringBoundLogger:
    """Return a logger that says nothing below critical."""
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.ReturnLogger(), wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL)
    )
    return logger


def software_config(home: Path, **settings: str) -> Config:
    """Settings for a home with software keys."""
    return load_config({"CERTMILL_HOME": str(home), "CERTMILL_SIGNER_KIND": "software", **settings})


@dataclass(frozen=True)
class Prepared:
    """A home with token and database."""

    config: Config
    lanes: list[LaneConfig]


def prepare(config: Config) -> Prepared:
    """Prepare the home; blocking."""
    return Prepared(config, prepare_home(config, quiet_logger(), {}))


@asynccontextmanager
async def authority(prepared: Prepared, clock: MovableClock) -> AsyncIterator[Parts]:
    """Open all parts of an authority on a prepared home."""
    async with open_parts(prepared.config, prepared.lanes, clock=clock, logger=quiet_logger()) as parts:
        yield parts


def order(
    common_name: str = "a.example.gov",
    *,
    key: str | None = None,
    client: Client = MINISTRY,
    csr: bytes | None = None,
) -> Order:
    """Make an order for a TLS server certificate."""
    return Order(
        client=client,
        profile=TLS_SERVER,
        csr=csr or make_csr(common_name),
        request_id="test",
        idempotency_key=key,
    )


async def stored_status(parts: Parts, serial: SerialNumber, hash_name: HashName = "sha1") -> Status | None:
    """Return what the response store says about a certificate."""
    presigner = parts.publisher.presigner
    stored = await parts.reconciler.store.get(presigner.key(serial, hash_name))
    return None if stored is None else stored.status


class Table:
    """Looks into, and meddles with, the authority's database from outside."""

    def __init__(self, home: Path) -> None:
        self._path = home / "certmill.sqlite"

    def rows(self, query: str, *arguments: object) -> list[tuple[object, ...]]:
        connection = sqlite3.connect(self._path, timeout=10)
        try:
            with connection:
                return connection.execute(query, arguments).fetchall()
        finally:
            connection.close()

    def states(self) -> list[str]:
        """Return the states of the ministry's certificates, oldest first."""
        return [str(s) for (s,) in self.rows("select state from certificates where client='ministry' order by id")]

    def fail(self, event: str) -> None:
        """Make the database refuse `event` (for example "insert on audit_log") from now on."""
        self.rows(f"create trigger broken before {event} begin select raise(abort, 'disk trouble'); end")

    def mend(self) -> None:
        """Undo `fail`."""
        self.rows("drop trigger broken")
