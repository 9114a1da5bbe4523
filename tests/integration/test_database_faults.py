"""What the database and its disk can do to us: it ends in a clear 503, nothing is wrong afterwards, nothing is lost."""

import asyncio
import hashlib
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest
from cryptography import x509
from cryptography.x509 import ocsp

from loadtests.crash_evidence import Evidence
from loadtests.crash_load import Journal, Load, repeat_open_calls
from loadtests.crash_site import strace
from ocsp.errors import OcspError, StoreBroken
from ocsp.lmdb_store import LmdbStore
from server.app import Parts
from server.errors import DiskFailed, StorageError
from server.issuance.order import IssuedCertificate, Order
from server.storage.place import PostgresPlace, SqlitePlace
from server.web.problem import kind_of
from signer_pool.pool import Priority, SignerPool
from tests.support.authority import MovableClock, Prepared, Table, authority, order, prepare, software_config
from tests.support.ca import make_csr
from tests.support.certmill import RunningCertmill, certmill
from tests.support.ocsp_client import ask, ocsp_request_der
from tests.support.postgres import postgres_server

CALLS = 4
INTENT, ISSUED = "certificate.intent", "certificate.issued"
STEP_4 = {"insert on certificates", "insert on idempotency_keys", f"insert on audit_log {INTENT}"}


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(software_config(tmp_path, CERTMILL_ISSUANCE_BATCH_AGE_MS="5"))


@pytest.fixture
async def parts(prepared: Prepared) -> AsyncIterator[Parts]:
    async with authority(prepared, MovableClock()) as opened:
        yield opened


@pytest.fixture
def signed(monkeypatch: pytest.MonkeyPatch) -> set[bytes]:
    """Digests of what the issuing key was asked to sign for callers."""
    asked: set[bytes] = set()
    sign_many = SignerPool.sign_many

    async def witnessed(
        self: SignerPool, key: str, tbs_list: Sequence[bytes], priority: Priority, **more: object
    ) -> list[bytes]:
        if key == "issuing" and priority is Priority.INTERACTIVE:
            asked.update(hashlib.sha256(tbs).digest() for tbs in tbs_list)
        return await sign_many(self, key, tbs_list, priority, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(SignerPool, "sign_many", witnessed)
    return asked


def refuse_nth(table: Table, event: str, count: str, nth: int) -> None:
    """Let the database refuse the n-th row from now on, and all after it.

    `count`: how many there are. After the table's name in `event`, the action of an audit entry may stand.
    """
    event, _, action = event.partition(" certificate.")
    only = f"new.action = 'certificate.{action}' and" if action else ""
    (before,) = table.rows(f"select {count}")[0]
    assert isinstance(before, int)
    table.rows(
        f"create trigger broken before {event} when {only} (select {count}) >= {before + nth - 1}"
        " begin select raise(abort, 'disk trouble'); end"
    )


async def issue_all(parts: Parts, orders: Sequence[Order]) -> list[IssuedCertificate | BaseException]:
    return await asyncio.gather(*map(parts.issuance.issue, orders), return_exceptions=True)


@pytest.mark.parametrize(
    ("event", "count"),
    [
        ("insert on certificates", "count(*) from certificates"),
        ("insert on idempotency_keys", "count(*) from idempotency_keys"),
        (f"insert on audit_log {INTENT}", f"count(*) from audit_log where action = '{INTENT}'"),
        (f"insert on audit_log {ISSUED}", f"count(*) from audit_log where action = '{ISSUED}'"),
        ("update of der on certificates", "count(*) from certificates where state = 'issued'"),
        ("insert on ocsp_responses", "count(*) from ocsp_responses"),
    ],
    ids=lambda text: text.partition(" on ")[2],
)
async def test_the_nth_row_refused_is_a_clear_refusal_and_leaves_no_trace(
    parts: Parts, tmp_path: Path, signed: set[bytes], event: str, count: str
) -> None:
    table = Table(tmp_path)
    for nth in range(1, CALLS + 1):
        orders = [order(f"h{nth}-{n}.example.gov", key=f"{nth}-{n}") for n in range(CALLS)]
        refuse_nth(table, event, count, nth)
        before = len(signed)
        replies = await issue_all(parts, orders)
        table.mend()
        refused = [reply for reply in replies if isinstance(reply, BaseException)]
        assert refused
        assert {kind_of(error).slug for error in refused} == {"storage"}
        assert {kind_of(error).status for error in refused} == {503}
        released = {reply.serial for reply in replies if isinstance(reply, IssuedCertificate)}
        if event in STEP_4:
            assert len(signed) - before == len(released), "what has no intent is not signed"
        recorded = {digest for (digest,) in table.rows("select tbs_sha256 from certificates")}
        assert signed <= recorded
        assert "intent" not in table.states()
        again = await issue_all(parts, orders)
        assert all(isinstance(reply, IssuedCertificate) for reply in again)
        for first, second in zip(replies, again, strict=True):
            if isinstance(first, IssuedCertificate) and isinstance(second, IssuedCertificate):
                assert (first.serial, second.replayed) == (second.serial, True)
    assert table.states().count("issued") == CALLS * CALLS
    assert table.rows(
        "select count(*) from audit_log where action = 'certificate.issued' and actor = 'ministry'"
    ) == [(CALLS * CALLS,)]
    assert parts.storage.reasons() == [], "a refused row is no trouble of the database's"


async def test_intents_that_could_not_be_closed_are_closed_without_a_restart(parts: Parts, tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.fail("update on certificates")
    with pytest.raises(StorageError):
        await parts.issuance.issue(order())
    await parts.issuance.close_left_open()
    assert table.states() == ["intent"]
    table.mend()
    await parts.issuance.close_left_open()
    assert table.states() == ["abandoned"]


async def test_trouble_is_told_until_a_write_has_succeeded_and_the_audit_log_keeps_it(
    parts: Parts, tmp_path: Path
) -> None:
    table = Table(tmp_path)
    table.rows("alter table audit_log rename to gone")
    with pytest.raises(StorageError):
        await parts.issuance.issue(order())
    assert "no such table" in "".join(parts.storage.reasons())
    await parts.storage.look()
    assert parts.storage.reasons() != []
    assert parts.registry.get_sample_value("certmill_storage_up", {"part": "database"}) == 0
    table.rows("alter table gone rename to audit_log")
    await parts.storage.look()
    assert parts.storage.reasons() == []
    assert parts.registry.get_sample_value("certmill_storage_up", {"part": "database"}) == 1
    assert table.rows("select count(*) from audit_log where action = 'storage.recovered'") == [(1,)]


async def test_after_an_io_error_nothing_more_is_written_and_the_process_is_told_to_end(parts: Parts) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    with pytest.raises(DiskFailed):
        async with parts.database.write():
            raise error
    with pytest.raises(StorageError):
        await parts.issuance.issue(order())
    with pytest.raises(DiskFailed):
        async with parts.database.read():
            pass
    with pytest.raises(DiskFailed, match="start again from what is on the disk"):
        await parts.storage.run()


async def test_a_response_store_in_trouble_is_told_and_tried_again(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = parts.reconciler.store
    assert isinstance(store, LmdbStore)

    def refuse(error: lmdb.Error) -> Callable[..., None]:
        def work(*_arguments: object) -> None:
            raise error

        return work

    with monkeypatch.context() as patch:
        for work in ("_publish", "_put_issuer"):
            patch.setattr(store, work, refuse(lmdb.DiskError("No space left on device")))
        with pytest.raises(OcspError):
            await parts.issuance.issue(order())
        await parts.storage.look()
        assert parts.storage.reasons() == ["the OCSP response store does not work: No space left on device"]
        patch.setattr(store, "_put_issuer", refuse(lmdb.PanicError("stopped")))
        with pytest.raises(StoreBroken):
            await parts.storage.look()
    await parts.storage.look()
    assert parts.storage.reasons() == []


def test_a_start_ends_when_the_log_cannot_be_settled(tmp_path: Path) -> None:
    prepared = prepare(software_config(tmp_path / "a"))
    left = tmp_path / "left.sqlite"
    database = sqlite3.connect(prepared.config.home / "certmill.sqlite")
    database.execute("pragma journal_mode=wal")
    database.execute("pragma wal_autocheckpoint=0")
    database.execute("insert into linted_shapes values ('p', x'00', 'l', 1)")
    database.commit()
    for end in ("", "-wal"):  # what a crash leaves
        shutil.copy(f"{prepared.config.home / 'certmill.sqlite'}{end}", f"{left}{end}")
    database.close()
    assert Path(f"{left}-wal").stat().st_size > 0
    code = f"from pathlib import Path; from server.storage.migrate import upgrade; upgrade(Path({str(left)!r}))"
    command = [sys.executable, "-c", code]
    broken = [
        "strace",
        "-f",
        "-o",
        "/dev/null",
        "-e",
        "trace=fdatasync,fsync",
        "-e",
        "inject=fdatasync,fsync:error=EIO",
    ]
    done = subprocess.run([*broken, *command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "StorageError" in done.stderr
    assert "disk I/O error" in done.stderr
    subprocess.run(command, check=True, timeout=60)
    assert sqlite3.connect(left).execute("select count(*) from linted_shapes").fetchone() == (1,)


class SmallDisk:
    """A file system of 32 MiB that can be filled and freed; where mounting is not permitted, strace plays one."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        self.mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=32m", "certmill-test", str(path)], check=False, capture_output=True
        ).returncode == 0  # fmt: skip

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.path)], check=True)

    @contextmanager
    def full(self, pid: int) -> Iterator[None]:
        if not self.mounted:
            with strace(pid, "inject=pwrite64,pwritev,fallocate,ftruncate:error=ENOSPC"):
                yield
            return
        ballast = self.path / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for size in (65536, 512):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    pass
        try:
            yield
        finally:
            ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "disk")
    yield disk
    disk.close()


def until(condition: Callable[[], object], *, told: Callable[[], object] = str, deadline_s: float = 30.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)


def _not_ready(server: RunningCertmill) -> bool:
    """Tell whether it says that it is not ready, and then that it says why."""
    reply = server.admin("/readyz")
    assert reply.status == 200 or "does not work" in reply.json["reasons"][0]
    return reply.status == 503


@pytest.mark.usefixtures("unmeasured")
def test_a_full_disk_refuses_clearly_and_works_again_when_there_is_room(disk: SmallDisk, tmp_path: Path) -> None:
    with certmill(disk.path / "home", CERTMILL_SIGNER_KIND="software", CERTMILL_LOG_FORMAT="json") as server:
        journal = Journal(tmp_path / "journal")
        certificate = x509.load_pem_x509_certificate(server.issue(make_csr()).json["certificate"].encode())
        issuing = x509.load_pem_x509_certificate((server.home / "ca/issuing.pem").read_bytes())
        question = ocsp_request_der(certificate, issuing)
        with disk.full(server.pids("-m server authority")[0]), Load(server, journal, callers=4):
            until(lambda: journal.refused["503 /docs#storage"] >= 20, told=lambda: journal.refused)
            assert ask(server, question).certificate_status is ocsp.OCSPCertStatus.GOOD
            until(lambda: _not_ready(server))
            until(lambda: 'certmill_storage_up{part="database"} 0.0' in server.admin("/metrics").body.decode())
        until(lambda: server.admin("/readyz").status == 200)
        repeat_open_calls(server, journal)
        evidence = Evidence(server.home, SqlitePlace(server.home / "certmill.sqlite"))
        assert evidence.after_recovery(journal) == []
        journal.close()


@pytest.mark.usefixtures("unmeasured")
def test_a_postgresql_restarted_under_load_loses_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    with postgres_server() as postgres:
        url = postgres.url(postgres.empty_database())
        settings = {"CERTMILL_SIGNER_KIND": "software", "CERTMILL_STORAGE_DATABASE": url}
        server = RunningCertmill(tmp_path / "home", settings, command=("server", "authority"))
        server.start()
        try:
            with Load(server, journal):
                until(lambda: len(journal.issued) > 20)
                for how in (signal.SIGINT, signal.SIGQUIT):  # fast, and as if it had crashed
                    refused, before = journal.refused["503 /docs#storage"], len(journal.issued)
                    postgres.stop(how)
                    until(lambda refused=refused: journal.refused["503 /docs#storage"] >= refused + 5)  # type: ignore[misc]
                    until(lambda: server.admin("/readyz").status == 503)
                    postgres.start()
                    until(lambda before=before: len(journal.issued) > before + 20)  # type: ignore[misc]
            until(lambda: server.admin("/readyz").status == 200)
            repeat_open_calls(server, journal)
            evidence = Evidence(server.home, PostgresPlace(url=url))
            until(  # what could not be closed then is closed every five seconds
                lambda: evidence.after_recovery(journal) == [], told=lambda: evidence.after_recovery(journal)
            )
            assert "Traceback" not in server.log.read_text()
        finally:
            assert server.stop() == 0
            journal.close()
