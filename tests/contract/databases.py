"""The databases that the contract holds for: made fresh, at the current schema, for each test."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from server.storage.database import Database
from server.storage.migrate import upgrade
from server.storage.place import Place, SqlitePlace
from tests.support.postgres import PostgresServer

Make = Callable[[], Place]


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        upgrade(tmp_path / "certmill.sqlite")
        return SqlitePlace(tmp_path / "certmill.sqlite")
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.place()


@pytest.fixture
async def database(place: Place) -> AsyncIterator[Database]:
    async with Database(place) as opened:
        yield opened
