from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster


@pytest.fixture(autouse=True)
def _no_blocking_in_the_loop() -> Iterator[None]:
    """Fail a test in which our code blocks the event loop: files, fsync, sleep, sockets, locks, SQLite."""
    guard = BlockBuster(scanned_modules=["server", "ocsp", "signer_pool", "pkix"])
    guard.activate()
    guard.functions["os.path.abspath"].deactivate()  # reads the name of the directory, no disk
    yield
    guard.deactivate()
