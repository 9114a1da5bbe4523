"""The counters of the quotas begin with what was issued before there were any."""

import sqlite3
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from server.storage import migrate
from server.storage.migrate import upgrade

YEAR_2025, YEAR_2026 = 1735689600, 1767225600


def test_clients_of_before_have_used_what_they_got(tmp_path: Path) -> None:
    path = tmp_path / "certmill.sqlite"
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).with_name("migrations")))
    config.set_main_option("path_separator", "os")
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    engine.dispose()
    old = [("a", YEAR_2026 - 1, "issued"), ("a", YEAR_2026, "issued"), ("a", YEAR_2026 + 9, "intent")]
    old += [("b", YEAR_2025, "issued"), ("b", YEAR_2026, "abandoned")]
    with sqlite3.connect(path) as connection_:
        for number, (client, at, state) in enumerate(old):
            connection_.execute(
                "insert into certificates (issuer, serial, state, profile, client, request_id, subject, dns_names,"
                " tbs_sha256, spki_sha256, not_before, not_after, created_at)"
                " values ('issuing', ?, ?, 'p@1', ?, '-', '', '[]', x'00', x'00', 0, 0, ?)",
                (str(number), state, client, at),
            )
    connection_.close()
    upgrade(path)
    connection_ = sqlite3.connect(path)
    counted = connection_.execute("select client, year, issued from client_usage order by 1, 2").fetchall()
    connection_.close()
    assert counted == [("a", 2025, 1), ("a", 2026, 2), ("b", 2025, 1)]
