"""Processes are killed under load; afterwards every answer that was given is still true."""

import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509 import ocsp

from tests.support.authority import Table
from tests.support.ca import make_csr
from tests.support.certmill import Reply, RunningCertmill, certmill
from tests.support.faulty_module import Faults, build
from tests.support.ocsp_client import ask, ocsp_request_der
from tests.support.token_site import Site
from tests.unit.signer_pool.lanes import PIN


@pytest.fixture
def server(home: Path) -> Iterator[RunningCertmill]:
    with certmill(home, CERTMILL_SIGNER_LANES="2") as running:
        yield running


def kill(running: RunningCertmill, pattern: str) -> int:
    """kill -9 the first process of ours whose command line matches."""
    pid = running.pids(pattern)[0]
    os.kill(pid, signal.SIGKILL)
    return pid


def check_every_201(running: RunningCertmill, replies: list[Reply]) -> None:
    """Every 201 has its row, its audit entries and its OCSP answer; no serial stands twice."""
    issued = [reply.json for reply in replies if reply.status == 201]
    serials = [body["serial"] for body in issued]
    assert len(set(serials)) == len(serials)
    with sqlite3.connect(running.home / "certmill.sqlite") as database:
        rows = dict(database.execute("select serial, state from certificates where issuer = 'issuing'"))
        audited = {
            serial
            for (serial,) in database.execute("select object from audit_log where action = 'certificate.issued'")
        }
    database.close()
    issuing = x509.load_pem_x509_certificate((running.home / "ca/issuing.pem").read_bytes())
    for body in issued:
        assert rows[body["serial"]] == "issued"
        assert body["serial"] in audited
        leaf = x509.load_pem_x509_certificate(body["certificate"].encode())
        answer = ask(running, ocsp_request_der(leaf, issuing))
        assert answer.certificate_status is ocsp.OCSPCertStatus.GOOD
    assert not [state for state in rows.values() if state == "intent"]


def test_a_killed_lane_loses_no_request(server: RunningCertmill) -> None:
    csrs = [make_csr(f"{secrets.token_hex(4)}.example.gov") for _ in range(200)]
    halfway = threading.Event()

    def issue(number: int) -> Reply:
        if number == 60:
            halfway.set()
        return server.issue(csrs[number])

    with ThreadPoolExecutor(32) as callers:
        futures = [callers.submit(issue, number) for number in range(200)]
        halfway.wait(60)
        kill(server, "signer_pool.lane_process")
        replies = [future.result() for future in futures]
    assert [reply.status for reply in replies] == [201] * 200
    check_every_201(server, replies)
    restarts = [
        line for line in server.admin("/metrics").body.decode().splitlines() if "lane_restarts_total{" in line
    ]
    assert sum(float(line.rpartition(" ")[2]) for line in restarts) >= 1


def test_a_killed_authority_is_restarted_and_ocsp_never_stops(server: RunningCertmill) -> None:
    csrs = [make_csr(f"{secrets.token_hex(4)}.example.gov") for _ in range(40)]
    first = server.issue(csrs[0], key="first")
    issuing = x509.load_pem_x509_certificate((server.home / "ca/issuing.pem").read_bytes())
    leaf = x509.load_pem_x509_certificate(first.json["certificate"].encode())
    request = ocsp_request_der(leaf, issuing)
    stop = threading.Event()
    statuses: list[ocsp.OCSPCertStatus] = []

    def relying_party() -> None:
        while not stop.is_set():
            statuses.append(ask(server, request).certificate_status)

    asking = threading.Thread(target=relying_party)
    asking.start()
    replies: list[Reply] = [first]

    def issue(number: int) -> None:
        try:
            replies.append(server.issue(csrs[number], key=f"key-{number}"))
        except OSError:
            return  # the authority died under this call: it was not answered, so nothing was promised

    with ThreadPoolExecutor(16) as callers:
        for number in range(1, 40):
            callers.submit(issue, number)
        time.sleep(0.05)  # somewhere in the middle of the calls; any moment must do
        kill(server, r"-m server authority")
    server.wait_ready()
    during = len(statuses)
    while len(statuses) < during + 20:
        assert asking.is_alive()
        time.sleep(0.01)
    stop.set()
    asking.join()
    assert set(statuses) == {ocsp.OCSPCertStatus.GOOD}
    check_every_201(server, replies)
    # Whoever got no answer repeats the call with its key and gets the one certificate of that key.
    again = [server.issue(csrs[number], key=f"key-{number}") for number in range(1, 40)]
    assert {reply.status for reply in again} == {201}
    known = {r.json["dns_names"][0]: r.json["serial"] for r in replies if r.status == 201}
    for reply in again:
        assert known.setdefault(reply.json["dns_names"][0], reply.json["serial"]) == reply.json["serial"]
    check_every_201(server, again)


def test_a_killed_worker_is_restarted(server: RunningCertmill) -> None:
    killed = kill(server, r"-m server ocsp")
    deadline = time.monotonic() + 20
    while True:
        pids = server.pids(r"-m server ocsp")
        try:
            if pids and pids[0] != killed and server.public("GET", "/ca/root.cer").status == 200:
                return
        except OSError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nothing_outlives_a_killed_supervisor(server: RunningCertmill) -> None:
    assert server.process is not None
    children = server.pids(".")
    server.process.kill()
    server.process.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() and not is_zombie(pid) for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_second_start_by_mistake_touches_nothing(server: RunningCertmill, tmp_path: Path) -> None:
    run = server.home / "run"
    before = {path.name: path.stat().st_ino for path in run.iterdir()}
    other = tmp_path / "other"
    for home, words in ((server.home, "another certmill uses"), (other, "setting listen.public: cannot listen")):
        environ = {**server.environ, "CERTMILL_HOME": str(home)}
        done = subprocess.run(
            [sys.executable, "-m", "server", "serve"],
            env=environ, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 78
        (said,) = done.stderr.splitlines()
        assert words in said
    assert {path.name: path.stat().st_ino for path in run.iterdir()} == before
    metrics = server.admin("/metrics").body.decode()
    assert 'certmill_process_up{process="ocsp-0"} 1.0' in metrics
    assert not (other / "certmill.sqlite").exists()


def test_a_second_start_finds_everything_again(home: Path) -> None:
    with certmill(home) as running:
        root = (home / "ca/root.pem").read_bytes()
        issued = running.issue(make_csr("kept.example.gov")).json
        assert running.stop() == 0
        running.start()
        assert (home / "ca/root.pem").read_bytes() == root
        assert running.api("GET", f"/v1/certificates/{issued['serial']}").json == issued
        (home / "certmill.toml").write_text("[ocsp]\nworkers = 'many'\n")
        assert running.stop() == 0
        with pytest.raises(AssertionError, match=r"ended with 78(.|\n)*setting ocsp.workers"):
            running.start()


def test_a_lost_response_store_is_rebuilt_from_the_database(home: Path) -> None:
    with certmill(home) as running:
        issued = running.issue(make_csr("a.example.gov")).json
        revoked = running.issue(make_csr("b.example.gov")).json
        running.revoke(revoked["serial"], "keyCompromise")
        running.stop()
        for file in (home / "responses").iterdir():
            file.unlink()
        running.start()
        issuing = x509.load_pem_x509_certificate((home / "ca/issuing.pem").read_bytes())
        for body, status in ((issued, ocsp.OCSPCertStatus.GOOD), (revoked, ocsp.OCSPCertStatus.REVOKED)):
            leaf = x509.load_pem_x509_certificate(body["certificate"].encode())
            for algorithm in ("sha1", "sha256"):
                assert ask(running, ocsp_request_der(leaf, issuing, algorithm)).certificate_status is status


def test_a_dead_token_is_told_and_nothing_is_released_until_it_lives(home: Path) -> None:
    deadlines = {"CERTMILL_LISTEN_REQUEST_DEADLINE_S": "1", "CERTMILL_ISSUANCE_SIGN_DEADLINE_S": "0.9"}
    with certmill(home, CERTMILL_SIGNER_KIND="software", **deadlines) as server:
        keys = home / "software-keys"
        keys.rename(home / "aside")
        for pid in server.pids("signer_pool.lane_process"):
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while server.admin("/readyz").status != 503:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        readiness = server.admin("/readyz").json
        assert readiness["ready"] is False
        assert "no signer lane is ready" in readiness["reasons"]
        assert server.admin("/healthz").status == 200
        key = secrets.token_hex(8)
        csr = make_csr("a.example.gov")
        refused = server.issue(csr, key=key)
        assert refused.status == 503
        assert refused.json["type"] in {"/docs#deadline", "/docs#signer"}
        assert int(refused.headers["retry-after"]) >= 1
        (home / "aside").rename(keys)
        while (issued := server.issue(csr, key=key)).status == 503:
            assert time.monotonic() < deadline + 20
            time.sleep(0.1)
        assert issued.status == 201
        assert server.admin("/readyz").status == 200
        check_every_201(server, [issued])


def test_a_database_that_refuses_is_a_503_in_the_callers_words(home: Path) -> None:
    with certmill(home, CERTMILL_SIGNER_KIND="software") as server:
        table = Table(home)
        table.fail("insert on audit_log")
        refused = server.issue(make_csr("a.example.gov"))
        assert (refused.status, refused.json["type"]) == (503, "/docs#storage")
        assert "trouble" not in refused.body.decode(), "internals stay inside"
        assert "disk trouble" in server.log.read_text()
        table.mend()
        assert server.issue(make_csr("a.example.gov")).status == 201


class RelyingParty:
    """Asks for the status of one certificate all the time."""

    def __init__(self, running: RunningCertmill) -> None:
        body = running.issue(make_csr("a.example.gov")).json
        issuing = x509.load_pem_x509_certificate((running.home / "ca/issuing.pem").read_bytes())
        leaf = x509.load_pem_x509_certificate(body["certificate"].encode())
        self._running, self._request = running, ocsp_request_der(leaf, issuing)

    def keeps_getting_answers_until(self, condition: Callable[[], object], deadline_s: float = 60) -> None:
        deadline = time.monotonic() + deadline_s
        while not condition():
            assert ask(self._running, self._request).certificate_status is ocsp.OCSPCertStatus.GOOD
            assert time.monotonic() < deadline, self._running.log.read_text()
            time.sleep(0.02)
        assert ask(self._running, self._request).certificate_status is ocsp.OCSPCertStatus.GOOD


def is_ready(running: RunningCertmill) -> bool:
    try:
        return running.admin("/readyz").status == 200
    except OSError:
        return False


def told(running: RunningCertmill, event: str, *words: str) -> int:
    """Count the lines of the log with all of the words."""
    lines = running.log.read_text().splitlines()
    return sum(event in line and all(word in line for word in words) for line in lines)


def test_a_database_locked_at_a_restart_of_the_authority_stops_no_worker(home: Path) -> None:
    with certmill(home, CERTMILL_SIGNER_KIND="software") as server:
        party, workers = RelyingParty(server), server.pids("-m server ocsp")
        backup = sqlite3.connect(home / "certmill.sqlite", isolation_level=None)
        backup.execute("begin exclusive")
        kill(server, "-m server authority")
        party.keeps_getting_answers_until(lambda: told(server, "will be started again", '"code": 75', "locked"))
        backup.close()
        party.keeps_getting_answers_until(lambda: is_ready(server))
        assert server.pids("-m server ocsp") == workers
        assert server.stop() == 0


def test_a_token_missing_at_a_restart_of_the_authority_stops_no_worker(home: Path) -> None:
    with certmill(home, CERTMILL_SIGNER_KIND="pkcs11") as server:
        party, workers = RelyingParty(server), server.pids("-m server ocsp")
        (home / "token/tokens").rename(home / "aside")
        kill(server, "-m server authority")
        again = '"code": 75'
        party.keeps_getting_answers_until(lambda: told(server, "will be started again", again, "restore it") > 1)
        assert list((home / "token/tokens").iterdir()) == [], "no other token was made in its place"
        (home / "token/tokens").rmdir()
        (home / "aside").rename(home / "token/tokens")
        party.keeps_getting_answers_until(lambda: is_ready(server))
        assert server.pids("-m server ocsp") == workers
        assert server.issue(make_csr("b.example.gov")).status == 201


def test_a_setting_that_is_wrong_at_a_restart_stops_no_worker(home: Path) -> None:
    with certmill(home, CERTMILL_SIGNER_KIND="software") as server:
        party = RelyingParty(server)
        (home / "certmill.toml").write_text("[ocsp]\nworkerz = 3\n")
        kill(server, "-m server authority")
        party.keeps_getting_answers_until(
            lambda: told(server, "will be started again", '"code": 78', "did you mean workers?", '"pause_s": 30')
        )
        assert server.stop() == 0


def test_a_pin_refused_at_a_restart_is_tried_once_and_stops_no_worker(home: Path) -> None:
    with certmill(home, CERTMILL_SIGNER_KIND="software") as server:
        party = RelyingParty(server)
        (home / "secrets/pin").write_text("0" * 16)
        kill(server, "-m server authority")
        party.keeps_getting_answers_until(lambda: told(server, "NOT started again", "wrong passphrase", "SIGTERM"))
        began = time.monotonic()
        party.keeps_getting_answers_until(lambda: time.monotonic() > began + 2)
        assert server.pids("-m server authority") == []
        assert server.stop() == 0


def restart_authority(running: RunningCertmill) -> None:
    """kill -9 it, and wait until its successor is ready."""
    killed = kill(running, "-m server authority")
    deadline = time.monotonic() + 30
    while running.pids("-m server authority") in ([], [killed]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.wait_ready()


def test_a_pin_that_one_of_two_tokens_refused_is_not_tried_by_any_restart(site: Site, tmp_path: Path) -> None:
    faults, module = Faults(tmp_path), build()
    site.write_pin("a", "wrong-pin")
    tokens = f"{site.uri('a', module)} {site.uri('b')}"  # so that a's logins alone are counted
    with certmill(site.home, CERTMILL_TOKENS=tokens, **site.softhsm, **faults.env) as server:
        assert server.reasons()  # what dies before it knows of a refusal cannot write it down
        for _ in range(2):
            restart_authority(server)
            assert faults.calls("C_Login") == 1
        memory = site.home / "run/refused-pins.json"
        (reason,) = server.reasons()
        assert reason.startswith("token a is failed: token 'a' of ")
        assert reason.endswith(f"it was refused at an earlier start: delete {memory} to try the same PIN again")
        assert told(server, f"delete {memory} to try this PIN again", '"token": "a"') == 1
        assert "wrong-pin" not in memory.read_text() + server.log.read_text()
        assert server.stop() == 0
        server.start()  # by a service manager, which has mended nothing
        assert server.stop() == 0
        assert faults.calls("C_Login") == 1
        memory.unlink()
        server.start()
        while faults.calls("C_Login") == 1:
            time.sleep(0.02)
        site.write_pin("a", PIN)
        restart_authority(server)
        deadline = time.monotonic() + 30
        while server.admin("/readyz").json["reasons"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert server.stop() == 0
