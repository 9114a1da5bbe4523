"""`certmill request` against a whole certmill: a crash on the client's side costs nothing."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from client.api import CertmillClient
from client.errors import CertmillUnreachable, CertmillUntrusted
from server.config import CLIENT_VARIABLES
from tests.support.certmill import RunningCertmill
from tests.support.fake_api import FakeApi
from tests.support.rough_api import RoughApi, rough_api


def start(name: str, api: RoughApi, running: RunningCertmill, work: Path) -> "subprocess.Popen[str]":
    demo = running.home / "clients/demo"
    where = api.url, str(demo / "cert.pem"), str(demo / "key.pem"), str(running.home / "ca/root.pem")
    return subprocess.Popen(
        [sys.executable, "-m", "server", "request", "--profile", "tls-server", "--subject", f"CN={name}", "-o", work / "www"],
        env={**os.environ, **dict(zip(CLIENT_VARIABLES, where, strict=True))}, text=True, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_rerun_after_kill_9_gets_the_certificate_that_was_issued(
    running: RunningCertmill, tmp_path: Path
) -> None:
    with rough_api(running, "lost") as api:
        first = start("killed.example", api, running, tmp_path)
        deadline = time.monotonic() + 30
        while not api.lost and time.monotonic() < deadline:
            time.sleep(0.005)
        first.kill()
        first.communicate(timeout=10)
        assert [path.name for path in tmp_path.iterdir()] == ["www.pending"]
        second = start("killed.example", api, running, tmp_path)
        _, told = second.communicate(timeout=60)
        assert second.returncode == 0, told
        assert len(api.keys) == 1
    assert len(running.api("GET", "/v1/certificates?dns_name=killed.example").json["certificates"]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["www.key", "www.pem"]
    leaf, issuer = x509.load_pem_x509_certificates((tmp_path / "www.pem").read_bytes())
    leaf.verify_directly_issued_by(issuer)
    key = load_pem_private_key((tmp_path / "www.key").read_bytes(), None)
    assert leaf.public_key() == key.public_key()


def test_a_client_certificate_of_nobody_is_told(running: RunningCertmill, tmp_path: Path) -> None:
    stranger = FakeApi(tmp_path)
    url = f"https://127.0.0.1:{running.api_port}"
    with (
        CertmillClient(
            url, stranger.certificate, stranger.key, running.home / "ca/root.pem", deadline_s=1
        ) as certmill,
        pytest.raises(
            (CertmillUntrusted, CertmillUnreachable), match=r"TLS failed|is the client certificate of this CA"
        ),
    ):
        list(certmill.search())


def test_the_package_reads_searches_and_revokes(running: RunningCertmill, tmp_path: Path) -> None:
    demo = running.home / "clients/demo"
    url = f"https://localhost:{running.api_port}"
    with rough_api(running) as api:
        start("read.example", api, running, tmp_path).communicate(timeout=60)
    with CertmillClient(url, demo / "cert.pem", demo / "key.pem", running.home / "ca/root.pem") as certmill:
        found = next(certmill.search(dns_name="read.example", limit=1))
        assert certmill.read(found.serial) == found
        assert [certmill.revoke(found.serial, "superseded").ocsp for _ in range(2)] == ["revoked"] * 2
        assert certmill.read(found.serial).revocation_reason == "superseded"
