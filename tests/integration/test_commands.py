"""The command line: one clear line for what an operator can mend, exit code 78, never a traceback."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server import __version__
from server.supervisor import EXIT_CONFIG, EXIT_TEMPORARY
from tests.support.certmill import RunningCertmill
from tests.support.faulty_module import Faults, build
from tests.support.token_site import Site
from tests.unit.signer_pool.lanes import MODULE, PIN, softhsm_token

URI = "pkcs11:token=hsm"
PROMPTED = f"{URI}?module-path={MODULE}&pin-source=prompt"


def certmill(home: Path, *arguments: str, stdin: str = "", **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end; it has no terminal."""
    environ = {
        **RunningCertmill(home).environ,
        "CERTMILL_SIGNER_KIND": "software",
        **{f"CERTMILL_{name.upper()}": value for name, value in settings.items()},
    }
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        env=environ, input=stdin, capture_output=True, text=True, timeout=60, check=False, start_new_session=True,
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
    assert "setting signer.lanes: " in one_line(certmill(tmp_path, command, signer_lanes="many"))
    wrong = certmill(tmp_path, command, tokens=f"{URI}?pin-value=739155")
    assert "setting tokens[0].uri: attribute pin-value: " in one_line(wrong)
    assert "739155" not in wrong.stdout + wrong.stderr


@pytest.mark.parametrize("command", ["serve", "init", "authority"])
def test_pin_to_be_typed_needs_a_terminal(tmp_path: Path, command: str) -> None:
    told = one_line(certmill(tmp_path, command, stdin="1234\n", signer_kind="auto", tokens=PROMPTED))
    assert "setting tokens[0].pin (token 'hsm'): there is no terminal to ask on" in told


def test_pins_on_standard_input_must_be_those_of_the_tokens(tmp_path: Path) -> None:
    def told(stdin: str) -> str:
        return one_line(
            certmill(tmp_path, "authority", "--pins-on-stdin", stdin=stdin, signer_kind="auto", tokens=PROMPTED)
        )

    assert "option --pins-on-stdin: standard input must be one JSON object" in told("739155\n")
    assert "setting tokens[0].pin (token 'hsm'): no PIN of token 'hsm'" in told('{"other": "739155"}\n')
    assert "setting tokens[0].pin (token 'hsm'): what was entered is empty" in told('{"hsm": ""}\n')


@pytest.mark.parametrize("command", ["serve", "init", "authority"])
def test_pin_file_that_cannot_be_used_is_one_line(tmp_path: Path, command: str) -> None:
    pin = tmp_path / "pin"
    tokens = f"{URI}?module-path={MODULE}&pin-source=file:{pin}"
    assert f"setting tokens[0].pin (token 'hsm'): {pin} cannot be read" in one_line(
        certmill(tmp_path, command, signer_kind="auto", tokens=tokens)
    )
    pin.write_text("739155")
    pin.chmod(0o644)
    assert f"chmod 600 {pin}" in one_line(certmill(tmp_path, command, signer_kind="auto", tokens=tokens))


def test_module_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "pin").touch(mode=0o600)
    (tmp_path / "pin").write_text("739155")
    tokens = f"{URI}?module-path=/no/hsm.so&pin-source=file:{tmp_path}/pin"
    assert "setting tokens[0].uri (token 'hsm'): module-path /no/hsm.so is not there" in one_line(
        certmill(tmp_path, "init", signer_kind="auto", tokens=tokens)
    )


def test_pin_is_asked_once_and_every_authority_gets_it(tmp_path: Path) -> None:
    with softhsm_token("hsm") as token:
        settings = {"CERTMILL_TOKENS": PROMPTED, "CERTMILL_LOG_FORMAT": "json", **token.env}
        running, (ours, theirs) = RunningCertmill(tmp_path, settings), pty.openpty()
        with running.log.open("w") as log:
            running.process = subprocess.Popen(
                [sys.executable, "-m", "server", "serve"],
                env=running.environ, stdin=theirs, stdout=log, stderr=log, start_new_session=True, text=True,
            )  # fmt: skip
        try:
            while "PIN of token hsm: " not in running.log.read_text():
                assert running.process.poll() is None
                time.sleep(0.05)
            os.write(ours, f"{PIN}\n".encode())
            running.wait_ready()
            (first,) = running.pids("server authority")
            os.kill(first, signal.SIGKILL)
            while running.pids("server authority") in ([], [first]):
                time.sleep(0.05)
            running.wait_ready()
            everything = [running.process.pid, *running.pids("")]
            shown = [
                Path(f"/proc/{pid}/{what}").read_bytes() for pid in everything for what in ("cmdline", "environ")
            ]
        finally:
            code = running.stop()
            os.close(ours)
            os.close(theirs)
    assert code == 0
    assert len(everything) >= 4  # supervisor, authority, lane, OCSP worker
    assert running.log.read_text().count("PIN of token hsm: ") == 1
    assert PIN.encode() not in b"".join([*shown, running.log.read_bytes()])


def test_taken_admin_port_ends_everything_with_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"listen.admin: cannot listen on {address}" in one_line(
            certmill(tmp_path, "serve", listen_admin=address)
        )


def test_taken_api_port_is_told_last_and_nothing_is_said_to_be_ready(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = certmill(tmp_path, "serve", listen_api=address)
    assert f"setting listen.api: cannot listen on {address}" in one_line(done)
    assert f"setting listen.api: cannot listen on {address}" in done.stderr.splitlines()[-1]
    assert done.stdout == ""


def test_taken_public_port_is_told_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = certmill(tmp_path, "serve", listen_public=address)
    assert f"setting listen.public: cannot listen on {address}" in one_line(done)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (tmp_path / "certmill.sqlite").exists()


def test_home_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for command in ("serve", "init", "ocsp"):
        assert "set CERTMILL_HOME to a directory" in one_line(certmill(tmp_path / "file/home", command))


def test_only_what_is_public_can_be_read_by_others(tmp_path: Path) -> None:
    home = tmp_path / "above/home"
    done = subprocess.run(
        [sys.executable, "-m", "server", "init"],
        env={**RunningCertmill(home).environ, "CERTMILL_SIGNER_KIND": "software"},
        umask=0o022, capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.returncode == 0
    readable = {str(path.relative_to(home)) for path in home.rglob("*") if path.stat().st_mode & 0o077}
    private = {name for name in readable if not name.startswith(("ca", "clients", "public"))}
    assert private == {"secrets/api-cert.pem"}, "a certificate, and in a directory of mode 0700"
    assert {"public/ca/root.cer", "public/crl/issuing.crl", "ca/root.pem", "clients/demo/cert.pem"} < readable
    assert "clients/demo/key.pem" not in readable
    for directory in (home.parent, home, home / "ca", home / "public", home / "public/crl"):
        assert directory.stat().st_mode & 0o777 == 0o755


def test_damaged_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "certmill.sqlite").write_bytes(b"this is no database" * 100)
    assert "certmill.sqlite" in one_line(certmill(tmp_path, "authority"), EXIT_TEMPORARY)


def test_token_that_vanished_is_not_made_anew(tmp_path: Path) -> None:
    softhsm = {"signer_kind": "pkcs11"}
    assert certmill(tmp_path, "init", **softhsm).returncode == 0
    (tmp_path / "token/tokens").rename(tmp_path / "token/aside")
    said = one_line(certmill(tmp_path, "authority", **softhsm), EXIT_TEMPORARY)
    assert "restore it from the backup" in said
    assert not list((tmp_path / "token/tokens").iterdir())
    (tmp_path / "token/tokens").rmdir()
    (tmp_path / "token/aside").rename(tmp_path / "token/tokens")
    assert certmill(tmp_path, "init", **softhsm).returncode == 0


def test_lost_database_is_not_made_anew(tmp_path: Path) -> None:
    """A second CA with the same keys would publish CRLs without one of the first one's revocations."""
    assert certmill(tmp_path, "init").returncode == 0
    crl, ca = tmp_path / "public/crl/issuing.crl", tmp_path / "ca/issuing.pem"
    published, certificate = crl.read_bytes(), ca.read_bytes()
    backup = tmp_path / "one.backup"
    assert certmill(tmp_path, "db", "backup", str(backup)).returncode == 0
    for file in tmp_path.glob("certmill.sqlite*"):
        file.unlink()
    for command in (
        ["serve"],
        ["authority"],
        ["init"],
        ["db", "check"],
        ["db", "backup", "x"],
        ["client", "list"],
    ):
        assert "certmill db restore FILE" in one_line(certmill(tmp_path, *command)), command
        assert not (tmp_path / "certmill.sqlite").exists()
    assert crl.read_bytes() == published
    assert certmill(tmp_path, "db", "restore", str(backup)).returncode == 0
    assert certmill(tmp_path, "init").returncode == 0
    assert ca.read_bytes() == certificate


def test_database_without_this_ca_is_refused(tmp_path: Path) -> None:
    assert certmill(tmp_path, "init").returncode == 0
    for file in tmp_path.glob("certmill.sqlite*"):
        file.unlink()
    (tmp_path / "certmill.sqlite").touch()
    said = one_line(certmill(tmp_path, "authority"))
    assert "does not know the CA of this home" in said
    assert (tmp_path / "certmill.sqlite").read_bytes() == b""


def test_lost_pin_is_not_drawn_anew(tmp_path: Path) -> None:
    assert certmill(tmp_path, "init").returncode == 0
    pin = tmp_path / "secrets/pin"
    pin.rename(tmp_path / "aside")
    assert f"{pin}: the PIN of this CA's keys is missing" in one_line(certmill(tmp_path, "init"), EXIT_TEMPORARY)
    assert f"{pin}: the PIN of this CA's keys is missing" in one_line(certmill(tmp_path, "token", "check"), 1)
    assert not pin.exists()


def test_softhsm_beside_software_keys_says_how_they_go_on(tmp_path: Path) -> None:
    assert certmill(tmp_path, "init").returncode == 0
    said = one_line(certmill(tmp_path, "authority", signer_kind="auto"))
    assert "setting signer.kind: the keys of this CA are software keys" in said
    assert not list((tmp_path / "token/tokens").iterdir())


def test_token_with_another_pin_is_told_and_tried_once(tmp_path: Path) -> None:
    assert certmill(tmp_path, "init").returncode == 0
    (tmp_path / "secrets/pin").write_text("0" * 16)
    assert "software" in one_line(certmill(tmp_path, "authority"))


def test_pins_that_every_token_refused_are_not_tried_again(site: Site, tmp_path: Path) -> None:
    faults, module = Faults(tmp_path), build()
    memory = site.home / "run/refused-pins.json"
    tokens = f"{site.uri('a', module)} {site.uri('b', module)}"
    settings = {"CERTMILL_TOKENS": tokens, **site.softhsm, **faults.env}

    def start(command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "server", command],
            env={**RunningCertmill(site.home).environ, **settings},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    for token in "ab":
        site.write_pin(token, f"wrong-{token}")
    first = one_line(start("authority"))
    assert re.match("certmill: token '[ab]' of .* the PIN was refused", first)
    assert f"delete {memory}" not in first
    assert faults.calls("C_Login") == 2
    opened = faults.calls("C_Initialize")
    for command in ("authority", "init", "authority"):
        again = one_line(start(command))
        assert re.match("certmill: token '[ab]' of .* the PIN was refused", again)
        assert f"delete {memory} to try the same PIN again" in again
    assert (faults.calls("C_Login"), faults.calls("C_Initialize")) == (2, opened)
    site.write_pin("b", PIN)
    assert start("init").returncode == 0
    assert faults.calls("C_Login") >= 3
    assert list(json.loads(memory.read_text())) == ["a"]


def test_second_authority_of_a_home_is_refused(tmp_path: Path) -> None:
    running = RunningCertmill(tmp_path, {"CERTMILL_SIGNER_KIND": "software", "CERTMILL_LOG_FORMAT": "text"})
    running.start()
    try:
        assert "CERTMILL_HOME" in one_line(certmill(tmp_path, "authority"))
        assert running.admin("/readyz").status == 200
    finally:
        assert running.stop() == 0
    assert "ready" in running.log.read_text()


def test_lone_authority_stops_on_sigterm(tmp_path: Path) -> None:
    running = RunningCertmill(tmp_path, {"CERTMILL_SIGNER_KIND": "software"})
    with running.log.open("w") as log:
        running.process = subprocess.Popen(
            [sys.executable, "-m", "server", "authority"], env=running.environ, stdout=log, stderr=log, text=True
        )
    running.wait_ready()
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(30) == 0


@contextmanager
def lone_worker(running: RunningCertmill, number: int) -> Iterator["subprocess.Popen[str]"]:
    """Run `certmill ocsp` until the block ends; entered when it listens."""
    log = running.home.parent / f"{running.home.name}-{number}.log"
    with log.open("w") as stderr:
        worker = subprocess.Popen(
            [sys.executable, "-m", "server", "ocsp", "--number", str(number)],
            env=running.environ,
            stderr=stderr,
            text=True,
        )
    try:
        while "ocsp worker ready" not in log.read_text():
            assert worker.poll() is None, log.read_text()
            time.sleep(0.02)
        yield worker
    finally:
        worker.terminate()
        worker.wait(20)


def ocsp_command(running: RunningCertmill, number: int) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "server", "ocsp", "--number", str(number)],
        env=running.environ, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def test_lone_workers_of_a_home_share_the_port_each_under_its_number(tmp_path: Path) -> None:
    ours = RunningCertmill(tmp_path / "ours")
    metrics = ours.home / "run/ocsp-0.metrics.sock"
    with lone_worker(ours, 0) as first:
        made = metrics.stat().st_ctime_ns
        with lone_worker(ours, 1):
            refused = one_line(ocsp_command(ours, 0))
            assert "another ocsp-0 runs on" in refused
            assert "--number" in refused
            assert metrics.stat().st_ctime_ns == made
        first.kill()
        first.wait()
        with lone_worker(ours, 0):
            assert metrics.stat().st_ctime_ns > made


def test_no_other_home_joins_the_public_port(tmp_path: Path) -> None:
    ours, theirs = RunningCertmill(tmp_path / "ours"), RunningCertmill(tmp_path / "theirs")
    theirs.public_port = ours.public_port
    words = f"setting listen.public: cannot listen on 127.0.0.1:{ours.public_port}"
    with lone_worker(ours, 0), lone_worker(ours, 1):
        assert words in one_line(ocsp_command(theirs, 0))
        done = certmill(theirs.home, "serve", listen_public=f"127.0.0.1:{ours.public_port}")
        assert words in one_line(done)
        assert done.stdout == ""
    with lone_worker(theirs, 0):
        assert words in one_line(ocsp_command(ours, 0)), "the notes of workers that are gone count for nothing"


def test_admin_listener_has_an_index(running: RunningCertmill) -> None:
    index = running.admin("/")
    assert index.headers["content-type"].startswith("text/html")
    links = re.findall('href="([^"]+)"', index.body.decode())
    assert {"/docs", "/metrics", "/readyz"} <= set(links)
    for link in links:
        assert running.admin(link).status == 200
