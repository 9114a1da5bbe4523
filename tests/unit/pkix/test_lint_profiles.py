"""The structural check finds, on the bytes, whatever a profile does not say."""

import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pkix import lint
from pkix.certificate import PreparedCertificate
from pkix.errors import LintError
from pkix.lint import lint_certificate
from pkix.names import TbsDer
from pkix.profile import Policy, Profile
from pkix.profile_rules import KeyRule, NameRule, Presence
from server.issuance.samples import SampleCa, sample_ca, sample_certificate
from tests.support.ca import NOW
from tests.support.profiles import BUILT_IN


@pytest.fixture(scope="module")
def ca() -> SampleCa:
    return sample_ca(NOW)


@pytest.mark.parametrize("profile", BUILT_IN.values(), ids=lambda p: p.name)
@pytest.mark.parametrize("full", [False, True])
def test_samples_of_every_profile_are_right(ca: SampleCa, profile: Profile, full: bool) -> None:
    sample = sample_certificate(profile, full=full, ca=ca, now=NOW)
    lint_certificate(sample.prepared, sample.issuer, now=NOW)


def rewritten(ca: SampleCa, name: str, profile: Profile) -> PreparedCertificate:
    """Make a certificate under one profile that says that it is under the built-in one of that name."""
    prepared = sample_certificate(profile, full=True, ca=ca, now=NOW).prepared
    return replace(prepared, profile=BUILT_IN[name])


def with_rule(profile: Profile, attribute: str, **changes: object) -> Profile:
    subject = tuple(
        replace(rule, **changes) if rule.kind.name == attribute else rule  # type: ignore[arg-type]
        for rule in profile.subject
    )
    return replace(profile, subject=subject)


COMPANY, SERVER, RESPONDER = BUILT_IN["company"], BUILT_IN["tls-server"], BUILT_IN["ocsp-responder"]
LOOSE = with_rule(COMPANY, "organizationIdentifier", pattern=None, example="7")


@pytest.mark.parametrize(
    ("name", "made_under", "clause"),
    [
        ("company", replace(COMPANY, subject=COMPANY.subject[::-1]), "7.1.4.2"),
        ("company", replace(COMPANY, subject=COMPANY.subject[1:]), "lacks a required"),
        ("company", LOOSE, "form that the profile wants"),
        ("company", with_rule(COMPANY, "C", presence=Presence.FIXED, value="LA"), ""),
        ("tls-server-public", replace(BUILT_IN["tls-server-public"], subject=BUILT_IN["tls-server-public"].subject[::3], any_subject=()), "of a group"),
        ("tls-server-public-dv", replace(BUILT_IN["tls-server-public"], policies=()), "2.5.4.6 is not allowed"),
        ("company", replace(COMPANY, key_usage={"rsa": frozenset({"contentCommitment"}), "ec": frozenset({"contentCommitment"})}), "7.1.2.7.11"),
        ("company", replace(COMPANY, extended_key_usage=(ExtendedKeyUsageOID.CLIENT_AUTH,)), "7.1.2.7.10"),
        ("company", replace(COMPANY, policies=()), "7.1.2.7.9"),
        ("company", replace(COMPANY, policies=(Policy(oid=COMPANY.policies[0].oid, cps="https://a.la"),)), "7.1.2.7.9"),
        ("tls-client", replace(BUILT_IN["tls-client"], policies=COMPANY.policies), "unexpected extensions"),
        ("company", replace(COMPANY, aia=frozenset({"ocsp"})), "7.1.2.7.7"),
        ("company", replace(COMPANY, aia=frozenset()), "7.1.2.7.7"),
        ("company", replace(COMPANY, cdp=False), "7.1.2.11.2"),
        ("company", replace(COMPANY, subject_key_identifier=False), "4.2.1.2"),
        ("company", replace(COMPANY, keys=KeyRule(ec=("P-256",), rsa_bits=(2048, 4096))), ""),
        ("ocsp-responder", replace(RESPONDER, ocsp_nocheck=False), "4.2.2.2.1"),
        ("subordinate-ca", replace(BUILT_IN["subordinate-ca"], path_length=3), "4.2.1.9"),
        ("operator", replace(BUILT_IN["operator"], email=NameRule()), ""),
        ("smime", replace(BUILT_IN["smime"], email=replace(BUILT_IN["smime"].email, presence=Presence.OPTIONAL)), ""),
        ("operator", replace(BUILT_IN["operator"], uri=NameRule(presence=Presence.OPTIONAL, example="urn:x:1")), "too many uri"),
        ("device", replace(BUILT_IN["device"], uri=NameRule(presence=Presence.OPTIONAL, example="urn:x:1")), "uri name of another form"),
        ("device", replace(BUILT_IN["device"], dns=NameRule(presence=Presence.OPTIONAL, wildcard=True, example="*.a.la")), "dns name of another form"),
        ("smime", replace(BUILT_IN["smime"], email=NameRule()), "no email name"),
        ("tls-server", replace(with_rule(SERVER, "CN", presence=Presence.REQUIRED), dns=NameRule(), ip=NameRule(), common_name_is_a_name=False, any_names=()), "of a group"),
    ],
)  # fmt: skip
def test_a_certificate_of_another_content_is_found(
    ca: SampleCa, name: str, made_under: Profile, clause: str
) -> None:
    prepared = rewritten(ca, name, made_under)
    if not clause:  # a difference in what may be asked is none in what came out
        lint_certificate(prepared, ca.issuer, now=NOW)
        return
    with pytest.raises(LintError) as caught:
        lint_certificate(prepared, ca.issuer, now=NOW)
    assert clause in str(caught.value)


def change(prepared: PreparedCertificate, **changes: Any) -> PreparedCertificate:
    return replace(prepared, names=replace(prepared.names, **changes))


@pytest.mark.parametrize(
    ("profile", "altered", "clause"),
    [
        ("company", lambda p: replace(p, spki_sha256=b"\0" * 32), "not the key that was asked for"),
        ("company", lambda p: replace(p, not_after=p.not_after - dt.timedelta(days=1)), "another validity"),
        ("company", lambda p: replace(p, not_before=p.not_after + dt.timedelta(days=1), not_after=p.not_after), "another validity"),
        ("company", lambda p: change(p, subject=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])), "lacks a required"),
        ("tls-client", lambda p: change(p, subject=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])), "another subject"),
        ("tls-client", lambda p: change(p, subject=x509.Name([x509.NameAttribute(NameOID.USER_ID, "x")])), "is not allowed"),
        ("tls-client", lambda p: change(p, subject=x509.Name([*[x509.NameAttribute(NameOID.COMMON_NAME, "x")] * 2])), "too often"),
        ("tls-client", lambda p: change(p, dns_names=("a.la",)), "not the subject alternative names"),
        ("device", lambda p: change(p, dns_names=("a.la",)), "not the subject alternative names"),
        ("device", lambda p: change(p, dns_names=(), ip_addresses=(), uris=()), "nobody chose"),
        ("company", lambda p: replace(p, tbs=TbsDer(p.tbs.replace(b"NTRLA-01", b"NTRLA-02"))), "another subject"),
        ("company", lambda p: replace(p, tbs=TbsDer(p.tbs.replace(b"\x02\x01\x02\x02\x10", b"\x02\x01\x01\x02\x10"))), "4.1"),
    ],
)  # fmt: skip
def test_other_bytes_than_were_meant_are_found(
    ca: SampleCa, profile: str, altered: Callable[[PreparedCertificate], PreparedCertificate], clause: str
) -> None:
    prepared = altered(sample_certificate(BUILT_IN[profile], full=True, ca=ca, now=NOW).prepared)
    with pytest.raises(LintError) as caught:
        lint_certificate(prepared, ca.issuer, now=NOW)
    assert clause in str(caught.value)


def test_a_key_that_the_profile_does_not_allow_is_found(ca: SampleCa) -> None:
    p521 = replace(
        BUILT_IN["tls-server-public"],
        keys=KeyRule(ec=("P-521",)),
        key_usage={"ec": frozenset({"digitalSignature"})},
    )
    prepared = replace(sample_certificate(p521, ca=ca, now=NOW).prepared, profile=BUILT_IN["tls-server-public"])
    with pytest.raises(LintError, match=r"6\.1\.5"):
        lint_certificate(prepared, ca.issuer, now=NOW)


def test_a_string_of_another_type_is_found(ca: SampleCa) -> None:
    """The same letters, and another type: readers take both, the rules do not."""
    prepared = sample_certificate(BUILT_IN["tls-client"], ca=ca, now=NOW).prepared
    tbs = prepared.tbs.replace(b"\x0c\x09e-licence", b"\x13\x09e-licence")
    assert tbs != prepared.tbs
    with pytest.raises(LintError, match="strings of another type"):
        lint_certificate(replace(prepared, tbs=TbsDer(tbs)), ca.issuer, now=NOW)


def test_fixed_values_and_key_usages_of_agreement_are_compared(ca: SampleCa) -> None:
    company = with_rule(COMPANY, "C", presence=Presence.FIXED, value="LA", example="LA")
    german = with_rule(COMPANY, "C", presence=Presence.FIXED, value="DE", example="DE")
    prepared = replace(sample_certificate(german, ca=ca, now=NOW).prepared, profile=company)
    with pytest.raises(LintError, match="what the profile fixes"):
        lint_certificate(prepared, ca.issuer, now=NOW)
    flags = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_cert_sign",
            "crl_sign",
        ),
        False,
    )
    only = x509.KeyUsage(**flags, key_agreement=True, encipher_only=True, decipher_only=False)
    assert lint._usages(only) == frozenset()


def test_times_after_2049_are_of_the_other_type(ca: SampleCa) -> None:
    far = dt.datetime(2049, 12, 1, tzinfo=dt.UTC)
    late = sample_ca(far)
    prepared = sample_certificate(BUILT_IN["tls-server"], ca=late, now=far).prepared
    assert prepared.tbs.find(b"\x18\x0f2050") > 0
    lint_certificate(prepared, late.issuer, now=far)


def test_names_and_subject_are_not_both_missing(ca: SampleCa) -> None:
    prepared = sample_certificate(BUILT_IN["tls-client"], ca=ca, now=NOW).prepared
    nobody = replace(prepared, names=replace(prepared.names, subject=x509.Name([])))
    with pytest.raises(LintError, match="neither subject nor alternative names"):
        lint._lint_alternative_names(None, nobody)


def test_a_misplaced_criticality_is_found(ca: SampleCa) -> None:
    prepared = sample_certificate(BUILT_IN["tls-server"], ca=ca, now=NOW).prepared
    names = x509.SubjectAlternativeName([x509.DNSName(name) for name in prepared.names.dns_names])
    lint._lint_alternative_names((True, names), prepared)
    with pytest.raises(LintError, match="criticality"):
        lint._lint_alternative_names((False, names), prepared)


def test_the_key_of_the_ca_is_no_subjects(ca: SampleCa) -> None:
    prepared = sample_certificate(BUILT_IN["tls-server"], ca=ca, now=NOW, key=ca.key).prepared
    with pytest.raises(LintError, match=r"6\.1\.1\.3"):
        lint_certificate(prepared, ca.issuer, now=NOW)
