"""What pkilint tells apart has another shape; what it does not has the same."""

import datetime as dt
import inspect
import re
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pkilint
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from pkix.csr import bounds_in_characters
from pkix.issuer import Issuer
from pkix.names import TbsDer
from pkix.shape import LIFETIMES_DAYS, RULES_CHANGE_AT, Shape, certificate_shape
from pkix.unsigned import assemble, capture_tbs
from server.linting.linters import lint
from tests.support.ca import NOW, TestCa

LINTERS = ("pkix", "cabf-tls", "cabf-smime", "etsi")
KEY = ec.generate_private_key(ec.SECP256R1()).public_key()
OTHER_KEY = ec.generate_private_key(ec.SECP256R1()).public_key()
RSA_KEY = rsa.generate_private_key(65537, 2048).public_key()
Attribute = tuple[x509.ObjectIdentifier, str]


def tbs(
    issuer: Issuer,
    subject: list[Attribute] | None = None,
    names: list[x509.GeneralName] | None = None,
    *,
    key: object = KEY,
    serial: int = 1 << 120,
    start: dt.datetime = NOW,
    lifetime_s: int = 100 * 86400,
    edit: Callable[[x509.CertificateBuilder], x509.CertificateBuilder] | None = None,
) -> TbsDer:
    attributes = [(NameOID.COMMON_NAME, "Director")] if subject is None else subject
    with bounds_in_characters():
        name = x509.Name([x509.NameAttribute(oid, value, _validate=False) for oid, value in attributes])
    builder = (
        x509.CertificateBuilder()
        .serial_number(serial)
        .issuer_name(issuer.certificate.subject)
        .subject_name(name)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(seconds=lifetime_s - 1))
        .public_key(key)  # type: ignore[arg-type]
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)  # type: ignore[arg-type]
        .add_extension(issuer.authority_key_identifier, critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not attributes)
    if edit is not None:
        builder = edit(builder)
    return capture_tbs(builder, issuer.public_key, issuer.algorithm)


def dns(*names: str) -> list[x509.GeneralName]:
    return [x509.DNSName(name) for name in names]


SAME: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "serial and key": ({}, {"serial": 3 << 119, "key": OTHER_KEY}),
    "another moment": ({}, {"start": NOW + dt.timedelta(days=3, seconds=7)}),
    "another host": ({"names": dns("www.example.la")}, {"names": dns("ftp.ministry.la")}),
    "more hosts": ({"names": dns("a.x.la", "b.x.la", "c.x.la")}, {"names": dns(*(f"{i}.x.la" for i in range(9)))}),
    "another person": (
        {"subject": [(NameOID.COUNTRY_NAME, "LA"), (NameOID.COMMON_NAME, "Somsak Vongsa")]},
        {"subject": [(NameOID.COUNTRY_NAME, "LA"), (NameOID.COMMON_NAME, "Khamla Phomvih")]},
    ),
    "another Lao name": (
        {"subject": [(NameOID.ORGANIZATION_NAME, "ກະຊວງການເງິນ")]},
        {"subject": [(NameOID.ORGANIZATION_NAME, "ກະຊວງສຶກສາທິ")]},
    ),
    "another registration number": (
        {"subject": [(NameOID.ORGANIZATION_IDENTIFIER, "NTRLA-0101-2023")]},
        {"subject": [(NameOID.ORGANIZATION_IDENTIFIER, "NTRLA-7788-2021")]},
    ),
    "another mailbox": (
        {"names": [x509.RFC822Name("somsak@mof.gov.la")]},
        {"names": [x509.RFC822Name("khamla@mof.gov.la")]},
    ),
    "another address": (
        {"names": [x509.IPAddress(ip_address("8.8.8.8"))]},
        {"names": [x509.IPAddress(ip_address("9.9.9.9"))]},
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_other_values_of_one_form_have_one_shape(ca: TestCa, case: str) -> None:
    one, other = (certificate_shape(tbs(ca.issuer, **values)) for values in SAME[case])  # type: ignore[arg-type]
    assert one == other
    assert one.recurs


def policy(builder: x509.CertificateBuilder, *, critical: bool = False) -> x509.CertificateBuilder:
    reserved = [
        x509.ObjectIdentifier(oid) for oid in ("2.23.140.1.2.2", "2.23.140.1.5.2.2")
    ]  # OV, organization S/MIME
    policies = x509.CertificatePolicies([x509.PolicyInformation(oid, None) for oid in reserved])
    return builder.add_extension(policies, critical=critical)


CN, ORG, C = NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.COUNTRY_NAME
APART: dict[str, dict[str, object]] = {
    "nothing": {},
    "no subject": {"subject": []},
    "other attribute": {"subject": [(ORG, "Director")]},
    "order": {"subject": [(CN, "Director"), (ORG, "Ministry")]},
    "other order": {"subject": [(ORG, "Ministry"), (CN, "Director")]},
    "equal values": {"subject": [(ORG, "Ministry"), (CN, "Ministry")]},
    "equal but for case": {"subject": [(ORG, "Ministry"), (CN, "ministry")]},
    "Lao": {"subject": [(CN, "ຫົວໜ້າ")]},
    "too long": {"subject": [(CN, "D" * 65)]},
    "space in front": {"subject": [(CN, " Director")]},
    "space behind": {"subject": [(CN, "Director ")]},
    "nothing but dots": {"subject": [(CN, "...")]},
    "HTML": {"subject": [(CN, "A &amp; B")]},
    "host in CN": {"subject": [(CN, "www.example.la")]},
    "mail in CN": {"subject": [(CN, "a@example.la")]},
    "country": {"subject": [(C, "LA"), (CN, "Director")]},
    "no country": {"subject": [(C, "QQ"), (CN, "Director")]},
    "identifier": {"subject": [(NameOID.ORGANIZATION_IDENTIFIER, "NTRLA-1")]},
    "other scheme": {"subject": [(NameOID.ORGANIZATION_IDENTIFIER, "VATLA-1")]},
    "other land": {"subject": [(NameOID.ORGANIZATION_IDENTIFIER, "NTRQQ-1")]},
    "another attribute": {"subject": [(NameOID.DOMAIN_COMPONENT, "la")]},
    "mail attribute": {"subject": [(NameOID.EMAIL_ADDRESS, "a@example.la")]},
    "mail attribute that is a name": {
        "subject": [(NameOID.EMAIL_ADDRESS, "a@example.la")],
        "names": [x509.RFC822Name("a@example.la")],
    },
    "LEI": {"subject": [(NameOID.ORGANIZATION_IDENTIFIER, "LEIXG-1")]},
    "no identifier": {"subject": [(NameOID.ORGANIZATION_IDENTIFIER, "x-1")]},
    "host": {"names": dns("www.example.la")},
    "host, no subject": {"names": dns("www.example.la"), "subject": []},
    "host, also in CN": {"names": dns("www.example.la"), "subject": [(CN, "www.example.la")]},
    "two hosts": {"names": dns("www.example.la", "ftp.example.la")},
    "host and wildcard": {"names": dns("www.example.la", "*.example.la")},
    "wildcard": {"names": dns("*.example.la")},
    "wildcard of a country": {"names": dns("*.la")},
    "another top level domain": {"names": dns("www.example.internal")},
    "one label": {"names": dns("localhost")},
    "punycode": {"names": dns("xn--q7ce6a.la")},
    "underscore": {"names": dns("a_b.example.la")},
    "reverse zone": {"names": dns("8.8.8.8.in-addr.arpa")},
    "mailbox": {"names": [x509.RFC822Name("a@example.la")]},
    "odd mailbox": {"names": [x509.RFC822Name("a..b@example.la")]},
    "capital mailbox": {"names": [x509.RFC822Name("a@Example.la")]},
    "URI": {"names": [x509.UniformResourceIdentifier("https://www.example.la/")]},
    "public address": {"names": [x509.IPAddress(ip_address("8.8.8.8"))]},
    "inner address": {"names": [x509.IPAddress(ip_address("10.0.0.1"))]},
    "IPv6": {"names": [x509.IPAddress(ip_address("2001:4860::1"))]},
    "RSA-2048": {"key": RSA_KEY},
    "RSA-3072": {"key": rsa.generate_private_key(65537, 3072).public_key()},
    "P-384": {"key": ec.generate_private_key(ec.SECP384R1()).public_key()},
    "Ed25519": {"key": ed25519.Ed25519PrivateKey.generate().public_key()},
    "short serial": {"serial": 5},
    "policy": {"edit": policy},
    "critical policy": {"edit": partial(policy, critical=True)},
    "199 days": {"lifetime_s": 199 * 86400},
    "a second more": {"lifetime_s": 199 * 86400 + 1},
    "200 days": {"lifetime_s": 200 * 86400},
    "200 days and a second": {"lifetime_s": 200 * 86400 + 1},
    "after 2027-03-15": {"start": dt.datetime(2027, 3, 15, tzinfo=dt.UTC)},
    "GeneralizedTime": {"start": dt.datetime(2049, 12, 1, tzinfo=dt.UTC)},
}


def test_what_a_linter_tells_apart_has_another_shape(ca: TestCa) -> None:
    shapes: dict[Shape, str] = {}
    for case, values in APART.items():
        shape = certificate_shape(tbs(ca.issuer, **values))  # type: ignore[arg-type]
        assert shape not in shapes, f"{case} has the shape of {shapes[shape]}"
        shapes[shape] = case
    before = certificate_shape(tbs(ca.issuer, start=dt.datetime(2027, 3, 14, 23, 59, 59, tzinfo=dt.UTC)))
    assert shapes[before] == "nothing"


def test_values_that_are_not_known_to_be_plain_do_not_recur(ca: TestCa) -> None:
    for case in ("HTML", "host in CN", "mail in CN", "LEI", "no identifier", "one label", "punycode", "URI",
                 "nothing but dots", "reverse zone", "odd mailbox"):  # fmt: skip
        assert not certificate_shape(tbs(ca.issuer, **APART[case])).recurs, case  # type: ignore[arg-type]


def test_what_nobody_issues_does_not_recur(ca: TestCa) -> None:
    """Another string type, and unique identifiers (RFC 5280 §4.1.2.8)."""
    utf8, bmp = bytes.fromhex("0c084469726563746f72"), bytes.fromhex("1e084469726563746f72")
    plain = tbs(ca.issuer)
    assert certificate_shape(plain).recurs
    assert not certificate_shape(TbsDer(plain.replace(utf8, bmp))).recurs
    key_identifier = plain.index(bytes.fromhex("0603551d0e"))
    start = plain.rindex(b"\xa3", key_identifier - 10, key_identifier)
    identifier = TbsDer(plain[:start] + b"\xa1" + plain[start + 1 :])
    assert not certificate_shape(identifier).recurs


_TEXTS = st.sampled_from(
    ["Director", "somsak", "Ministry of Finance", "ກະຊວງການເງິນ", "A & B", "-", " x", "www.example.la", "LA", "US", "XX",
     "a@example.la", "NTRLA-12", "VATLA-9", "PNOLA-77", "12345", "é", "(A)", "A.", "A.B", "8.8.8.8", "A,B"]
)  # fmt: skip
_TYPES = st.sampled_from([CN, ORG, NameOID.SERIAL_NUMBER, NameOID.ORGANIZATION_IDENTIFIER, NameOID.LOCALITY_NAME,
                          NameOID.GIVEN_NAME, NameOID.TITLE, NameOID.POSTAL_CODE])  # fmt: skip
_HOSTS = st.sampled_from(
    [
        "www.example.la",
        "example.la",
        "a.b.c.example.com",
        "h-1.gov.la",
        "x.internal",
        "co.uk",
        "*.gov.la",
        "1.la",
        "a.b",
    ]
)


@pytest.mark.timeout(120)
@settings(max_examples=60, deadline=None, database=None)
@given(
    subject=st.lists(st.tuples(_TYPES, _TEXTS), max_size=3, unique_by=lambda pair: pair[0]),
    hosts=st.lists(_HOSTS, max_size=2, unique=True),
    mails=st.lists(st.sampled_from(["a@example.la", "b.c@gov.la", "d@localhost"]), max_size=1),
)
def test_certificates_of_one_shape_have_the_same_findings(
    ca: TestCa, subject: list[Attribute], hosts: list[str], mails: list[str]
) -> None:
    # serialNumber is a PrintableString.
    subject = [(o, t) for o, t in subject if o != NameOID.SERIAL_NUMBER or re.fullmatch(r"[A-Za-z0-9 ,.()-]+", t)]
    names = [*dns(*hosts), *map(x509.RFC822Name, mails)]
    der = tbs(ca.issuer, subject, names, edit=policy)
    shape = certificate_shape(der)
    if shape.recurs:
        certificate = assemble(der, ca.issuer.algorithm, b"\x30\x06\x02\x01\x01\x02\x01\x01")
        found = tuple(sorted({(f.code, f.where) for kind in LINTERS for f in lint(certificate, kind)}))
        assert _FOUND.setdefault(shape, found) == found, (subject, hosts, mails)


_FOUND: dict[Shape, tuple[tuple[str, str], ...]] = {}


def test_every_date_and_lifetime_in_pkilint_is_a_limit_of_shapes() -> None:
    source = "".join(
        path.read_text()
        for path in Path(inspect.getfile(pkilint)).parent.rglob("*.py")
        if "rest" not in path.parts
    )
    dates = {dt.datetime(int(y), int(m), int(d), tzinfo=dt.UTC)
             for y, m, d in re.findall(r"datetime\(\s*(20\d\d),\s*(\d+),\s*(\d+)", source)}  # fmt: skip
    assert len(dates) >= 5
    assert dates <= set(RULES_CHANGE_AT)
    days = {int(n) for n in re.findall(r"(?:delta\(days=|create_validator\(|days = )(\d+)\b", source)}
    days |= {int(n) for n in re.findall(r"else (\d{3,4})$", source, re.MULTILINE)}
    assert {47, 398, 825, 1185} <= days <= set(LIFETIMES_DAYS)
