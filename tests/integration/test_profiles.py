"""Profiles as files of the home: activated, frozen, replayed; and names in JSON."""

import asyncio
import dataclasses
import datetime as dt
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from pkix.asked import AskedNames
from pkix.errors import ProfileViolation
from pkix.profile import Policy
from pkix.profile_rules import KeyRule, NameRule, Presence
from server.app import Parts
from server.cli import profile_replay, profile_run
from server.cli.commands import app
from server.clock import utc_now
from server.errors import ConfigError, InvalidRequest, StorageError
from server.home import Home
from server.issuance.order import Order
from server.issuance.profile_files import ProfileFile, built_in_files, read_profile_files
from server.issuance.profiles import ProfileRegistry
from server.issuance.replay import Replay
from server.issuance.samples import PrivateKey, SampleCa, sample_ca, sample_certificate, sample_findings
from server.storage.database import Database
from server.supervisor import EXIT_CONFIG
from tests.support.authority import MINISTRY, MovableClock, Prepared, Table, authority, prepare, software_config
from tests.support.ca import make_csr
from tests.support.profiles import BUILT_IN as PROFILES

BUILT_IN_FILES = built_in_files()
CLIENT = next(file.toml for file in BUILT_IN_FILES if file.profile.name == "tls-client")


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(software_config(tmp_path))


@pytest.fixture
async def parts(prepared: Prepared) -> AsyncIterator[Parts]:
    async with authority(prepared, MovableClock()) as opened:
        yield opened


def overlay(home: Path, version: int, **changes: str) -> Path:
    """Write a version of tls-client into the home's profiles."""
    text = CLIENT.replace("version = 2", f"version = {version}")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = home / "profiles" / "client.toml"
    path.write_text(text)
    return path


def client_order(parts: Parts, common_name: str = "e-licence", **more: object) -> Order:
    order = Order(
        client=MINISTRY,
        profile=parts.profiles.named("tls-client"),
        csr=make_csr(common_name),
        request_id="test",
    )
    return dataclasses.replace(order, **more)  # type: ignore[arg-type]


async def test_a_file_of_the_home_replaces_a_built_in_profile_and_both_versions_are_kept(
    prepared: Prepared, tmp_path: Path
) -> None:
    async with authority(prepared, MovableClock()) as parts:
        assert parts.profiles.named("tls-client").version == 2
        first = await parts.issuance.issue(client_order(parts))
    overlay(tmp_path, 3, **{"days = 365": "days = 30"})
    async with authority(prepared, MovableClock()) as parts:
        second = await parts.issuance.issue(client_order(parts))
        assert (first.profile, second.profile) == ("tls-client@2", "tls-client@3")
        assert second.not_after - second.not_before < dt.timedelta(days=30)
        old = parts.profiles.version("tls-client@2")
        assert old.validity == dt.timedelta(days=365)
        bound = await parts.issuance.issue(client_order(parts, profile=old))
        assert bound.profile == "tls-client@2"
    activated = Table(tmp_path).rows("select object from audit_log where action = 'profile.activated'")
    assert [identity for (identity,) in activated].count("tls-client@3") == 1


def start(prepared: Prepared) -> list[str]:
    """Do what a start does with profiles, and nothing else."""
    files = read_profile_files(Home(prepared.config.home).profiles)

    async def activate() -> list[str]:
        async with Database(Home(prepared.config.home).database) as database:
            return await ProfileRegistry(database, MovableClock()).activate(files)

    return asyncio.run(activate())


@pytest.mark.parametrize(
    ("version", "changes", "complaint"),
    [
        (3, {"days = 365": "days = 31"}, "bump the version to 4"),
        (2, {}, "built in as version 2; write a higher version"),
        (4, {'name = "tls-client"': 'name = "Client"'}, r"client\.toml, line 2: name: .*; use"),
        (
            4,
            {"days = 365": "days = 365\nhours = 7"},
            r"client\.toml, line 11: validity\.hours: there is no such key",
        ),
        (4, {'"clientAuth"': '"authenticates"'}, r"client\.toml, line 21: extensions\.extended_key_usage"),
    ],
)
def test_a_start_refuses_what_is_wrong_with_one_line(
    prepared: Prepared, tmp_path: Path, version: int, changes: dict[str, str], complaint: str
) -> None:
    path = overlay(tmp_path, 3)
    assert "tls-client@3" in start(prepared)
    assert start(prepared) == []
    overlay(tmp_path, version, **changes)
    with pytest.raises(ConfigError, match=complaint) as caught:
        start(prepared)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_version_below_one_of_the_past_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    path = overlay(tmp_path, 5)
    start(prepared)
    path.unlink()
    with pytest.raises(ConfigError, match=r"tls-client@5 was active before.*bump the version to 6"):
        start(prepared)


async def test_profiles_that_certmill_needs_for_itself_stay_fit_for_it(prepared: Prepared, tmp_path: Path) -> None:
    overlay(tmp_path, 3, **{'attribute = "O"\npresence = "optional"': 'attribute = "O"\npresence = "required"'})
    with pytest.raises(ExceptionGroup) as caught:  # what is open by then is closed in groups
        async with authority(prepared, MovableClock()):
            pass
    assert caught.group_contains(
        ConfigError, match="tls-client@3: certmill cannot have its own certificate under it"
    )


def file_of(name: str) -> str:
    return next(file.toml for file in BUILT_IN_FILES if file.profile.name == name)


@pytest.mark.parametrize(
    ("name", "changes", "complaint"),
    [
        ("tls-client", {"version = 2": "version = 3\ninternal = true"}, "internal: it stays"),
        ("ocsp-responder", {"version = 2": "version = 3", "ocsp_nocheck = true\n": ""}, "needs ocsp-responder"),
    ],
)
def test_a_successor_is_of_the_same_kind(
    tmp_path: Path, name: str, changes: dict[str, str], complaint: str
) -> None:
    text = file_of(name)
    for old, new in changes.items():
        text = text.replace(old, new)
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_profile_files(tmp_path)


def test_one_file_for_one_name_that_can_be_read(tmp_path: Path) -> None:
    for name in ("a.toml", "b.toml"):
        (tmp_path / name).write_text(CLIENT.replace("tls-client", "office"))
    with pytest.raises(ConfigError, match=r"b\.toml: profile office stands in .*a\.toml too"):
        read_profile_files(tmp_path)
    (tmp_path / "b.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_profile_files(tmp_path)
    (tmp_path / "b.toml").unlink()
    (tmp_path / "b.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_profile_files(tmp_path)
    (tmp_path / "b.toml").rmdir()
    assert "office" in {file.profile.name for file in read_profile_files(tmp_path)}


async def test_versions_that_others_activated_are_learned(parts: Parts, tmp_path: Path) -> None:
    table = Table(tmp_path)
    with pytest.raises(InvalidRequest, match="never activated"):
        parts.profiles.version("office@1")
    for name, text in (("office", CLIENT.replace("tls-client", "office")), ("broken", "name = 7")):
        table.rows("insert into profile_versions values (?, 1, ?, ?, 0)", name, b"x" * 32, text)
    await parts.profiles.refresh()
    assert parts.profiles.version("office@1").name == "office"
    assert parts.profiles.own("subordinate-ca").internal
    assert {profile.name for profile in parts.profiles.active} > {p.name for p in parts.profiles.offered}
    with pytest.raises(StorageError, match="broken@1"):
        parts.profiles.version("broken@1")


async def test_two_authorities_that_start_at_once_record_a_version_once(parts: Parts) -> None:
    registry, files = parts.profiles, BUILT_IN_FILES
    office = ProfileFile(
        profile=dataclasses.replace(files[0].profile, name="office"), toml="of office", origin="office.toml"
    )
    first, attempts = registry._record, list[int]()

    async def late(some: object) -> list[str]:
        attempts.append(1)
        if len(attempts) == 1:
            raise StorageError("UNIQUE constraint failed")
        return await first(some)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_record", late)
        assert await registry.activate([*files, office]) == ["office@1"]
    assert await registry.activate([*files, office]) == []


async def test_names_come_from_csr_and_json(parts: Parts) -> None:
    asked = AskedNames(subject=(("O", "ກະຊວງ"), ("CN", "e-licence"), ("C", "LA")))
    issued = await parts.issuance.issue(client_order(parts, asked=asked))
    subject = x509.load_der_x509_certificate(issued.certificate_der).subject
    assert [attribute.value for attribute in subject] == ["LA", "ກະຊວງ", "e-licence"]
    with pytest.raises(ProfileViolation, match="say different things"):
        await parts.issuance.issue(client_order(parts, "another", asked=asked))


async def test_the_issuing_ca_is_made_under_its_profile(parts: Parts, tmp_path: Path) -> None:
    [(identity,)] = Table(tmp_path).rows(
        "select profile from certificates where issuer = 'root' and profile like 'subordinate-ca@%'"
    )
    assert identity == parts.profiles.own("subordinate-ca").identity
    issuing = parts.hierarchy.issuing.certificate
    assert issuing.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert (
        issuing.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "certmill demonstration issuing CA"
    )


async def fill(prepared: Prepared) -> None:
    async with authority(prepared, MovableClock()) as parts:
        asked = AskedNames(subject=(("O", "Post"),))
        await parts.issuance.issue(client_order(parts, "one", asked=asked))
        await parts.issuance.issue(client_order(parts, "two", lifetime=dt.timedelta(days=7)))


def test_a_replay_shows_every_difference_before_a_version_is_activated(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(fill(prepared))
    monkeypatch.setenv("CERTMILL_HOME", str(tmp_path))
    same = tmp_path / "same.toml"
    same.write_text(CLIENT.replace("version = 2", "version = 3"))
    assert profile_replay.replay(same, since=None, limit=None, as_json=False) == 0
    assert "3 requests through tls-client@3: 3 as before, 0 changed, 0 refused" in capsys.readouterr().out

    shorter = tmp_path / "shorter.toml"
    text = (
        same.read_text()
        .replace("days = 365", "days = 30")
        .replace('"clientAuth"', '"clientAuth", "documentSigning"')
    )
    text = text.replace("[extensions]", '[extensions]\npolicies = [{ oid = "1.3.6.1.4.1.99999.1" }]')
    shorter.write_text(
        text.replace('attribute = "O"\npresence = "optional"', 'attribute = "O"\npresence = "required"')
    )
    assert profile_replay.replay(shorter, since=None, limit=None, as_json=True) == 1
    *lines, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert summary == {"profile": "tls-client@3", "replayed": 3, "same": 0, "changed": 1, "refused": 2}
    assert [bool(line["refusal"]) for line in lines] == [
        True,
        False,
        True,
    ]  # newest first: two, one, certmill's own
    changes = {one["what"]: (one["before"], one["after"]) for one in lines[1]["changes"]}
    assert changes == {
        "validity": ("365 days", "30 days"),
        "extension ExtendedKeyUsage": ("1.3.6.1.5.5.7.3.2", "1.3.6.1.5.5.7.3.2, 1.3.6.1.5.5.7.3.36"),
        "extension CertificatePolicies": ("", "1.3.6.1.4.1.99999.1"),
    }
    assert profile_replay.replay(shorter, since=None, limit=1, as_json=False) == 1
    out = capsys.readouterr().out
    assert "refused now: subject.O: profile tls-client needs O in the subject" in out
    assert "1 requests" in out
    later = dt.datetime(2999, 1, 1)  # noqa: DTZ001 - as the command line gives it
    assert profile_replay.replay(shorter, since=later, limit=None, as_json=False) == 0
    assert Table(tmp_path).rows("select count(*) from profile_versions where name = 'tls-client'") == [(1,)]


def test_the_commands_on_profiles(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CERTMILL_HOME", str(tmp_path))
    path = overlay(tmp_path, 3, **{"days = 365": "days = 30"})
    asyncio.run(fill(prepared))
    assert profile_run.list_profiles(as_json=True) == 0
    listed = {one["profile"]: one for one in json.loads(capsys.readouterr().out)["profiles"]}
    assert listed["tls-client@3"]["origin"] == str(path)
    assert listed["tls-client@3"]["activated_at"]
    public = listed["tls-server-public@1"]
    assert (public["days"], public["days_today"] < 200) == (200, True)  # a day below the maximum of its date
    assert profile_run.list_profiles(as_json=False) == 0
    assert "tls-client@3" in capsys.readouterr().out

    # What a start would refuse is refused here: a version that was active, with another content.
    assert profile_run.lint([path], as_json=False) == 0
    overlay(tmp_path, 3, **{"days = 365": "days = 20"})
    assert profile_run.lint([path], as_json=False) == 1
    assert "tls-client@3 was activated with another content" in capsys.readouterr().err
    overlay(tmp_path, 4, **{"days = 365": "days = 20"})
    assert profile_run.list_profiles(as_json=False) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "tls-client@4" in line]
    assert "the next start" in line
    assert profile_run.show("tls-client@3", as_json=False) == 0  # now from the database
    assert "days = 30" in capsys.readouterr().out
    assert profile_run.show("tls-client@2", as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["validity.days"] == 365
    assert profile_run.diff("tls-client@3", str(path), as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["keys"] == {"version": [3, 4], "validity.days": [30, 20]}
    assert profile_run.diff("tls-client", "tls-server", as_json=False) == 1
    assert "names.dns.presence" in capsys.readouterr().out
    assert profile_run.diff("tls-server", "tls-server@2", as_json=False) == 0
    assert capsys.readouterr().out == "no difference in meaning\n"
    assert profile_run.show("tls-client@9", as_json=False) == EXIT_CONFIG
    assert "there is no profile 'tls-client@9'" in capsys.readouterr().err


def test_files_are_checked_with_the_certificates_that_come_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CERTMILL_HOME", str(tmp_path / "home"))
    good, bad, odd = (tmp_path / f"{name}.toml" for name in ("good", "bad", "odd"))
    good.write_text(CLIENT)
    bad.write_text(CLIENT.replace("days = 365", "days = 0"))
    server = file_of("tls-server")
    odd.write_text(server.replace("dns = {", 'dns = { example = "a b",'))
    assert profile_run.lint([good], as_json=False) == 0
    assert capsys.readouterr().out == f"{good}: tls-client@2 is right\n"
    assert profile_run.lint([good, bad, odd], as_json=False) == 1
    errors = capsys.readouterr().err
    assert f"{bad}, line 10: validity.days: 0 days are too few or too many; write days = 1" in errors
    assert f"{odd}: the examples do not go together: names.dns: 'a b' is not a DNS name" in errors
    odd.write_text(file_of("smime-public-mailbox").replace("2.23.140.1.5.1.3", "2.23.140.1.5.2.3"))
    assert profile_run.lint([odd], as_json=False) == 1
    assert f"{odd}: cabf-smime: ERROR cabf.smime." in capsys.readouterr().err
    good.write_text(CLIENT.replace('linter = "pkix"', 'linter = "none"'))
    assert profile_run.lint([good], as_json=False) == 0
    capsys.readouterr()
    assert profile_run.lint([bad], as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["files"][0]["profile"] is None
    (tmp_path / "home").mkdir()
    (tmp_path / "home/certmill.sqlite").write_bytes(b"this is no database" * 100)
    assert profile_run.lint([good], as_json=False) == 0
    assert "versions are not compared" in capsys.readouterr().err


def test_the_commands_are_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CERTMILL_HOME", str(tmp_path / "nowhere"))
    path = tmp_path / "a.toml"
    path.write_text(CLIENT)
    for arguments, code, said in (
        (["list"], 0, "tls-server@2"),
        (["lint", str(path)], 0, "is right"),
        (["show", "device"], 0, 'name = "device"'),
        (["diff", "tls-client", str(path)], 0, "no difference"),
        (["replay", "--since", "2026-01-01", str(path)], EXIT_CONFIG, "never initialised"),
    ):
        done = CliRunner().invoke(app, ["profile", *arguments])
        assert (done.exit_code, said in done.output) == (code, True), done.output


class Row:
    """A row of certificates, as it was issued under a profile that nobody recorded."""

    serial, client, profile, created_at, asked, renews = "5f", "ministry", "old@1", 0, None, None

    def __init__(self, key: PrivateKey, ca: SampleCa) -> None:
        san = x509.DNSName("a.example.la")
        self.csr = make_csr(None, key=key, names=(san,), extra=(x509.NameAttribute(NameOID.COMMON_NAME, "x"),))
        loose = dataclasses.replace(PROFILES["device"], subject=PROFILES["tls-client"].subject)
        self.der = ca.sign(sample_certificate(loose, full=True, ca=ca, key=key).prepared)


async def test_a_replay_words_what_changes(parts: Parts) -> None:
    now = utc_now()
    ca, key = sample_ca(now), ec.generate_private_key(ec.SECP256R1())
    row: Any = Row(key, ca)
    profile = dataclasses.replace(
        PROFILES["tls-client"],
        dns=NameRule(presence=Presence.OPTIONAL, example="a.la"),
        aia=frozenset({"ocsp"}),
        cdp=False,
        key_usage=dict.fromkeys(("rsa", "ec"), frozenset({"contentCommitment"})),
    )
    replay = Replay(
        profile=profile,
        issuer=ca.issuer,
        issuer_label="issuing",
        backdate=dt.timedelta(minutes=5),
        registry=parts.profiles,
        now=now,
    )
    found = replay.replay(row)
    assert found is not None
    changes = {one.what: (one.before, one.after) for one in found.changes}
    assert changes["extension KeyUsage"] == ("critical digitalSignature", "critical contentCommitment")
    assert changes["extension SubjectAlternativeName"][1] == "DNSName:a.example.la"
    assert changes["extension AuthorityInformationAccess"][1] == "http://pki.example.la/ocsp"
    assert changes["extension CRLDistributionPoints"][1] == ""
    assert changes["subject"][1] == "CN=x"
    with_cps = dataclasses.replace(
        profile, policies=(Policy(oid=x509.ObjectIdentifier("1.2.3"), cps="https://a.la/"),)
    )
    found = dataclasses.replace(replay, profile=with_cps).replay(row)
    assert found is not None
    assert ("extension CertificatePolicies", "1.2.3 https://a.la/") in [(c.what, c.after) for c in found.changes]
    late = dataclasses.replace(replay, now=now + dt.timedelta(days=366 * 40))
    found = late.replay(row)
    assert found is not None
    assert found.refusal.startswith("our own check: BR 6.3.2")


def test_samples_have_a_key_that_the_profile_takes() -> None:
    for keys in (KeyRule(rsa_bits=(2048, 2048)), KeyRule(ed25519=True), KeyRule(ec=("P-384",))):
        usage = {kind: frozenset({"digitalSignature"}) for kind in keys.kinds}
        profile = dataclasses.replace(PROFILES["ocsp-responder"], keys=keys, key_usage=usage)
        assert sample_findings(profile) == []
