"""The examples of docs/clients.md do what they say, on a way on which answers get lost."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ca import make_csr
from tests.support.certmill import RunningCertmill
from tests.support.rough_api import RoughApi, rough_api

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
COMMANDS = {
    "issue.sh": ["sh"],
    "issue.py": [sys.executable],
    "issue_requests.py": [sys.executable, "-W", "ignore"],
    "Issue.java": ["java", "-XX:TieredStopAtLevel=1"],
}


@pytest.fixture(scope="module")
def pkcs12(running: RunningCertmill, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo client's certificate and key as Java wants them, made as docs/clients.md says."""
    made, demo = tmp_path_factory.mktemp("java") / "client.p12", running.home / "clients/demo"
    subprocess.run(
        ["openssl", "pkcs12", "-export", "-in", demo / "cert.pem", "-inkey", demo / "key.pem", "-out", made,
         "-passout", "pass:changeit"], check=True, timeout=30,
    )  # fmt: skip
    return made


def run(
    example: str, api: RoughApi, running: RunningCertmill, pkcs12: Path, *arguments: str | Path
) -> "subprocess.CompletedProcess[str]":
    program = COMMANDS[example][0]
    assert shutil.which(program), f"{program} is missing: deploy/bootstrap java"
    demo = running.home / "clients/demo"
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CERTMILL_")},
        "PYTHONPATH": str(EXAMPLES.parents[1]),
        "CERTMILL_CLIENT_URL": api.url,
        "CERTMILL_CLIENT_CERTIFICATE": str(demo / "cert.pem"),
        "CERTMILL_CLIENT_KEY": str(demo / "key.pem"),
        "CERTMILL_CLIENT_CA": str(running.home / "ca/root.pem"),
        "CERTMILL_CLIENT_P12": str(pkcs12),
        "CERTMILL_CLIENT_P12_PASSWORD": "changeit",
    }
    return subprocess.run(
        [*COMMANDS[example], EXAMPLES / example, *arguments],
        env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("example", COMMANDS)
def test_one_certificate_whatever_gets_lost(
    example: str, running: RunningCertmill, pkcs12: Path, tmp_path: Path
) -> None:
    name = f"{example.lower().replace('_', '-')}.example"
    csr, out = tmp_path / "www.csr", tmp_path / "www.pem"
    csr.write_bytes(make_csr(name))
    with rough_api(running, "busy", "lost") as api:
        done = run(example, api, running, pkcs12, "tls-server", csr, out)
        assert done.returncode == 0, done.stderr
        assert len(api.heard) == 3
        assert len(api.keys) == 1
    issued = running.api("GET", f"/v1/certificates?dns_name={name}").json["certificates"]
    assert len(issued) == 1
    assert out.read_text() == issued[0]["certificate"] + "".join(issued[0]["chain"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["www.csr", "www.pem"]


@pytest.mark.parametrize("example", COMMANDS)
def test_a_refusal_is_told_and_not_repeated(
    example: str, running: RunningCertmill, pkcs12: Path, tmp_path: Path
) -> None:
    csr, out = tmp_path / "www.csr", tmp_path / "www.pem"
    csr.write_bytes(make_csr("www.example"))
    with rough_api(running) as api:
        done = run(example, api, running, pkcs12, "no-such-profile", csr, out)
        assert len(api.heard) == 1
    assert done.returncode == 1
    assert "no-such-profile" in done.stderr
    assert "use one of" in done.stderr
    assert not out.exists()
