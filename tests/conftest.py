from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster

from tests.support.postgres import PostgresServer, postgres_server


@pytest.fixture(autouse=True)
def _no_blocking_in_the_loop() -> Iterator[None]:
    """Fail a test in which our code blocks the event loop: files, fsync, sleep, sockets, locks, SQLite."""
    guard = BlockBuster(scanned_modules=["server", "ocsp", "signer_pool", "pkix"])
    guard.activate()
    guard.functions["os.path.abspath"].deactivate()  # reads the name of the directory, no disk
    for function in guard.functions.values():
        function.can_block_in("server/storage/migrate.py", {"work"})  # in a loop and a thread of its own
        function.can_block_in("server/storage/check.py", {"_checks"})  # the same
        function.can_block_in("server/storage/postgres.py", {"connect"})  # asyncpg reads TLS files
    yield
    guard.deactivate()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL for all tests that need one."""
    with postgres_server() as server:
        yield server
