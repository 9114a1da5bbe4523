"""Profiles as text: what is wrong is named with its key and a remedy; what is right can be compared."""

import re

import pytest
from cryptography import x509

from pkix.errors import ProfileError
from pkix.profile_file import MAX_PROFILE_BYTES, parse_profile, plain
from server.issuance.samples import sample_findings

GOOD = """
name = "office"
version = 3
title = "An office"
family = "private"
lint = "shape"
linter = "pkix"

[validity]
days = 365

[keys]
rsa_bits = [2048, 4096]
ec = ["P-256"]

[key_usage]
rsa = ["digitalSignature"]
ec = ["digitalSignature"]

[extensions]
extended_key_usage = ["clientAuth", "1.2.3.4"]
policies = [{ oid = "1.3.6.1.4.1.99999.1", cps = "https://pki.example.la/cps" }]

[[subject]]
attribute = "C"
presence = "fixed"
value = "LA"

[[subject]]
attribute = "CN"
presence = "required"
from = "client"
pattern = "[A-Z].*"

[names]
uri = { presence = "optional", pattern = "https://.*" }
"""


def test_a_profile_says_what_its_file_says() -> None:
    profile = parse_profile(GOOD)
    assert profile.identity == "office@3"
    said = plain(profile)
    assert said["subject"] == ["C", "CN"]
    assert said["subject.CN.from"] == "client"
    assert said["subject.C.value"] == "LA"
    assert said["extensions.extended_key_usage"] == ["clientAuth", "1.2.3.4"]
    assert said["extensions.policies"] == ["1.3.6.1.4.1.99999.1 https://pki.example.la/cps"]
    assert said["names.uri.pattern"] == "https://.*"
    assert said["names.dns.presence"] == "forbidden"
    assert "names.dns.from" not in said
    assert parse_profile(GOOD + "# a comment\n") == profile


@pytest.mark.parametrize(
    ("old", "new", "key", "remedy"),
    [
        ('name = "office"', 'name = "Office"', "name", "a-z"),
        ("version = 3", "version = 0", "version", "count from 1"),
        ("version = 3", 'version = "3"', "version", "docs/profiles.md"),
        ("version = 3", "", "version", "write it"),
        ("version = 3", "version = 3\nvresion = 4", "vresion", "leave it out"),
        ("version = 3", "version = ", "file", "toml.io"),
        ("version = 3", "version = " + "9" * 5000, "file", "toml.io"),
        ("version = 3", "version = " + "[" * 10000, "file", "toml.io"),
        ("version = 3", "version = 3\n#" + "x" * MAX_PROFILE_BYTES, "file", "at most"),
        ('title = "An office"', 'title = " "', "title", "in a line"),
        ('family = "private"', 'family = "public"', "lint", 'lint = "every"'),
        ('family = "private"', 'family = "other"', "family", "docs/profiles.md"),
        ("days = 365", "days = 0", "validity.days", "days = 1"),
        ("days = 365", "days = 99999999999", "validity.days", "fewer"),
        ("days = 365", "days = 365\nmargin_days = 31", "validity.margin_days", "0 to 30"),
        ("days = 365", 'days = 365\nmaximum = "moon"', "validity.maximum", "docs/profiles.md"),
        ('rsa_bits = [2048, 4096]\nec = ["P-256"]', "", "keys", "rsa_bits"),
        ("rsa_bits = [2048, 4096]", "rsa_bits = [1024, 4096]", "keys.rsa_bits", "2048"),
        ('ec = ["P-256"]', 'ec = ["P-25519"]', "keys.ec", "P-384"),
        ('ec = ["P-256"]', 'ec = ["P-256"]\ned25519 = true', "key_usage.ed25519", "digitalSignature"),
        ('rsa = ["digitalSignature"]', "", "key_usage.rsa", "digitalSignature"),
        ('rsa = ["digitalSignature"]', 'rsa = ["signs"]', "key_usage.rsa", "keyEncipherment"),
        ('rsa = ["digitalSignature"]', 'rsa = ["keyAgreement"]', "key_usage.rsa", "leave it out"),
        ('\nec = ["digitalSignature"]', '\nec = ["keyEncipherment"]', "key_usage.ec", "leave it out"),
        ('rsa = ["digitalSignature"]', 'rsa = ["keyCertSign"]', "key_usage.rsa", "path_length"),
        ('rsa = ["digitalSignature"]', 'rsa = ["digitalSignature", "cRLSign"]', "key_usage.rsa", "path_length"),
        ('\nec = ["P-256"]', "", "key_usage.ec", "allow them"),
        ('["clientAuth", "1.2.3.4"]', "[]", "extensions.extended_key_usage", "clientAuth"),
        ('"1.2.3.4"', '"timeStamping"', "extensions.extended_key_usage", "leave the others out"),
        ('"1.2.3.4"', '"everything"', "extensions.extended_key_usage", "dotted OID"),
        ('"1.2.3.4"', '"clientAuth"', "extensions.extended_key_usage", "leave one out"),
        ('"1.2.3.4"', '"OCSPSigning"', "extensions.extended_key_usage", "internal"),
        ('"1.2.3.4"', '"2.5.29.37.0"', "extensions.extended_key_usage", "what the key is for"),
        ("1.3.6.1.4.1.99999.1", "9.9", "extensions.policies[0].oid", "dotted OID"),
        ("https://pki.example.la/cps", "ftp://pki", "extensions.policies[0].cps", "https"),
        ("[extensions]", "[extensions]\ncrl_shards = 2", "extensions.crl_shards", "use 0"),
        ("[extensions]", "[extensions]\nocsp_nocheck = true", "extensions.ocsp_nocheck", "leave it out"),
        ("[extensions]", "[extensions]\npath_length = 0", "key_usage.rsa", "keyCertSign"),
        ("[extensions]", "[extensions]\npath_length = -1", "extensions.path_length", "use 0"),
        ("[extensions]", '[extensions]\naia = ["ldap"]', "extensions.aia[0]", "docs/profiles.md"),
        ('attribute = "CN"', 'attribute = "cn"', "subject[1].attribute", "CN"),
        ('presence = "required"', 'presence = "forbidden"', "subject[1].presence", "leave its"),
        ('presence = "required"', 'presence = "fixed"', "subject[1].presence", "value"),
        ('value = "LA"', 'value = "la"', "subject[0].value", "ISO 3166"),
        ('value = "LA"', 'value = "LA"\ncount = 2', "subject[0].count", "count"),
        ('from = "client"', 'from = "client"\nvalue = "x"', "subject[1].value", "fixed"),
        ('from = "client"', 'from = "client"\ncount = 2', "subject[1].count", "OU"),
        ('from = "client"', 'from = "client"\nmax_length = 65', "subject[1].max_length", "1 to 64"),
        ('from = "client"', 'from = "client"\nexample = "sample"', "subject[1].example", "pattern"),
        ('from = "client"', 'from = "post"', "subject[1].from", "docs/profiles.md"),
        ('pattern = "[A-Z].*"', 'pattern = "[A-Z"', "subject[1].pattern", "re module"),
        ('pattern = "https://.*"', 'pattern = "ftp://.*"', "names.uri.pattern", "example"),
        ('presence = "optional", pattern', 'presence = "fixed", pattern', "names.uri.presence", "required"),
        ('presence = "optional", pattern', 'count = 101, presence = "optional", pattern', "names.uri.count", "100"),
        ('presence = "optional", pattern', 'wildcard = true, presence = "optional", pattern', "names.uri.wildcard", "out"),
        ("[names]", "[names]\ncommon_name_is_a_name = true", "names.common_name_is_a_name", "allow dns"),
        ("[names]", '[any_of]\nsubject = [["O", "CN"]]\n[names]', "any_of.subject", "allow it"),
        ("[names]", '[any_of]\nnames = [["dns", "uri"]]\n[names]', "any_of.names", "allow it"),
        ("[names]", "[any_of]\nnames = [[]]\n[names]", "any_of.names", "allow it"),
    ],
)  # fmt: skip
def test_each_mistake_is_named_with_its_key_and_a_remedy(old: str, new: str, key: str, remedy: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(ProfileError, match=re.escape(remedy)) as caught:
        parse_profile(GOOD.replace(old, new))
    assert caught.value.key == key
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_an_attribute_stands_once_and_something_is_always_there() -> None:
    twice = GOOD.replace("[names]", '[[subject]]\nattribute = "CN"\npresence = "optional"\n\n[names]')
    with pytest.raises(ProfileError, match="stands twice"):
        parse_profile(twice)
    nothing = GOOD.partition("[[subject]]")[0] + '[names]\nuri = { presence = "optional" }\n'
    with pytest.raises(ProfileError, match="without any name"):
        parse_profile(nothing)
    parse_profile(nothing.replace("optional", "required"))
    parse_profile(nothing + '[any_of]\nnames = [["uri"]]\n')


def test_a_ca_and_an_ed25519_key_are_not_for_clients() -> None:
    ca = GOOD.replace('["digitalSignature"]', '["keyCertSign"]').replace(
        "[extensions]", "[extensions]\npath_length = 0"
    )
    with pytest.raises(ProfileError, match="not for clients"):
        parse_profile(ca)
    ca = ca.replace("version = 3", "version = 3\ninternal = true")
    assert parse_profile(ca).path_length == 0
    with pytest.raises(ProfileError, match=r"§4\.2\.1\.2"):
        parse_profile(ca.replace("path_length = 0", "path_length = 0\nsubject_key_identifier = false"))
    ed25519 = GOOD.replace('ec = ["P-256"]', 'ec = ["P-256"]\ned25519 = true')
    ed25519 = ed25519.replace("[extensions]", 'ed25519 = ["digitalSignature"]\n[extensions]')
    with pytest.raises(ProfileError, match=r"keys\.ed25519"):
        parse_profile(ed25519)


def test_public_tls_has_its_maximum_by_date() -> None:
    public = (
        GOOD.replace('"private"', '"public"').replace('"shape"', '"every"').replace('"clientAuth"', '"serverAuth"')
    )
    with pytest.raises(ProfileError, match="cabf-tls"):
        parse_profile(public)
    public = public.replace("days = 365", 'days = 365\nmaximum = "cabf-tls"')
    parse_profile(public.replace('linter = "pkix"', 'linter = "cabf-tls"'))


@pytest.mark.parametrize(("usage", "linter"), [("serverAuth", "cabf-tls"), ("emailProtection", "cabf-smime")])
def test_public_trust_is_linted_by_its_own_rules(usage: str, linter: str) -> None:
    public = (
        GOOD.replace('"private"', '"public"').replace('"shape"', '"every"').replace('"clientAuth"', f'"{usage}"')
    )
    public = public.replace("days = 365", 'days = 365\nmaximum = "cabf-tls"')
    with pytest.raises(ProfileError, match=f'linter = "{linter}"'):
        parse_profile(public)
    assert parse_profile(public.replace('linter = "pkix"', f'linter = "{linter}"')).linter == linter


def test_a_policy_stands_once() -> None:
    with pytest.raises(ProfileError, match="policy stands twice"):
        parse_profile(GOOD.replace("policies = [", 'policies = [{ oid = "1.3.6.1.4.1.99999.1" }, '))


def test_time_stamping_is_critical() -> None:
    profile = parse_profile(GOOD.replace('["clientAuth", "1.2.3.4"]', '["timeStamping"]'))
    assert [critical for value, critical in profile.shared if isinstance(value, x509.ExtendedKeyUsage)] == [True]
    assert sample_findings(profile) == []
