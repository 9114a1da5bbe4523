import stat
from pathlib import Path

import pytest

from server.errors import AlreadyRunning
from server.home import Home, exclusive, write_file


def test_secrets_are_for_the_owner_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.create()
    home.create()
    for path in (home.secrets, home.token, home.software_keys, home.run):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_second_authority_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    with exclusive(home), pytest.raises(AlreadyRunning, match="CERTMILL_HOME"), exclusive(home):
        pass
    with exclusive(home):
        pass


def test_a_file_is_replaced_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    write_file(path, b"one", mode=0o600)
    write_file(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["key.pem"]
