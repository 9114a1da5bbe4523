"""Which tokens hold the keys, and what is said about it."""

import errno
import shutil
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import pytest

from server.config import Config, load_config
from server.errors import ConfigError, StorageError
from server.home import Home
from server.keys import token
from server.keys.token import ask_pins, holds_ca, module_fault, prepare_token, read_pins
from signer_pool.errors import LaneStartError
from signer_pool.lane_config import KeyMatch, LaneConfig, Pkcs11LaneConfig, SoftwareLaneConfig
from signer_pool.software import SoftwareSession
from tests.unit.signer_pool.lanes import MODULE, MemoryLogger


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.create()
    return home


def settings(home: Home, toml: str = "", **signer: str) -> Config:
    if toml:
        home.settings.write_text(toml)
    variables = {f"CERTMILL_SIGNER_{name.upper()}": value for name, value in signer.items()}
    return load_config({"CERTMILL_HOME": str(home.root), **variables})


def prepare(
    home: Home, config: Config, logger: MemoryLogger | None = None, pins: Mapping[str, str] | None = None
) -> list[LaneConfig]:
    return prepare_token(config, home, logger or MemoryLogger(), pins or {})  # type: ignore[arg-type]


def test_softhsm_gets_a_token_of_its_own_once(home: Home) -> None:
    logger, config = MemoryLogger(), settings(home, lanes="3")
    first = prepare(home, config, logger)
    assert len(first) == 3
    (lane,) = {id(lane): lane for lane in first}.values()
    assert isinstance(lane, Pkcs11LaneConfig)
    assert lane.module_path == MODULE
    assert lane.token_name == "certmill"
    assert str(home.root) in lane.env["SOFTHSM2_CONF"]
    assert prepare(home, config, logger) == first
    assert [line for _, line, _ in logger.lines] == ["token initialised"]
    assert all(lane.pin not in str(line) for line in logger.lines)
    assert (home.secrets / "pin").stat().st_mode & 0o077 == 0
    assert (home.secrets / "so-pin").read_text() != lane.pin


def test_without_softhsm_software_keys_are_used_loudly(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token, "SOFTHSM_MODULES", (Path("/nonexistent/libsofthsm2.so"),))
    logger = MemoryLogger()
    (lane, *_) = prepare(home, settings(home), logger)
    assert isinstance(lane, SoftwareLaneConfig)
    assert [level for level, *_ in logger.lines] == ["warning"]
    assert logger.lines[0][1].startswith("SOFTWARE KEYS")
    SoftwareSession(lane)
    with pytest.raises(ConfigError, match=r"setting signer\.kind: .*\[\[tokens\]\].*install softhsm2"):
        prepare(home, settings(home, kind="pkcs11"))


def test_software_keys_have_fixed_names(home: Home) -> None:
    with pytest.raises(ConfigError, match=r"setting keys\.issuing: software keys have fixed names"):
        prepare(home, settings(home, "[keys]\nissuing = 'pkcs11:id=%01'\n", kind="software"))


def test_every_named_token_has_its_lanes(home: Home) -> None:
    config = settings(
        home,
        f"""
        [signer]
        lanes = 2
        [[tokens]]
        uri = "pkcs11:token=national%20ca;serial=1;manufacturer=m;model=x;slot-id=3?module-path={MODULE}"
        pin = "prompt"
        [[tokens]]
        uri = "pkcs11:token=b?module-path={MODULE}&pin-source=prompt"
        lanes = 1
        name = "second"
        [keys]
        root = "pkcs11:object=gov-root;id=%01"
        """,
    )
    keys = {"root": KeyMatch(label="gov-root", id=b"\x01")}
    first = Pkcs11LaneConfig(
        module_path=MODULE, token_label="national ca", pin="12", name="national ca", serial="1", manufacturer="m",
        model="x", slot_id=3, keys=keys,
    )  # fmt: skip
    second = Pkcs11LaneConfig(module_path=MODULE, token_label="b", pin="34", name="second", keys=keys)
    assert prepare(home, config, pins={"national ca": "12", "second": "34"}) == [first, first, second]
    assert list(home.token.iterdir()) == []
    assert list(home.secrets.iterdir()) == []


def test_a_named_module_that_is_not_there_is_told(home: Home) -> None:
    config = settings(home, "[[tokens]]\nuri = 'pkcs11:token=a?module-path=/no/hsm.so&pin-source=prompt'\n")
    words = r"setting tokens\[0\]\.uri \(token 'a'\): module-path /no/hsm\.so is not there"
    with pytest.raises(ConfigError, match=words):
        prepare(home, config, pins={"a": "1"})


def test_a_named_module_that_is_a_directory_is_told(home: Home) -> None:
    config = settings(home, f"[[tokens]]\nuri = 'pkcs11:token=a?module-path={home.root}&pin-source=prompt'\n")
    with pytest.raises(ConfigError, match=rf"\(token 'a'\): module-path {home.root} is not a file; name your HSM"):
        prepare(home, config, pins={"a": "1"})


def test_a_named_module_that_cannot_be_looked_at_is_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    config = settings(home, f"[[tokens]]\nuri = 'pkcs11:token=a?module-path={MODULE}&pin-source=prompt'\n")
    monkeypatch.setattr(Path, "stat", refuse)
    assert (module_fault(config.tokens[0], 0) or "").endswith(
        f"module-path {MODULE} cannot be read (Permission denied); name your HSM's PKCS #11 library"
    )


def test_only_those_pins_are_asked_for_that_are_to_be_typed(home: Home) -> None:
    (home.root / "pin").write_text("12\n")
    (home.root / "pin").chmod(0o600)
    uri = f"pkcs11:token={{}}?module-path={MODULE}&pin-source={{}}"
    sources = {"a": f"file:{home.root}/pin", "b": "prompt", "c": "credential:pin"}
    config = settings(home, "".join(f"[[tokens]]\nuri = '{uri.format(*pair)}'\n" for pair in sources.items()))
    asked: list[str] = []

    def ask(name: str) -> str:
        asked.append(name)
        return "34"

    typed = ask_pins(config, ask)
    assert (asked, typed) == (["b"], {"b": "34"})
    environ = {"CREDENTIALS_DIRECTORY": str(home.root)}
    assert read_pins(config, environ, typed) == {"a": "12", "b": "34", "c": "12"}
    with pytest.raises(ConfigError, match=r"setting tokens\[1\]\.pin \(token 'b'\): no PIN of token 'b'"):
        read_pins(config, environ, {})
    with pytest.raises(ConfigError, match=r"setting tokens\[2\]\.pin \(token 'c'\): systemd"):
        read_pins(config, {}, typed)
    with pytest.raises(ConfigError, match=r"setting tokens\[1\]\.pin \(token 'b'\): what was entered is empty"):
        ask_pins(config, lambda _: "")


def ca_in_database(home: Home) -> sqlite3.Connection:
    """Make the database of a home with a CA, in the mode that the authority uses; still open."""
    database = sqlite3.connect(home.database, isolation_level=None)
    database.execute("pragma journal_mode=wal")
    database.execute("create table issuers (label)")
    database.execute("insert into issuers values ('root')")
    return database


def test_a_home_has_a_ca_when_its_database_names_one(home: Home) -> None:
    assert not holds_ca(home)
    home.database.touch()
    assert not holds_ca(home), "a database that was just begun"
    database = ca_in_database(home)
    assert holds_ca(home), "it stands in the write-ahead log alone"
    database.execute("delete from issuers")
    assert not holds_ca(home)
    database.close()
    (home.ca / "root.pem").touch()
    assert holds_ca(home)


def test_looking_for_a_ca_changes_nothing_and_tells_what_it_cannot_see(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = ca_in_database(home)
    database.execute("pragma journal_mode=delete")
    database.execute("begin exclusive")
    monkeypatch.setattr(token, "_DATABASE_TIMEOUT_S", 0.05)
    with pytest.raises(StorageError, match=r"certmill\.sqlite: database is locked"):
        holds_ca(home)
    database.close()
    before = home.database.read_bytes()
    assert holds_ca(home)
    assert home.database.read_bytes() == before
    assert [path.name for path in home.root.glob("certmill.sqlite*")] == ["certmill.sqlite"]
    home.database.write_bytes(b"this is no database" * 100)
    with pytest.raises(StorageError, match="not a database"):
        holds_ca(home)


def test_no_token_is_made_in_the_place_of_one_that_held_a_ca(home: Home) -> None:
    config = settings(home)
    (first,) = prepare(home, config)
    ca_in_database(home).close()
    assert prepare(home, config) == [first]
    tokens = home.token / "tokens"
    tokens.rename(home.root / "aside")
    with pytest.raises(
        LaneStartError, match=r"missing or cannot be read; restore it from the backup.*\[\[tokens\]\]"
    ):
        prepare(home, config)
    assert list(tokens.iterdir()) == []
    tokens.rmdir()
    (home.root / "aside").rename(tokens)
    assert prepare(home, config) == [first]


def test_no_pin_is_drawn_in_the_place_of_one_that_guarded_a_ca(home: Home) -> None:
    config = settings(home, kind="software")
    prepare(home, config)
    ca_in_database(home).close()
    (home.secrets / "pin").unlink()
    for remains in (home.software_keys / "root.pem", home.token / "tokens"):
        remains.mkdir()
        (remains / "token").touch()
        with pytest.raises(LaneStartError, match=r"secrets/pin: the PIN of this CA's keys is missing; restore it"):
            prepare(home, config)
        assert not (home.secrets / "pin").exists()
        shutil.rmtree(remains)


@pytest.mark.parametrize("kind", ["auto", "pkcs11", "software"])
def test_a_ca_whose_tokens_are_no_longer_named_is_told(
    home: Home, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    ca_in_database(home).close()
    words = (
        r"setting tokens: this home's CA .* \[\[tokens\]\], and none is named; name them in {} \(docs/hsm\.md\)"
    )
    with pytest.raises(ConfigError, match=words.format(home.settings)):
        prepare(home, settings(home, kind=kind))
    monkeypatch.setenv("CERTMILL_CONFIG", "/etc/certmill.toml")
    with pytest.raises(ConfigError, match=words.format("/etc/certmill.toml")):
        prepare(home, settings(home, kind=kind))
    for directory in (home.token, home.secrets, home.software_keys):
        assert list(directory.iterdir()) == []


def test_a_ca_with_software_keys_is_not_given_a_token(home: Home) -> None:
    prepare(home, settings(home, kind="software"))
    ca_in_database(home).close()
    (home.software_keys / "root.pem").touch()
    with pytest.raises(ConfigError, match=r"setting signer\.kind: the keys of this CA are software keys"):
        prepare(home, settings(home))
