"""A database of every released version comes to the present schema, with what is in it, on both kinds."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

from server.errors import ConfigError
from server.storage.blocking import blocking
from server.storage.migrate import head, revision, upgrade
from server.storage.place import Place, PostgresPlace, SqlitePlace
from server.storage.schema import metadata
from tests.support.postgres import PostgresServer

# What certmill 0.1 wrote: the statements stand here as they were, whatever becomes of the tables.
_0001 = (
    "insert into issuers values ('issuing', 'issuing', :der)",
    (
        "insert into certificates (issuer, serial, state, profile, client, request_id, subject, dns_names, tbs_sha256, "
        "spki_sha256, not_before, not_after, created_at, der, revoked_at, reason) values ('issuing', '0a', 'issued', "
        "'tls-server@1', 'demo', 'r', 'CN=a', '[\"a.gov\"]', :der, :der, 1, 2, 1, :der, null, null)"
    ),
    "insert into idempotency_keys values ('demo', 'key', :der, 'issuing', '0a', 1)",
    "insert into ocsp_responses values ('issuing', '0a', 'sha1', 1, 2, 1, 2)",
    "insert into crls values ('issuing', 1, 1, 2, 0, :der)",
    "insert into clients (name, spki_sha256, profiles, names, disabled) values ('demo', :der, '[\"*\"]', '[\"*\"]', :no)",
    (
        "insert into audit_log (at, actor, action, object, request_id, detail) "
        "values (1, 'demo', 'certificate.issued', '0a', 'r', '{\"profile\": \"tls-server@1\"}')"
    ),
)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return SqlitePlace(tmp_path / "certmill.sqlite")
    server: PostgresServer = request.getfixturevalue("postgres")
    return PostgresPlace(url=server.url(server.empty_database()))


def sql(place: Place, *statements: str, **values: object) -> list[tuple[object, ...]]:
    def work(connection: Connection) -> list[tuple[object, ...]]:
        with connection.begin():
            for statement in statements:
                clause = text(statement)
                named = {n: v for n, v in values.items() if f":{n}" in statement}
                result = connection.execute(clause, named)
        return [tuple(row) for row in result] if result.returns_rows else []

    return blocking(place, work)


def differences(place: Place) -> list[object]:
    return blocking(place, lambda connection: compare_metadata(MigrationContext.configure(connection), metadata))


def test_release_0_1_is_upgraded_with_all_it_has(empty: Place) -> None:
    upgrade(empty, to="0001")
    assert revision(empty) == "0001"
    sql(empty, *_0001, der=b"\0\xff", no=False)
    upgrade(empty)
    assert revision(empty) == head()
    assert differences(empty) == []
    assert sql(empty, "select serial, der, csr, asked, renews, authority from certificates") == [
        ("0a", b"\0\xff", None, None, None, None)
    ]
    ((organizations, identifiers, quota),) = sql(
        empty, "select organizations, identifiers, yearly_quota from clients"
    )
    assert (str(organizations).replace("'", '"'), str(identifiers).replace("'", '"'), quota) == (
        '["*"]',
        '["*"]',
        None,
    )
    for table in ("issuers", "idempotency_keys", "ocsp_responses", "crls", "audit_log"):
        assert sql(empty, f"select count(*) from {table}") == [(1,)]


def test_a_new_database_has_the_tables_of_the_schema_and_a_second_upgrade_changes_nothing(empty: Place) -> None:
    assert revision(empty) is None
    upgrade(empty)
    assert differences(empty) == []
    upgrade(empty)
    assert revision(empty) == head()


def test_a_database_of_a_newer_certmill_is_refused_and_left_alone(empty: Place) -> None:
    upgrade(empty)
    sql(empty, "update alembic_version set version_num = '9999'")
    with pytest.raises(ConfigError, match=r"schema 9999, of a newer certmill; .* up to 000\d"):
        upgrade(empty)
    assert revision(empty) == "9999"
