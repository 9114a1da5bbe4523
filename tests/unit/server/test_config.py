import re
from pathlib import Path

import msgspec
import pytest

from server.config import Address, Config, default_toml, load_config
from server.errors import ConfigError
from server.settings.signer import TokenSection
from signer_pool.lane_config import KeyMatch


def load(tmp_path: Path, toml: str = "", **variables: str) -> Config:
    if toml:
        (tmp_path / "certmill.toml").write_text(toml)
    return load_config({"CERTMILL_HOME": str(tmp_path), **variables})


def test_without_file_and_variables_the_defaults_serve_loopback_only(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.home == tmp_path
    assert {a.host for a in (config.listen.api, config.listen.public, config.listen.admin)} == {"127.0.0.1"}


def test_the_written_settings_file_documents_every_setting_with_its_default(tmp_path: Path) -> None:
    before, example, after = re.split(r"# \[\[tokens\]\]\n((?:# .*\n)+)", default_toml())
    defaults = _uncommented(before) + _uncommented(after)
    example_weight = "ministry-of-finance = 3"
    assert defaults.count(f"{example_weight} ") == 1
    defaults = defaults.replace(example_weight, "")
    assert msgspec.structs.replace(load(tmp_path, defaults), home=tmp_path) == Config(home=tmp_path)
    for section in msgspec.structs.fields(Config)[1:]:
        assert section.name == "tokens" or f"[{section.name}]" in defaults
        if section.name not in {"tokens", "plan", "weights"}:
            for setting in msgspec.structs.fields(section.type):
                assert f"\n{setting.name} = " in defaults
    (token,) = load(tmp_path, "[[tokens]]\n" + _uncommented(example)).tokens
    for setting in msgspec.structs.fields(TokenSection):
        assert getattr(token, setting.name) is not None


def _uncommented(toml: str) -> str:
    return "".join(
        line.removeprefix("# ") + "\n" for line in toml.splitlines() if " = " in line or line.startswith("[")
    )


def test_a_variable_wins_over_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, "[ocsp]\nworkers = 2\nvalidity_h = 48\n", CERTMILL_OCSP_WORKERS="3")
    assert (config.ocsp.workers, config.ocsp.validity_h) == (3, 48)


def test_names_of_the_api_are_a_comma_separated_variable(tmp_path: Path) -> None:
    assert load(tmp_path, CERTMILL_LISTEN_API_NAMES="a.gov,192.0.2.1").listen.api_names == ("a.gov", "192.0.2.1")


def test_another_file_can_be_named(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('[log]\nlevel = "debug"\n')
    assert load(tmp_path, CERTMILL_CONFIG=str(other)).log.level == "debug"


URI = "pkcs11:token=hsm;serial=1?module-path=/opt/hsm.so"
TOKEN = f"[[tokens]]\nuri = '{URI}'\n"
OTHER = TOKEN.replace("serial=1", "serial=2")


def test_tokens_are_named_by_uris_each_with_a_pin_and_perhaps_lanes_and_a_name(tmp_path: Path) -> None:
    other = f"{OTHER}pin = 'credential:hsm'\nlanes = 3\nname = 'second'\n"
    config = load(tmp_path, f"{TOKEN}pin = 'prompt'\n{other}")
    first, second = config.tokens
    assert (first.token_name, first.pin_source, first.lanes) == ("hsm", "prompt", None)
    assert (second.token_name, second.pin_source, second.lanes) == ("second", "credential:hsm", 3)
    assert first.address.serial == "1"


def test_tokens_of_the_variable_replace_those_of_the_file(tmp_path: Path) -> None:
    variable = f" {URI}&pin-source=file:/pin\n{URI.replace('=hsm', '=other')}&pin-source=prompt "
    config = load(tmp_path, f"{TOKEN}pin = 'prompt'\n", CERTMILL_TOKENS=variable)
    assert [(token.token_name, token.pin_source) for token in config.tokens] == [
        ("hsm", "file:/pin"),
        ("other", "prompt"),
    ]
    assert load(tmp_path, f"{TOKEN}pin = 'prompt'\n", CERTMILL_TOKENS="").tokens == ()


def test_keys_are_named_only_where_the_label_does_not_say_it(tmp_path: Path) -> None:
    assert load(tmp_path).keys.matches() == {}
    keys = "[keys]\nroot = 'pkcs11:object=root;type=private'\nissuing = 'pkcs11:object=gov%202026'\nocsp = 'pkcs11:id=%01%ff'\n"
    assert load(tmp_path, keys).keys.matches() == {
        "issuing": KeyMatch(label="gov 2026"),
        "ocsp": KeyMatch(id=b"\x01\xff"),
    }


def test_weights_are_of_clients(tmp_path: Path) -> None:
    assert load(tmp_path, '[weights]\nministry-of-finance = 3\n"a b" = 1\n').weights == {
        "ministry-of-finance": 3,
        "a b": 1,
    }


def test_years_of_the_plan_are_added_to_the_default_ones(tmp_path: Path) -> None:
    plan = load(tmp_path, "[plan]\n2027 = 6000\n2029 = 9\n", CERTMILL_PLAN_2026="7").plan
    assert plan == {"2026": 7, "2027": 6000, "2028": 10_000, "2029": 9}


@pytest.mark.parametrize(
    ("toml", "variables", "words"),
    [
        ("[listen]\napi = 'here'\n", {}, ["listen.api", "host:port", "certmill.toml, line 2)"]),
        ("[listen]\napi = '127.0.0.1:99999'\n", {}, ["listen.api"]),
        ("[ocsp]\nworkers = 0\n", {}, ["ocsp.workers", ">= 1"]),
        ("[ocsp]\nworkers = 'many'\n", {}, ["ocsp.workers", "int"]),
        (
            "[ocsp]\nwrokers = 1\n",
            {},
            ["setting ocsp.wrokers:", "did you mean workers?", "[ocsp] has workers, validity_h"],
        ),
        (
            "[log]\nworkers = 1\n",
            {},
            ["setting log.workers:", "did you mean workers of [lint]?", "[log] has format, level"],
        ),
        (
            "[surprise]\na = 1\n",
            {},
            ["setting surprise: no such section;", "[listen], [ca], [signer], [[tokens]]"],
        ),
        ("\n[oscp]\na = 1\n", {}, ["setting oscp:", "did you mean [ocsp]?", "line 2)"]),
        ("workers = 1\n", {}, ["setting workers: no such section;", "did you mean workers of [lint]?"]),
        (
            "",
            {"CERTMILL_OCSP_WORKER": "3"},
            ["setting ocsp.worker:", "mean workers?", "(variable CERTMILL_OCSP_WORKER)"],
        ),
        ("[ocsp]\nvalidity_h = 19\n", {}, ["setting ocsp.validity_h:", ">= 20"]),
        ("[ocsp]\nworkers = 1\n[log]\n[ocsp] # again\n", {}, ["line 4: section [ocsp] stands twice"]),
        ("[ocsp]\nworkers = 1\nworkers = 2", {}, ["line 3: workers stands twice"]),
        ("[token]\nkind = 'software'\n", {}, ["section [token] is now [signer]", "[[tokens]]", "line 1)"]),
        ("\ntoken.kind = 'software'\n", {}, ["section [token] is now [signer]", "certmill.toml, line 2)"]),
        ("home = '/x'\n", {}, ["CERTMILL_HOME"]),
        ("ocsp = 1\n", {}, ["setting ocsp: must be a [section]"]),
        ("ocsp = 1\n", {"CERTMILL_OCSP_WORKERS": "1"}, ["setting ocsp: must be a [section]", "line 1)"]),
        (
            "[issuance]\nsign_deadline_s = 30\n",
            {},
            ["setting issuance.sign_deadline_s:", "smaller than listen.request_deadline_s", "line 2)"],
        ),
        ("[crl]\ninterval_h = 24\nvalidity_h = 24\n", {}, ["setting crl.interval_h:", "line 2)"]),
        ("", {"CERTMILL_SIGNER_LANES": "0"}, ["signer.lanes", "(variable CERTMILL_SIGNER_LANES)"]),
        ("[signer]\nkind = 'hsm'\n", {}, ["signer.kind", "'hsm'; it is one of auto, pkcs11, software"]),
        ("[ca]\nroot_key = 'rsa'\n", {}, ["ca.root_key", "'rsa'; it is one of ec-p256, ec-p384", "rsa-2048"]),
        ("[ca]\ncountry = 'la'\n", {}, ["ca.country", "two capital letters"]),
        (f"{TOKEN}pin = 'prompt'\n[signer]\nkind = 'software'\n", {}, ["setting signer.kind:", "auto or pkcs11"]),
        (TOKEN, {}, ["setting tokens[0].pin:", "file:/path", "line 1)"]),
        (f"[[tokens]]\nuri = '{URI}&pin-source=prompt'\npin = 'prompt'", {}, ["tokens[0].pin", "once"]),
        (f"{TOKEN}pin = '739155'\n", {}, ["setting tokens[0].pin:", "not the PIN itself"]),
        (f"{TOKEN}pin = ''\n", {}, ["setting tokens[0].pin:", "credential:NAME"]),
        (f"{TOKEN}pin = 'prompt'\nlanes = 65\n", {}, ["setting tokens[0].lanes:", "<= 64"]),
        (f"{TOKEN}pin = 'prompt'\nname = ''\n", {}, ["setting tokens[0].name:"]),
        (
            f"{TOKEN}pin = 'prompt'\n{OTHER}pin = 'prompt'\n",
            {},
            ["setting tokens[1].name:", "'hsm' is taken", "line 4)"],
        ),
        (
            f"{TOKEN}pin = 'prompt'\n[[tokens]]\nuri = '{URI.replace('hsm;', '%68sm;')}'\npin = 'file:/a'\nname = 'b'\n",
            {},
            ["setting tokens[1].uri: the same token as tokens[0];", "does not make two", "line 5)"],
        ),
        (
            f"{TOKEN}pin = 'prompt'\n{TOKEN}pim = 'prompt'\n",
            {},
            ["setting tokens[1].pim:", "mean pin?", "line 6)"],
        ),
        ("[[tokens]]\npin = 'prompt'\n", {}, ["setting tokens[0]:", "uri"]),
        ("[tokens]\nuri = 'pkcs11:'\n", {}, ["setting tokens:", "double brackets"]),
        (f"\n[tokens]\nuri = 'pkcs11:'\n{TOKEN}", {}, ["line 2: [tokens] must be written in double brackets"]),
        (f"{TOKEN}[ tokens ] # b\n", {}, ["line 3: [tokens] must be written in double brackets, [[tokens]]"]),
        ("[ocsp]\nworkers = 1\n[[ocsp]]\n", {}, ["line 3: section [[ocsp]] stands twice"]),
        ("[log]\n[[token]]\nuri = 'pkcs11:'\n", {}, ["section [[token]]: ", "mean [[tokens]]?", "line 2)"]),
        ("[log]\n[token]\nuri = 'pkcs11:'\n", {}, ["section [token]: ", "mean [[tokens]]?", "line 2)"]),
        ("[log]\n[[tokns]]\nuri = 'pkcs11:'\n", {}, ["setting tokns: ", "mean [[tokens]]?", "line 2)"]),
        (f"{TOKEN}pin = 1111\n", {}, ["setting tokens[0].pin: must be text in quotes (", "line 3)"]),
        ("[ca]\ncountry = 1\n", {}, ["setting ca.country: must be text in quotes (", "line 2)"]),
        ("[log]\nlevel = 1\n", {}, ["setting log.level: must be text in quotes; it is one of debug"]),
        ("", {"CERTMILL_TOKENS": URI}, ["tokens[0].pin:", "pin-source in the URI", "(variable CERTMILL_TOKENS)"]),
        ("", {"CERTMILL_TOKENS": f"{URI}&pin-source=|/bin/x"}, ["tokens[0].uri:", "attribute pin-source"]),
        ("", {"CERTMILL_TOKENS": f"{URI}&pin-value=739155"}, ["tokens[0].uri:", "pin-value", "process lists"]),
        ("", {"CERTMILL_TOKENS": "hsm"}, ["tokens[0].uri:", "pkcs11:token="]),
        ("", {"CERTMILL_TOKENS": "pkcs11:?module-path=/a"}, ["tokens[0].uri:", "attribute token"]),
        ("", {"CERTMILL_TOKENS": "pkcs11:token=a"}, ["tokens[0].uri:", "attribute module-path"]),
        ("", {"CERTMILL_TOKENS": "pkcs11:token=a?module-path=b.so"}, ["tokens[0].uri:", "absolute"]),
        ("", {"CERTMILL_TOKENS": f"{URI}&module-name=b"}, ["tokens[0].uri:", "attribute module-name", "remove"]),
        ("", {"CERTMILL_TOKENS": URI.replace("serial", "object")}, ["tokens[0].uri:", "attribute object"]),
        ("", {"CERTMILL_TOKENS_0_PIN": "file:/a"}, ["CERTMILL_TOKENS_0_PIN", "no such setting"]),
        (
            "",
            {"CERTMILL_TOKEN_KIND": "software"},
            ["section [token] is now [signer]", "variable CERTMILL_TOKEN_KIND"],
        ),
        ("[keys]\nroot = 'root'\n", {}, ["setting keys.root:", "pkcs11:"]),
        ("[keys]\nroot = 'pkcs11:'\n", {}, ["setting keys.root:", "object="]),
        ("[keys]\nroot = 'pkcs11:object=a;type=cert'\n", {}, ["setting keys.root:", "attribute type"]),
        ("[keys]\nroot = 'pkcs11:object=a;token=b'\n", {}, ["setting keys.root:", "attribute token", "remove"]),
        ("[keys]\nroot = 'pkcs11:object=ocsp'\n", {}, ["setting keys.root:", "key of keys.ocsp;", "line 2)"]),
        ("\n[keys]\nocsp = 'pkcs11:object=root'\n", {}, ["setting keys.ocsp:", "key of keys.root;", "line 3)"]),
        (
            "[keys]\nissuing = 'pkcs11:object=a'\nocsp = 'pkcs11:object=a'\n",
            {},
            ["setting keys.ocsp:", "key of keys.issuing;", "line 3)"],
        ),
        ("[plan]\n2026 = 'many'\n", {}, ["setting plan.2026:", "int", "line 2)"]),
        ("[plan]\n2026 = -1\n", {}, ["setting plan.2026:", ">= 0"]),
        ("[weights]\ntax = 0\n", {}, ["setting weights.tax:", ">= 1", "line 2)"]),
        ("[plan]\nnext = 1\n", {}, ["setting plan.next:", "no year", "line 2)"]),
        ("plan = 1\n", {}, ["setting plan:", "[section]"]),
        ("[listen]\npublic_url = 'ftp://x'\n", {}, ["listen.public_url: must be an http(s) URL"]),
        ("[listen]\npublic = '0.0.0.0:80'\n", {}, ["setting listen.public_url: must be set", "is 0.0.0.0:80,"]),
        ("not toml", {}, ["certmill.toml: not valid TOML"]),
        (
            "",
            {"CERTMILL_OCPS_WORKERS": "1"},
            ["CERTMILL_OCPS_WORKERS", "no such setting", "did you mean CERTMILL_OCSP_WORKERS?"],
        ),
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
    assert "739155" not in message
    for word in words:
        assert word in message
    assert " or CERTMILL_" not in message, "only where it came from"


def test_a_setting_that_is_wrong_by_its_default_says_where_to_set_it(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"setting crl\.interval_h: .*set it in .*toml or by CERTMILL_CRL_INTERVAL_H"
    ):
        load(tmp_path, CERTMILL_CRL_VALIDITY_H="24")


def test_a_wildcard_needs_the_url_that_certificates_are_to_name(tmp_path: Path) -> None:
    words = r"setting listen\.public_url: must be set .* \[::\]:80, .*set it in .*toml or by CERTMILL_LISTEN_PUBLIC_URL"
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, CERTMILL_LISTEN_PUBLIC="[::]:80")


@pytest.mark.parametrize(
    ("public", "public_url", "url"),
    [
        ("127.0.0.1:8080", "", "http://127.0.0.1:8080"),
        ("192.0.2.1:80", "", "http://192.0.2.1:80"),
        ("[2001:db8::1]:80", "", "http://[2001:db8::1]:80"),
        ("pki.gov:80", "", "http://pki.gov:80"),
        ("192.0.2.1:80", "https://pki.gov/a", "https://pki.gov/a"),
        ("0.0.0.0:80", "http://pki.gov", "http://pki.gov"),
    ],
)
def test_the_url_in_certificates_follows_the_public_listener_unless_it_is_set(
    tmp_path: Path, public: str, public_url: str, url: str
) -> None:
    config = load(tmp_path, CERTMILL_LISTEN_PUBLIC=public, CERTMILL_LISTEN_PUBLIC_URL=public_url)
    assert config.listen.url == url


def test_tokens_that_differ_in_anything_that_finds_them_are_two(tmp_path: Path) -> None:
    uris = [URI, URI.replace(";", ";slot-id=1;"), URI.replace(";", ";model=m;"), URI.replace("/hsm.so", "/b.so")]
    uris += [URI.replace(";", ";manufacturer=m;"), URI.replace("serial=1", "serial=2")]
    toml = "".join(f"[[tokens]]\nuri = '{uri}'\npin = 'prompt'\nname = '{n}'\n" for n, uri in enumerate(uris))
    assert len(load(tmp_path, toml).tokens) == len(uris)


def test_refreshing_at_half_of_the_shortest_life_leaves_time_to_try_again(tmp_path: Path) -> None:
    """BR 4.9.10: eight hours before nextUpdate the next answer must be there."""
    shortest = load(tmp_path, CERTMILL_OCSP_VALIDITY_H="20").ocsp.validity_h
    assert shortest / 2 - 8 >= 2


def test_addresses_are_written_as_they_are_read() -> None:
    assert str(Address.parse("[::1]:8443")) == "[::1]:8443"
    assert repr(Address.parse("a.gov:1")) == "a.gov:1"
