from pathlib import Path

import msgspec
import pytest

from server.config import Address, Config, default_toml, load_config
from server.errors import ConfigError


def load(tmp_path: Path, toml: str = "", **variables: str) -> Config:
    if toml:
        (tmp_path / "certmill.toml").write_text(toml)
    return load_config({"CERTMILL_HOME": str(tmp_path), **variables})


def test_without_file_and_variables_the_defaults_serve_loopback_only(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.home == tmp_path
    assert {a.host for a in (config.listen.api, config.listen.public, config.listen.admin)} == {"127.0.0.1"}


def test_the_written_settings_file_documents_every_setting_with_its_default(tmp_path: Path) -> None:
    uncommented = "\n".join(
        line.removeprefix("# ") for line in default_toml().splitlines() if " = " in line or line.startswith("[")
    )
    assert msgspec.structs.replace(load(tmp_path, uncommented), home=tmp_path) == Config(home=tmp_path)
    for section in msgspec.structs.fields(Config)[1:]:
        for setting in msgspec.structs.fields(section.type):
            assert f"\n{setting.name} = " in uncommented


def test_a_variable_wins_over_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, "[ocsp]\nworkers = 2\nvalidity_h = 48\n", CERTMILL_OCSP_WORKERS="3")
    assert (config.ocsp.workers, config.ocsp.validity_h) == (3, 48)


def test_names_of_the_api_are_a_comma_separated_variable(tmp_path: Path) -> None:
    assert load(tmp_path, CERTMILL_LISTEN_API_NAMES="a.gov,192.0.2.1").listen.api_names == ("a.gov", "192.0.2.1")


def test_another_file_can_be_named(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('[log]\nlevel = "debug"\n')
    assert load(tmp_path, CERTMILL_CONFIG=str(other)).log.level == "debug"


@pytest.mark.parametrize(
    ("toml", "variables", "words"),
    [
        ("[listen]\napi = 'here'\n", {}, ["listen.api", "host:port", "CERTMILL_LISTEN_API"]),
        ("[listen]\napi = '127.0.0.1:99999'\n", {}, ["listen.api"]),
        ("[ocsp]\nworkers = 0\n", {}, ["ocsp.workers", ">= 1"]),
        ("[ocsp]\nworkers = 'many'\n", {}, ["ocsp.workers", "int"]),
        ("[ocsp]\nwrokers = 1\n", {}, ["ocsp", "wrokers"]),
        ("[surprise]\na = 1\n", {}, ["surprise"]),
        ("home = '/x'\n", {}, ["CERTMILL_HOME"]),
        ("ocsp = 1\n", {"CERTMILL_OCSP_WORKERS": "1"}, ["[section]"]),
        ("[crl]\ninterval_h = 24\nvalidity_h = 24\n", {}, ["crl.interval_h"]),
        ("[listen]\npublic_url = 'ftp://x'\n", {}, ["listen.public_url"]),
        ("not toml", {}, ["not valid TOML"]),
        ("", {"CERTMILL_OCPS_WORKERS": "1"}, ["CERTMILL_OCPS_WORKERS", "no such setting"]),
        ("", {"CERTMILL_OCSP": "1"}, ["CERTMILL_OCSP"]),
        ("", {"CERTMILL_CONFIG": "/nowhere/certmill.toml"}, ["/nowhere/certmill.toml", "no such file"]),
        ("", {"CERTMILL_CONFIG": "/"}, ["cannot be read"]),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(
    tmp_path: Path, toml: str, variables: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, toml, **variables)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_addresses_are_written_as_they_are_read() -> None:
    assert str(Address.parse("[::1]:8443")) == "[::1]:8443"
    assert repr(Address.parse("a.gov:1")) == "a.gov:1"
