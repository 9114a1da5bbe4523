"""The counters of the quotas against a model, over batches of several clients, abandoned intents and new years."""

import asyncio
import datetime as dt
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select

from server.clock import epoch
from server.errors import QuotaExhausted
from server.issuance.order import PreparedOrder
from server.issuance.quota import charge, refund
from server.storage.database import Database
from server.storage.migrate import upgrade
from server.storage.schema import client_usage, clients

NAMES = ("a", "b", "c")
QUOTAS = {"a": 3, "b": 10, "c": None}
BATCH = st.tuples(st.just("batch"), st.lists(st.sampled_from(NAMES), min_size=1, max_size=12))
ABANDON = st.tuples(st.just("abandon"), st.integers(0, 40))
NEW_YEAR = st.tuples(st.just("year"), st.none())


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quota") / "certmill.sqlite"
    upgrade(path)
    return path


def prepared(client: str) -> PreparedOrder:
    return cast(PreparedOrder, SimpleNamespace(order=SimpleNamespace(client=SimpleNamespace(name=client))))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.one_of(BATCH, BATCH, ABANDON, NEW_YEAR), max_size=15))
def test_counters_are_those_of_the_model(path: Path, steps: list[tuple[str, Any]]) -> None:
    asyncio.run(play(path, steps))


async def play(path: Path, steps: list[tuple[str, Any]]) -> None:
    year = 2027
    kept: list[tuple[str, int]] = []
    async with Database(path) as database:
        async with database.write() as connection:
            await connection.execute(delete(client_usage))
            await connection.execute(delete(clients))
            rows: list[dict[str, object]] = [
                {
                    "name": name,
                    "spki_sha256": name.encode() * 32,
                    "profiles": [],
                    "names": [],
                    "yearly_quota": quota,
                }
                for name, quota in QUOTAS.items()
            ]
            await connection.execute(insert(clients), rows)
        for step, value in steps:
            now = epoch(dt.datetime(year, 6, 1, tzinfo=dt.UTC))
            if step == "year":
                year += 1
            elif step == "abandon" and kept:
                gone = kept.pop(value % len(kept))
                async with database.write() as connection:
                    await refund(connection, [gone])
            elif step == "batch":
                async with database.write() as connection:
                    refused = await charge(connection, [prepared(client) for client in value], now)
                for index, client in enumerate(value):
                    quota, used = QUOTAS[client], sum(c == client and at == now for c, at in kept)
                    full = quota is not None and used >= quota
                    assert (index in refused) == full
                    assert not full or cast(QuotaExhausted, refused[index]).members["used"] == quota
                    if not full:
                        kept.append((client, now))
        async with database.read() as connection:
            found = (await connection.execute(select(client_usage))).all()
        counted = Counter((client, dt.datetime.fromtimestamp(at, dt.UTC).year) for client, at in kept)
        assert {(row.client, row.year): row.issued for row in found if row.issued} == counted
