"""What a client's limits hold of a certificate's names."""

import ipaddress

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from pkix.subject import CertificateNames
from server.auth.clients import CERTMILL, Client
from server.auth.limits import Limits
from server.errors import InvalidRequest, NotPermitted

TAX = Client(
    name="tax",
    profiles=("tls-server",),
    names=("tax.gov", "192.0.2.7", "2001:db8::7"),
    organizations=("ກົມສ່ວຍສາອາກອນ", "Tax Département"),
    identifiers=("NTRLA-01-*", "4711"),
)
NOBODY = Client(name="nobody", profiles=(), names=())
CN, ORG, DC = NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.DOMAIN_COMPONENT


def names(
    *subject: tuple[x509.ObjectIdentifier, str],
    dns: str | None = None,
    ip: str | None = None,
    email: str | None = None,
    uri: str | None = None,
) -> CertificateNames:
    return CertificateNames(
        subject=x509.Name([x509.NameAttribute(oid, value) for oid, value in subject]),
        dns_names=() if dns is None else (dns,),
        ip_addresses=() if ip is None else (ipaddress.ip_address(ip),),
        emails=() if email is None else (email,),
        uris=() if uri is None else (uri,),
    )


@pytest.mark.parametrize(
    "asked",
    [
        names(dns="tax.gov"),
        names(dns="*.tax.gov"),
        names(dns="a.b.tax.gov"),
        names(ip="192.0.2.7"),
        names(ip="2001:0db8:0::7"),
        names(email="Anna@TAX.gov"),
        names(email="anna@post.tax.gov"),
        names(uri="https://api.tax.gov:8443/x?y#z"),
        names(uri="https://[2001:db8::7]/"),
        names((ORG, "tax  DE\u0301PARTEMENT")),
        names((ORG, "ກົມສ່ວຍສາອາກອນ")),
        names((NameOID.ORGANIZATION_IDENTIFIER, "NTRLA-01-0001")),
        names((NameOID.SERIAL_NUMBER, "4711")),
        names((DC, "gov"), (DC, "tax")),
        names((CN, "Khamla Sample")),
        names((CN, "licence system")),
        *(
            names((CN, text))
            for text in (
                *("ທ.ຄຳລ້າ", "ສ.ປ.ປ.ລາວ", "ບໍລິສັດ ຕົວຢ່າງ Co. Ltd.", "Post @ Home", "A/B", "localhost"),
                *("https://tax.gov/7", "tax.gov:443", "*.tax.gov:443", "Anna (anna@tax.gov)", "ｔａｘ．gov"),
            )
        ),
        names((CN, "WWW.tax.gov"), (NameOID.ORGANIZATIONAL_UNIT_NAME, "Customs"), (NameOID.COUNTRY_NAME, "LA")),
    ],
)
def test_own_names_are_held(asked: CertificateNames) -> None:
    TAX.require_names(asked)
    CERTMILL.require_names(asked)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "https://customs.gov/",
            "customs.gov:443",
            "*.customs.gov:443",
            "customs.gov/tax.gov",
            "https://tax.gov@x.gov/",
        ),
        *(
            "anna@customs.gov (tax.gov)",
            "Anna <anna@customs.gov>",
            "anna@tax.gov, bob@customs.gov",
            "a b@customs.gov",
        ),
        *(
            "ｃｕｓｔｏｍｓ．gov",
            "www.customs\u3002gov",
            "anna＠customs.gov",
            "customѕ.gov",
            "tаx.gov",
            "ພາສີ.gov",
            "see http://x",
        ),
    ],
)
def test_a_common_name_that_reads_as_a_name_of_others_is_not_held(text: str) -> None:
    with pytest.raises(NotPermitted) as caught:
        TAX.require_names(names((CN, text)))
    assert caught.value.limit == "names"
    CERTMILL.require_names(names((CN, text)))


@pytest.mark.parametrize(
    ("asked", "limit"),
    [
        (names(dns="notax.gov"), "names"),
        (names(dns="*.gov"), "names"),
        (names(ip="192.0.2.70"), "names"),
        (names(email="anna@customs.gov"), "names"),
        (names(email="anna@tax.gov@customs.gov"), "names"),
        (names(email="no domain"), "names"),
        (names(uri="https://customs.gov/tax.gov"), "names"),
        (names(uri="https://tax.gov@customs.gov/"), "names"),
        (names(uri="https://customs.gov\\@tax.gov/"), "names"),
        (names(uri="urn:tax.gov"), "names"),
        (names((ORG, "Customs")), "organizations"),
        (names((ORG, "Tax Département of Customs")), "organizations"),
        (names((ORG, "ກົມສ່ວຍສາອາກອ")), "organizations"),
        (names((NameOID.ORGANIZATION_IDENTIFIER, "NTRLA-02-0001")), "identifiers"),
        (names((NameOID.SERIAL_NUMBER, "47110")), "identifiers"),
        (names((NameOID.USER_ID, "anna")), "identifiers"),
        (names((NameOID.EMAIL_ADDRESS, "anna@customs.gov")), "names"),
        (names((CN, "www.customs.gov")), "names"),
        (names((CN, "anna@customs.gov")), "names"),
        (names((CN, "203.0.113.1")), "names"),
        (names((CN, "2001:db8::9")), "names"),
        (names((DC, "gov"), (DC, "customs")), "names"),
    ],
)
def test_names_of_others_are_refused_by_the_limit_that_says_so(asked: CertificateNames, limit: str) -> None:
    for client in (TAX, NOBODY):
        with pytest.raises(NotPermitted, match=f"its {limit} do not hold it") as refused:
            client.require_names(asked)
        assert refused.value.limit == limit
    assert refused.value.remedy.startswith("it has: none;")
    CERTMILL.require_names(asked)


def test_limits_are_parsed_to_what_is_compared() -> None:
    given = Limits(
        profiles=["tls-server", "tls-server"],
        names=["2001:DB8::7", "tax.gov", ""],
        organizations=["Tax De\u0301partement"],
        identifiers=["NTRLA-01-*", "*"],
        quota="unlimited",
        rate="60",
    )
    assert given.columns(["tls-server"]) == {
        "profiles": ["tls-server"],
        "names": ["2001:db8::7", "tax.gov"],
        "organizations": ["Tax Département"],
        "identifiers": ["*", "NTRLA-01-*"],
        "yearly_quota": None,
        "rate_per_minute": 60,
    }
    assert Limits(names=[""]).columns(["tls-server"]) == {"names": []}
    assert Limits().columns(["tls-server"]) == {}


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        (Limits(profiles=["root"]), "--profile"),
        (Limits(names=["1.2.3"]), "--name"),
        (Limits(names=["a..b"]), "--name"),
        (Limits(organizations=["Tax*"]), "--organization"),
        (Limits(organizations=["x" * 65]), "--organization"),
        (Limits(identifiers=["*-1"]), "--identifier"),
        (Limits(identifiers=[" 1"]), "--identifier"),
        (Limits(quota="-1"), "--quota"),
        (Limits(quota="1e3"), "--quota"),
        (Limits(rate="0"), "--rate"),
    ],
)
def test_limits_that_hold_nothing_sensible_are_refused(limits: Limits, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        limits.columns(["tls-server"])
    assert refused.value.field == field
