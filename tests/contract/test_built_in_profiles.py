"""What holds for the certificates of every built-in profile: openssl reads and verifies them, pkilint finds nothing."""

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from pkix.lint import lint_certificate
from pkix.profile import Profile
from server.clock import utc_now
from server.issuance.samples import PrivateKey, SampleCa, sample_ca, sample_certificate
from server.linting.exceptions import documented_exceptions
from server.linting.linters import lint_now
from tests.support.profiles import BUILT_IN

NOW = utc_now()
KINDS = {
    "company", "company-licence", "government-position", "natural-person", "tls-server", "tls-server-public",
    "tls-server-public-dv", "tls-client", "smime", "smime-public", "smime-public-mailbox", "device",
    "document-signing", "operator", "ocsp-responder", "subordinate-ca",
}  # fmt: skip


@pytest.fixture(scope="module")
def ca() -> SampleCa:
    return sample_ca(NOW)


@pytest.fixture(scope="module")
def rsa_key() -> PrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(params=BUILT_IN.values(), ids=lambda profile: profile.name)
def profile(request: pytest.FixtureRequest) -> Profile:
    assert isinstance(request.param, Profile)
    return request.param


def certificates(profile: Profile, ca: SampleCa, keys: Iterable[PrivateKey | None]) -> Iterator[x509.Certificate]:
    """Make the smallest and the fullest certificate for each key; None is a P-256 key."""
    for key in keys:
        for full in (False, True):
            sample = sample_certificate(profile, full=full, key=key, ca=ca, now=NOW)
            lint_certificate(sample.prepared, sample.issuer, now=NOW)
            yield x509.load_der_x509_certificate(ca.sign(sample.prepared))


def test_every_kind_of_the_domain_is_there() -> None:
    assert BUILT_IN.keys() == KINDS
    for profile in BUILT_IN.values():
        assert (profile.family == "public") == ("-public" in profile.name)


def test_openssl_reads_and_verifies_them(
    profile: Profile, ca: SampleCa, rsa_key: PrivateKey, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_text(ca.issuer.certificate_pem)
    for certificate in certificates(profile, ca, (None, rsa_key)):
        (tmp_path / "c.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        read = subprocess.run(
            ["openssl", "verify", "-x509_strict", "-CAfile", "ca.pem", "c.pem"],
            cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert read.returncode == 0, read.stderr


def test_the_linter_of_the_profile_finds_nothing(profile: Profile, ca: SampleCa, rsa_key: PrivateKey) -> None:
    assert profile.linter != "none"
    for certificate in certificates(profile, ca, (None, rsa_key)):
        der = certificate.public_bytes(Encoding.DER)
        assert lint_now(der, profile.linter, profile=profile.name, exceptions=documented_exceptions()) == []
