import os
import stat
from pathlib import Path

import pytest

from server.errors import AlreadyRunning, ConfigError
from server.home import Home, exclusive, write_file


def test_secrets_are_for_the_owner_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.create()
    home.create()
    for path in (home.secrets, home.token, home.software_keys, home.run):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_what_is_public_can_be_reached_whatever_the_umask(tmp_path: Path) -> None:
    home, before = Home(tmp_path / "above/home"), os.umask(0o077)
    try:
        home.create()
        home.root.chmod(0o750)
        home.create()
    finally:
        os.umask(before)
    for path in (home.root.parent, home.ca, home.clients, home.public, home.public / "crl"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o750, "what the operator chose stays"


def test_a_home_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=r"home .*/file/home: .*/file cannot be made: File exists; set CERTMILL_HOME"
    ):
        Home(tmp_path / "file/home").create()


def test_a_second_authority_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    with exclusive(home), pytest.raises(AlreadyRunning, match="CERTMILL_HOME"), exclusive(home):
        pass
    with exclusive(home):
        pass


def test_roles_do_not_exclude_each_other_and_one_may_be_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    home.create()
    with exclusive(home, "supervisor"), exclusive(home), exclusive(home, "ocsp-0") as lock:
        with pytest.raises(AlreadyRunning, match=r"another ocsp-0 runs on .*--number"), exclusive(home, "ocsp-0"):
            pass
        monkeypatch.setattr("server.home.time.sleep", lambda _: lock.release())
        with exclusive(home, "ocsp-0", patience_s=60):
            pass


def test_a_file_is_replaced_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    write_file(path, b"one", mode=0o600)
    write_file(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["key.pem"]


def test_file_is_on_the_disk_before_it_takes_the_place_and_the_place_before_we_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut leaves an empty file where the old one was, or the old one after we said that it is new."""
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def traced_fsync(descriptor: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append("directory" if is_directory else f"file of {os.fstat(descriptor).st_size} bytes")
        fsync(descriptor)

    def traced_replace(self: Path, target: Path) -> Path:
        steps.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(Path, "replace", traced_replace)
    write_file(tmp_path / "file", b"12345")
    assert steps == ["file of 5 bytes", "replace", "directory"]
