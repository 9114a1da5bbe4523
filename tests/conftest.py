import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster
from hypothesis import HealthCheck, settings

from tests.support.alone import Turns
from tests.support.postgres import PostgresServer, postgres_server

TURNS = pytest.StashKey[Turns]()

# Every process that a test starts runs this checkout, though lanes start without the working directory on their path
# and several checkouts may share an environment.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")))
)

# An example that takes long says that the machine is busy, and nothing about what is tested.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")


def pytest_sessionstart(session: pytest.Session) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        factory: pytest.TempPathFactory = session.config._tmp_path_factory  # type: ignore[attr-defined]
        common = factory.getbasetemp().parent  # of all workers of a run
        session.config.stash[TURNS] = Turns(common)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test marked `alone` while no other worker runs one; waiting counts for no timeout."""
    turns = item.config.stash.get(TURNS, None)
    if turns is None:
        return (yield)
    with turns.turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let no garbage be collected while a failure is written up.

    pytest parses the source of a failed test. What is collected during ast.parse may raise in its destructor, pytest
    then formats that traceback, and Python 3.11 calls ast.parse for it: the outer call ends with "SystemError: AST
    constructor recursion depth mismatch", an INTERNALERROR in the place of the failure.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


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
