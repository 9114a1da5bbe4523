"""Which token holds the keys, and what is said about it."""

from pathlib import Path

import pytest

from server.config import TokenSection, load_config
from server.errors import ConfigError
from server.home import Home
from server.keys import token
from server.keys.token import prepare_token
from signer_pool.lane import Pkcs11LaneConfig, SoftwareLaneConfig
from signer_pool.software import SoftwareSession
from tests.unit.signer_pool.lanes import MODULE, MemoryLogger


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.create()
    return home


def settings(home: Home, **changed: str) -> TokenSection:
    variables = {f"CERTMILL_TOKEN_{name.upper()}": value for name, value in changed.items()}
    return load_config({"CERTMILL_HOME": str(home.root), **variables}).token


def prepare(home: Home, logger: MemoryLogger | None = None, **changed: str) -> list[object]:
    return list(prepare_token(settings(home, **changed), home, logger or MemoryLogger()))  # type: ignore[arg-type]


def test_softhsm_gets_a_token_of_its_own_once(home: Home) -> None:
    logger = MemoryLogger()
    first = prepare(home, logger, lanes="3")
    assert len(first) == 3
    (lane,) = {id(lane): lane for lane in first}.values()
    assert isinstance(lane, Pkcs11LaneConfig)
    assert lane.module_path == MODULE
    assert str(home.root) in lane.env["SOFTHSM2_CONF"]
    assert prepare(home, logger, lanes="3") == first
    assert [line for _, line, _ in logger.lines] == ["token initialised"]
    assert all(lane.pin not in str(line) for line in logger.lines)
    assert (home.secrets / "pin").stat().st_mode & 0o077 == 0
    assert (home.secrets / "so-pin").read_text() != lane.pin


def test_without_softhsm_software_keys_are_used_loudly(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token, "SOFTHSM_MODULES", (Path("/nonexistent/libsofthsm2.so"),))
    logger = MemoryLogger()
    (lane, *_) = prepare(home, logger)
    assert isinstance(lane, SoftwareLaneConfig)
    assert [level for level, *_ in logger.lines] == ["warning"]
    assert logger.lines[0][1].startswith("SOFTWARE KEYS")
    SoftwareSession(lane)
    with pytest.raises(ConfigError, match=r"token\.module.*install softhsm2"):
        prepare(home, kind="pkcs11")


def test_a_named_module_needs_its_file_and_its_pin(home: Home, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"token\.module: /no/hsm\.so does not exist"):
        prepare(home, module="/no/hsm.so", pin_file=str(tmp_path / "pin"))
    with pytest.raises(ConfigError, match=r"token\.pin_file: name the file"):
        prepare(home, module=MODULE)
    with pytest.raises(ConfigError, match=r"token\.pin_file: .*cannot be read"):
        prepare(home, module=MODULE, pin_file=str(tmp_path / "absent"))
    (tmp_path / "pin").write_text("1234\n")
    (lane, *_) = prepare(home, module=MODULE, pin_file=str(tmp_path / "pin"), label="national-ca")
    assert lane == Pkcs11LaneConfig(module_path=MODULE, token_label="national-ca", pin="1234", env={})
