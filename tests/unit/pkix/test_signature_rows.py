"""With every signature algorithm: CA, certificate, CRL and OCSP, read by `cryptography` and by openssl."""

import datetime as dt
import hashlib
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp

from pkix.algorithms import ED25519, SHA384_WITH_RSA, SIGNATURE_ALGORITHMS, SigningPublicKey
from pkix.certificate import (
    PreparedCertificate,
    assemble_certificate,
    choose_validity,
    prepare_ca_certificate,
    prepare_certificate,
)
from pkix.crl import RevocationReason, RevokedEntry, check_crl, prepare_crl
from pkix.csr import parse_csr
from pkix.errors import LintError, SignatureMismatch, UnsupportedKey
from pkix.issuer import Issuer
from pkix.lint import check_released, lint_certificate
from pkix.names import SerialNumber
from pkix.ocsp_response import (
    CertificateStatus,
    Responder,
    assemble_response,
    check_response,
    prepare_response,
)
from pkix.subject import CertificateNames, select_names
from pkix.unsigned import assemble
from tests.support.ca import NOW, TestCa, make_csr
from tests.support.profiles import OCSP_RESPONDER, TLS_SERVER
from tests.unit.pkix.authorities import Authority, PrivateKey, make_authority

WEEK = dt.timedelta(days=7)
SERIAL = SerialNumber((1 << 126) + 4711)


@pytest.fixture(scope="module", params=list(SIGNATURE_ALGORITHMS))
def authority(request: pytest.FixtureRequest, key_of: dict[str, PrivateKey]) -> Authority:
    return make_authority(key_of[request.param], SIGNATURE_ALGORITHMS[request.param])


@pytest.fixture(scope="module")
def ed25519_authority(key_of: dict[str, PrivateKey]) -> Authority:
    return make_authority(key_of["ed25519"], ED25519)


def server_certificate(authority: Authority) -> x509.Certificate:
    request = parse_csr(make_csr())
    prepared = prepare_certificate(
        issuer=authority.issuer,
        profile=TLS_SERVER,
        serial=SERIAL,
        validity=choose_validity(
            now=NOW, backdate=dt.timedelta(), lifetime=WEEK, issuer=authority.issuer.certificate
        ),
        public_key=request.public_key,
        spki_sha256=request.spki_sha256,
        names=select_names(request, TLS_SERVER),
    )
    lint_certificate(prepared, authority.issuer, now=NOW)
    der = assemble_certificate(prepared, authority.issuer, authority.sign(prepared.tbs))
    check_released(prepared, der)
    return x509.load_der_x509_certificate(der)


def prepare_responder(issuer: Issuer, key: SigningPublicKey) -> PreparedCertificate:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "OCSP responder")])
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return prepare_certificate(
        issuer=issuer,
        profile=OCSP_RESPONDER,
        serial=SERIAL,
        validity=choose_validity(now=NOW, backdate=dt.timedelta(), lifetime=WEEK, issuer=issuer.certificate),
        public_key=key,
        spki_sha256=hashlib.sha256(spki).digest(),
        names=CertificateNames(subject=subject, dns_names=(), ip_addresses=()),
    )


def make_responder(authority: Authority, key: PrivateKey) -> Responder:
    prepared = prepare_responder(authority.issuer, key.public_key())
    lint_certificate(prepared, authority.issuer, now=NOW)
    der = assemble_certificate(prepared, authority.issuer, authority.sign(prepared.tbs))
    return Responder.of(
        x509.load_der_x509_certificate(der),
        {"sha1": authority.issuer.hashes("sha1"), "sha256": authority.issuer.hashes("sha256")},
        authority.issuer.algorithm.name,
    )


def make_crl(authority: Authority) -> bytes:
    entry = RevokedEntry(serial=SerialNumber(99), revoked_at=NOW, reason=RevocationReason.SUPERSEDED)
    tbs = prepare_crl(issuer=authority.issuer, number=3, this_update=NOW, next_update=NOW + WEEK, entries=[entry])
    return assemble(tbs, authority.issuer.algorithm, authority.sign(tbs))


def make_response(responder: Responder, key: PrivateKey) -> bytes:
    prepared = prepare_response(
        responder=responder,
        status=CertificateStatus(serial=SERIAL),
        hash_name="sha1",
        this_update=NOW,
        next_update=NOW + WEEK,
    )
    der = assemble_response(prepared, responder, key.sign(prepared.tbs, *responder.algorithm.scheme))
    check_response(der, prepared, responder)
    wrong = assemble_response(prepared, responder, key.sign(b"", *responder.algorithm.scheme))
    with pytest.raises(SignatureMismatch):
        check_response(wrong, prepared, responder)
    return der


def test_certificates_are_read_as_issued_by_the_ca(authority: Authority) -> None:
    issuer = authority.issuer
    issuer.certificate.verify_directly_issued_by(issuer.certificate)
    assert x509.load_der_x509_certificate(issuer.certificate_der) == issuer.certificate
    server_certificate(authority).verify_directly_issued_by(issuer.certificate)
    tbs = prepare_ca_certificate(
        subject=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Issuing")]),
        public_key=authority.key.public_key(),
        serial=SERIAL,
        validity=choose_validity(now=NOW, backdate=dt.timedelta(), lifetime=WEEK, issuer=issuer.certificate),
        issuer=issuer,
        path_length=0,
    )
    subordinate = x509.load_der_x509_certificate(assemble(tbs, issuer.algorithm, authority.sign(tbs)))
    subordinate.verify_directly_issued_by(issuer.certificate)


def test_crls_are_checked_before_they_are_published(authority: Authority) -> None:
    der = make_crl(authority)
    check_crl(der, issuer=authority.issuer, number=3, entries=1)
    with pytest.raises(SignatureMismatch):
        check_crl(der[:-1] + bytes((der[-1] ^ 1,)), issuer=authority.issuer, number=3, entries=1)


def test_responses_name_the_algorithm_that_signed_them(
    authority: Authority, another_key_of: dict[str, PrivateKey]
) -> None:
    algorithm = authority.issuer.algorithm
    key = another_key_of[algorithm.name]
    read = ocsp.load_der_ocsp_response(make_response(make_responder(authority, key), key))
    assert read.certificate_status is ocsp.OCSPCertStatus.GOOD
    # Our own table is no witness for itself: what a certificate says of this algorithm, a response must say.
    assert read.signature_algorithm_oid == authority.issuer.certificate.signature_algorithm_oid


def test_openssl_verifies_certificate_crl_and_response(
    authority: Authority, another_key_of: dict[str, PrivateKey], tmp_path: Path
) -> None:
    key = another_key_of[authority.issuer.algorithm.name]
    ca, leaf, crl, response = (tmp_path / name for name in ("ca.pem", "leaf.pem", "ca.crl", "response.der"))
    ca.write_text(authority.issuer.certificate_pem)
    leaf.write_bytes(server_certificate(authority).public_bytes(Encoding.PEM))
    crl.write_bytes(x509.load_der_x509_crl(make_crl(authority)).public_bytes(Encoding.PEM))
    response.write_bytes(make_response(make_responder(authority, key), key))
    at = ["-attime", str(int(NOW.timestamp()) + 60)]
    said = openssl("verify", *at, "-x509_strict", "-crl_check", "-CRLfile", crl, "-CAfile", ca, leaf)
    assert said == f"{leaf}: OK\n"
    said = openssl(
        "ocsp",
        *at,
        "-validity_period",
        str(10**9),
        "-respin",
        response,
        "-issuer",
        ca,
        "-cert",
        leaf,
        "-CAfile",
        ca,
    )
    assert "Response verify OK" in said
    assert f"{leaf}: good" in said


def openssl(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["openssl", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_issuer_hashes_are_those_that_cryptography_asks_with(authority: Authority) -> None:
    certificate = authority.issuer.certificate
    for name, algorithm in (("sha1", hashes.SHA1()), ("sha256", hashes.SHA256())):
        asked = ocsp.OCSPRequestBuilder().add_certificate(certificate, certificate, algorithm).build()
        assert authority.issuer.hashes(name) == (asked.issuer_name_hash, asked.issuer_key_hash)


def test_lint_is_not_deceived_by_the_identifier_in_an_ed25519_subject_key(
    ca: TestCa, ed25519_authority: Authority
) -> None:
    """An Ed25519 subjectPublicKeyInfo begins with the very bytes of the signature's AlgorithmIdentifier."""
    prepared = prepare_responder(ca.issuer, ed25519_authority.key.public_key())
    assert prepared.tbs.find(ED25519.identifier_der) > 0
    lint_certificate(prepared, ca.issuer, now=NOW)
    with pytest.raises(LintError, match=r"7\.1\.3\.2"):
        lint_certificate(prepared, replace(ca.issuer, algorithm=ED25519), now=NOW)


def test_an_issuer_signs_with_what_its_key_can(rsa_ca: TestCa, ca: TestCa) -> None:
    def issuer(of: TestCa, name: str) -> Issuer:
        return Issuer.of(
            of.issuer.certificate,
            ocsp_url="http://a",
            ca_issuers_url="http://a",
            crl_url="http://a",
            algorithm_name=name,
        )

    assert issuer(rsa_ca, "sha384WithRSAEncryption").algorithm is SHA384_WITH_RSA
    with pytest.raises(UnsupportedKey):
        issuer(ca, "sha384WithRSAEncryption")
    with pytest.raises(UnsupportedKey):
        Responder.of(ca.issuer.certificate, {}, "ed25519")
