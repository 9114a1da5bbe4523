import ipaddress

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from pkix.csr import parse_csr
from pkix.errors import ProfileViolation
from pkix.profile import TLS_CLIENT, TLS_SERVER
from pkix.subject import MAX_NAMES, CertificateNames, select_names
from tests.support.ca import make_csr

LAO = "ກະຊວງການເງິນ"


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
    ],
)
def test_what_is_no_dns_name_is_refused(name: str) -> None:
    with pytest.raises(ProfileViolation, match="DNS name"):
        names_of(None, x509.DNSName(name))


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
        names_of("a.gov", x509.DNSName("a.gov"), x509.RFC822Name("a@a.gov"))


def test_a_client_certificate_keeps_a_lao_subject() -> None:
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, LAO)
    chosen = names_of(
        "e-licence", extra=(x509.NameAttribute(NameOID.COUNTRY_NAME, "LA"), organization), server=False
    )
    assert [a.value for a in chosen.subject] == ["LA", LAO, "e-licence"]
    assert not chosen.dns_names


def test_a_client_certificate_has_no_san_and_needs_a_common_name() -> None:
    with pytest.raises(ProfileViolation, match="no subject alternative names"):
        names_of("x", x509.DNSName("a.gov"), server=False)
    with pytest.raises(ProfileViolation, match="needs a common name"):
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
