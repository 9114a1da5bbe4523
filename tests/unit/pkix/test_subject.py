import ipaddress

import pytest
from cryptography import x509
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID

from pkix.csr import bounds_in_characters, parse_csr
from pkix.errors import ProfileViolation
from pkix.profile_rules import MAX_NAMES
from pkix.subject import CertificateNames, select_names
from pkix.unsigned import tlv
from tests.support.ca import make_csr
from tests.support.profiles import TLS_CLIENT, TLS_SERVER

LAO = "ກະຊວງການເງິນ"
KELVIN = "\u212a"  # a k in lower case


def names_of(
    common_name: str | None,
    *names: x509.GeneralName,
    extra: tuple[x509.NameAttribute[str], ...] = (),
    server: bool = True,
) -> CertificateNames:
    request = parse_csr(make_csr(common_name, names=names, extra=extra))
    return select_names(request, TLS_SERVER if server else TLS_CLIENT)


def test_the_common_name_stands_in_for_a_missing_san() -> None:
    assert names_of("WWW.Example.gov").dns_names == ("www.example.gov",)
    assert names_of("192.0.2.7").ip_addresses == (ipaddress.ip_address("192.0.2.7"),)


def test_names_are_lower_case_and_not_repeated() -> None:
    chosen = names_of(None, x509.DNSName("A.example.gov"), x509.DNSName("a.example.gov"), x509.DNSName("*.b.gov"))
    assert chosen.dns_names == ("a.example.gov", "*.b.gov")
    assert not chosen.subject.rdns


@pytest.mark.parametrize(
    "name",
    [
        "-a.gov",
        "a-.gov",
        "a..gov",
        "a.*.gov",
        "a b.gov",
        "a_b.gov",
        "x" * 64 + ".gov",
        ".".join(["a" * 60] * 5),
        "",
        "192.0.2.7",
        "a.123",
        "*.7",
        "42",
        "a.0x7F",
        "a.0x",
    ],
)
def test_what_is_no_dns_name_is_refused(name: str) -> None:
    with pytest.raises(ProfileViolation, match="DNS name"):
        names_of(None, x509.DNSName(name))


def test_numbers_are_refused_at_the_end_of_a_dns_name_only() -> None:
    assert names_of(None, x509.DNSName("7.0x7f.7a.gov"), x509.DNSName("3.c0x")).dns_names[0] == "7.0x7f.7a.gov"
    with pytest.raises(ProfileViolation, match="DNS name"):
        names_of("www.example.42")


def test_a_common_name_that_only_looks_like_a_name_is_refused() -> None:
    for names in ((), (x509.DNSName("www.k.gov"),)):
        with pytest.raises(ProfileViolation):
            names_of(f"www.{KELVIN}.gov", *names)
        assert names_of("www.K.gov", *names).dns_names == ("www.k.gov",)


@pytest.mark.parametrize("name", ["2001:0db8::7", "fe80::1%www.bank.gov", "::ffff:192.0.2.7%x"])
def test_a_common_name_that_is_an_address_is_written_as_one(name: str) -> None:
    with pytest.raises(ProfileViolation, match="not written as IP addresses are"):
        names_of(name)
    assert names_of("2001:DB8::7").ip_addresses == (ipaddress.ip_address("2001:db8::7"),)


def test_a_common_name_outside_the_san_is_refused() -> None:
    with pytest.raises(ProfileViolation, match="common name"):
        names_of("other.example.gov", x509.DNSName("a.example.gov"))


def test_no_name_at_all_is_refused() -> None:
    with pytest.raises(ProfileViolation, match="names no host"):
        names_of(None)


def test_too_many_names_are_refused() -> None:
    with pytest.raises(ProfileViolation, match=str(MAX_NAMES)):
        names_of(None, *(x509.DNSName(f"h{n}.gov") for n in range(MAX_NAMES + 1)))


def test_names_of_other_kinds_are_refused() -> None:
    with pytest.raises(ProfileViolation, match="other than DNS"):
        names_of("a.gov", x509.DNSName("a.gov"), x509.RegisteredID(NameOID.COMMON_NAME))
    for name in (x509.RFC822Name("a@a.gov"), x509.UniformResourceIdentifier("https://a.gov/")):
        with pytest.raises(ProfileViolation, match=r"has no (e-mail addresses|URIs), but the request asks"):
            names_of("a.gov", x509.DNSName("a.gov"), name)


def test_a_client_certificate_keeps_a_lao_subject() -> None:
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, LAO)
    chosen = names_of(
        "e-licence", extra=(x509.NameAttribute(NameOID.COUNTRY_NAME, "LA"), organization), server=False
    )
    assert [a.value for a in chosen.subject] == ["LA", LAO, "e-licence"]
    assert not chosen.dns_names


def test_a_client_certificate_has_no_san_and_needs_a_common_name() -> None:
    with pytest.raises(ProfileViolation, match="has no DNS names"):
        names_of("x", x509.DNSName("a.gov"), server=False)
    with pytest.raises(ProfileViolation, match="needs CN in the subject"):
        names_of(None, server=False)


@pytest.mark.parametrize(
    "attribute",
    [
        x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@b.gov"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "a\x00b"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "   "),
        x509.NameAttribute(NameOID.LOCALITY_NAME, "x" * 129, _validate=False),
        x509.NameAttribute(NameOID.COUNTRY_NAME, "la"),
    ],
)
def test_what_a_subject_may_not_hold_is_refused(attribute: x509.NameAttribute[str]) -> None:
    with pytest.raises(ProfileViolation):
        names_of("x", extra=(attribute,), server=False)


def characters(value: str, oid: x509.ObjectIdentifier = NameOID.COMMON_NAME) -> x509.NameAttribute[str]:
    with bounds_in_characters():
        return x509.NameAttribute(oid, value, _validate=False)


def test_bounds_count_characters_not_octets() -> None:
    chosen = names_of(None, extra=(characters("ກ" * 64),), server=False)
    value = tlv(0x0C, "ກ".encode() * 64)  # UTF8String
    expected = tlv(0x30, tlv(0x31, tlv(0x30, bytes.fromhex("0603550403") + value)))
    assert chosen.subject.public_bytes() == expected
    for attribute in (characters("ກ" * 65), characters("ກ" * 65, NameOID.ORGANIZATION_NAME)):
        with pytest.raises(ProfileViolation, match="too long"):
            names_of(None, extra=(attribute,), server=False)


@pytest.mark.parametrize("value", ["ກ", "a@b", "a_b", "a*b"])
def test_a_serial_number_of_other_characters_is_refused(value: str) -> None:
    attribute = x509.NameAttribute(NameOID.SERIAL_NUMBER, value, _ASN1Type.UTF8String)
    with pytest.raises(ProfileViolation, match="serialNumber is not a PrintableString"):
        names_of("x", extra=(attribute,), server=False)


def test_a_serial_number_in_utf8_becomes_a_printable_string() -> None:
    attribute = x509.NameAttribute(NameOID.SERIAL_NUMBER, "LA-7 (a)", _ASN1Type.UTF8String)
    chosen = names_of("x", extra=(attribute,), server=False)
    assert tlv(0x13, b"LA-7 (a)") in chosen.subject.public_bytes()


@pytest.mark.parametrize(
    ("oid", "at_most"),
    [
        (NameOID.COUNTRY_NAME, 1),
        (NameOID.STATE_OR_PROVINCE_NAME, 1),
        (NameOID.LOCALITY_NAME, 1),
        (NameOID.ORGANIZATION_NAME, 1),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, 4),
        (NameOID.SERIAL_NUMBER, 1),
    ],
)
def test_a_subject_is_bounded(oid: x509.ObjectIdentifier, at_most: int) -> None:
    attribute = x509.NameAttribute(oid, "LA")
    assert len(names_of("x", extra=(attribute,) * at_most, server=False).subject.rdns) == at_most + 1
    with pytest.raises(ProfileViolation, match=f"stands {at_most + 1} times"):
        names_of("x", extra=(attribute,) * (at_most + 1), server=False)


def test_there_is_one_common_name() -> None:
    with pytest.raises(ProfileViolation, match="CN stands 2 times"):
        names_of("a.gov", x509.DNSName("a.gov"), extra=(x509.NameAttribute(NameOID.COMMON_NAME, "a.gov"),))
