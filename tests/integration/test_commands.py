"""The command line: one clear line for what an operator can mend, exit code 78, never a traceback."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from server import __version__
from server.supervisor import EXIT_CONFIG, EXIT_TEMPORARY
from tests.support.certmill import RunningCertmill


def certmill(home: Path, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    environ = {
        **RunningCertmill(home).environ,
        "CERTMILL_TOKEN_KIND": "software",
        **{f"CERTMILL_{name.upper()}": value for name, value in settings.items()},
    }
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def one_line(done: "subprocess.CompletedProcess[str]", code: int = EXIT_CONFIG) -> str:
    """Expect an error and return what was said outside the log."""
    assert done.returncode == code
    said = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(said) == 1
    assert said[0].startswith("certmill: ")
    return said[0]


def test_version_and_help(tmp_path: Path) -> None:
    assert certmill(tmp_path, "version").stdout == f"{__version__}\n"
    assert "serve" in certmill(tmp_path, "--help").stdout


def test_init_makes_everything_once(tmp_path: Path) -> None:
    assert certmill(tmp_path, "init").returncode == 0
    made = {path: path.read_bytes() for path in tmp_path.rglob("*.pem")}
    assert {"root.pem", "issuing.pem", "cert.pem", "key.pem"} <= {path.name for path in made}
    crls = {path.name for path in (tmp_path / "public/crl").iterdir()}
    assert crls == {"root.crl", "issuing.crl"}
    assert certmill(tmp_path, "init").returncode == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.pem")} == made


@pytest.mark.parametrize("command", ["serve", "init", "authority", "ocsp"])
def test_wrong_setting_is_one_line(tmp_path: Path, command: str) -> None:
    assert "token.lanes" in one_line(certmill(tmp_path, command, token_lanes="many"))


def test_taken_admin_port_ends_everything_with_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"listen.admin: cannot listen on {address}" in one_line(
            certmill(tmp_path, "serve", listen_admin=address)
        )


def test_damaged_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "certmill.sqlite").write_bytes(b"this is no database" * 100)
    assert "certmill.sqlite" in one_line(certmill(tmp_path, "authority"), EXIT_TEMPORARY)


def test_token_that_vanished_is_not_made_anew(tmp_path: Path) -> None:
    softhsm = {"token_kind": "pkcs11"}
    assert certmill(tmp_path, "init", **softhsm).returncode == 0
    (tmp_path / "token/tokens").rename(tmp_path / "token/aside")
    said = one_line(certmill(tmp_path, "authority", **softhsm), EXIT_TEMPORARY)
    assert "restore it from the backup" in said
    assert not list((tmp_path / "token/tokens").iterdir())


def test_token_with_another_pin_is_told_and_tried_once(tmp_path: Path) -> None:
    assert certmill(tmp_path, "init").returncode == 0
    (tmp_path / "secrets/pin").write_text("0" * 16)
    assert "software" in one_line(certmill(tmp_path, "authority"))


def test_second_authority_of_a_home_is_refused(tmp_path: Path) -> None:
    running = RunningCertmill(tmp_path, {"CERTMILL_TOKEN_KIND": "software", "CERTMILL_LOG_FORMAT": "text"})
    running.start()
    try:
        assert "CERTMILL_HOME" in one_line(certmill(tmp_path, "authority"))
        assert running.admin("/readyz").status == 200
    finally:
        assert running.stop() == 0
    assert "ready" in running.log.read_text()


def test_lone_authority_stops_on_sigterm(tmp_path: Path) -> None:
    running = RunningCertmill(tmp_path, {"CERTMILL_TOKEN_KIND": "software"})
    with running.log.open("w") as log:
        running.process = subprocess.Popen(
            [sys.executable, "-m", "server", "authority"], env=running.environ, stdout=log, stderr=log, text=True
        )
    running.wait_ready()
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(30) == 0
