"""A real PostgreSQL of the tests' own: made once, durable as in production, a fresh database for each test.

It listens on a Unix socket in its own directory, without passwords, and on a port of loopback, with passwords.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from server.storage.migrate import upgrade
from server.storage.place import PostgresPlace
from tests.support.ports import free_ports

START_DEADLINE_S = 30.0
PASSWORD = "pass:word\\with'everything"
_TEMPLATE = "certmill_template"
_HBA = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"


@dataclass
class PostgresServer:
    """A running server; `database()` makes a database at the current schema and returns where it is."""

    directory: Path
    port: int
    process: "subprocess.Popen[bytes] | None" = None
    made: int = 0
    template: bool = False
    user: dict[str, object] = field(default_factory=dict)

    def url(self, database: str, *, user: str = "certmill") -> str:
        return f"postgresql://{user}@/{database}?host={self.directory}&port={self.port}"

    def tcp_url(self, database: str, *, user: str = "certmill") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def empty_database(self) -> str:
        """Make a database without tables and return its name."""
        return self._create("template1")

    def database(self) -> str:
        """Make a database at the current schema and return its name: a copy of one that was migrated once."""
        if not self.template:
            self.sql(f"create database {_TEMPLATE}")
            self.template = True
            upgrade(PostgresPlace(url=self.url(_TEMPLATE)))
        return self._create(_TEMPLATE)

    def place(self) -> PostgresPlace:
        """Make a database at the current schema and return where it is."""
        return PostgresPlace(url=self.url(self.database()))

    def _create(self, template: str) -> str:
        self.made += 1
        name = f"test_{self.made}"
        self.sql(f"create database {name} template {template}")
        return name

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run a statement as the superuser; returns the rows as lines, columns parted by |."""
        done = subprocess.run(
            [_program("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), "-c", statement],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self) -> None:
        """Start, and wait until it answers."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    _program("postgres"), "-D", str(self.directory / "data"), "-k", str(self.directory),
                    "-p", str(self.port), "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=100",
                    "-c", "deadlock_timeout=200ms", "-c", "shared_buffers=32MB", "-c", "max_wal_senders=0",
                ],
                stdout=log, stderr=log, **self.user,  # type: ignore[call-overload]
            )  # fmt: skip
        deadline = time.monotonic() + START_DEADLINE_S
        while subprocess.run(
            [_program("pg_isready"), "-q", "-h", str(self.directory), "-p", str(self.port)], check=False
        ).returncode:
            assert self.process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL does not start"
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT disconnects everybody, SIGQUIT is a crash (recovery at the next start)."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        """End and start it."""
        self.stop(how)
        self.start()


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Run a server for the block. As root, as somebody else: PostgreSQL refuses to run as root."""
    directory = Path(tempfile.mkdtemp(prefix="certmill-postgres-", dir=_place()))
    user: dict[str, object] = {"cwd": str(directory)}
    if os.getuid() == 0:
        account = _account()
        user |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        os.chown(directory, account.pw_uid, account.pw_gid)
    directory.chmod(0o700)
    server = PostgresServer(directory, free_ports(1)[0], user=user)
    try:
        initdb = [_program("initdb"), "-D", str(directory / "data"), "-U", "certmill", "-A", "trust", "-E", "UTF8"]
        subprocess.run(
            [*initdb, "--locale=C.UTF-8", "--no-sync"], check=True, stdout=subprocess.DEVNULL, timeout=60, **user  # type: ignore[call-overload]
        )  # fmt: skip
        (directory / "data/pg_hba.conf").write_text(_HBA)
        server.start()
        yield server
    finally:
        server.stop(signal.SIGQUIT)  # at once: nobody needs its data any more
        shutil.rmtree(directory, ignore_errors=True)


def _place() -> Path | None:
    """Return memory to put the files into, if there is enough: each database is hundreds of them."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > 2 * 2**30 else None


def _account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _program(name: str) -> str:
    """Find a program of PostgreSQL; Debian keeps the server's apart, by version."""
    newest = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[-3]))
    found = str(newest[-1]) if newest else shutil.which(name)
    assert found, f"{name} is not installed: deploy/bootstrap postgresql"
    return found
