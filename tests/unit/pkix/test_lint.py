"""What lint finds in names that `select_names` would never have let through."""

import datetime as dt

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from pkix.certificate import PreparedCertificate, Validity, prepare_certificate
from pkix.csr import parse_csr
from pkix.errors import LintError
from pkix.lint import lint_certificate
from pkix.names import SerialNumber
from pkix.subject import CertificateNames
from tests.support.ca import NOW, TestCa, make_csr
from tests.support.profiles import TLS_SERVER


def prepare(ca: TestCa, common_name: str, dns_name: str) -> PreparedCertificate:
    request = parse_csr(make_csr())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    return prepare_certificate(
        issuer=ca.issuer,
        profile=TLS_SERVER,
        serial=SerialNumber(1 << 100),
        validity=Validity(not_before=NOW, not_after=NOW + dt.timedelta(days=1)),
        public_key=request.public_key,
        spki_sha256=request.spki_sha256,
        names=CertificateNames(subject=subject, dns_names=(dns_name,), ip_addresses=()),
    )


def test_a_common_name_is_compared_as_ascii(ca: TestCa) -> None:
    lint_certificate(prepare(ca, "www.K.gov", "www.k.gov"), ca.issuer, now=NOW)
    with pytest.raises(LintError, match="only looks like another"):
        lint_certificate(prepare(ca, "www.\u212a.gov", "www.k.gov"), ca.issuer, now=NOW)
    with pytest.raises(LintError, match=r"7\.1\.4\.3"):
        lint_certificate(prepare(ca, "www.x.gov", "www.k.gov"), ca.issuer, now=NOW)
