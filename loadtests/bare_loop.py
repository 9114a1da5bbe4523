"""The floor that `make bench-issue` compares with: the same work in one process, with nothing around it.

Parse a CSR, verify its proof of possession, build and sign a certificate and its OCSP response with software
keys, and keep both in SQLite, many to a transaction that waits for the disk. No HSM, no API, no intent, no audit
log, no check of what was signed: what a script of forty lines would do.
"""

import datetime as dt
import sqlite3
import tempfile
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from pkix.issuer import Issuer

BATCH = 64
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class BareLoop:
    """Issues under `issuer`'s name with a software key of the same kind; use as a context manager."""

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer
        self._key: Key = (
            rsa.generate_private_key(65537, issuer.public_key.key_size)
            if isinstance(issuer.public_key, rsa.RSAPublicKey)
            else ec.generate_private_key(ec.SECP256R1())
        )
        self._ca = _self_signed(issuer.certificate, self._key)
        self._directory = tempfile.TemporaryDirectory(prefix="certmill-bare-")

    def __enter__(self) -> "BareLoop":
        self._database = sqlite3.connect(
            Path(self._directory.name) / "bare.sqlite", isolation_level=None, check_same_thread=False
        )
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute("CREATE TABLE certificates (serial TEXT PRIMARY KEY, der BLOB, ocsp BLOB)")
        return self

    def __exit__(self, *_details: object) -> None:
        self._database.close()
        self._directory.cleanup()

    def certificates_per_s(self, csrs: list[bytes], seconds: float) -> float:
        """Issue for `seconds`; returns durable certificates per second."""
        issued = 0
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            rows = [self._issue(csrs[(issued + n) % len(csrs)]) for n in range(BATCH)]
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("INSERT INTO certificates VALUES (?, ?, ?)", rows)
            self._database.execute("COMMIT")
            issued += BATCH
        return issued / (time.perf_counter() - start)

    def _issue(self, csr_der: bytes) -> tuple[str, bytes, bytes]:
        csr = x509.load_der_x509_csr(csr_der)
        if not csr.is_signature_valid:
            raise ValueError("proof of possession")
        now = dt.datetime.now(dt.UTC).replace(microsecond=0)
        issuer, public_key = self._issuer, csr.public_key()
        name = str(csr.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
        usage = x509.KeyUsage(
            digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        certificate = (
            x509.CertificateBuilder()
            .serial_number(x509.random_serial_number())
            .issuer_name(issuer.certificate.subject)
            .subject_name(csr.subject)
            .not_valid_before(now)
            .not_valid_after(now + dt.timedelta(days=200))
            .public_key(public_key)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(issuer.authority_key_identifier, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(issuer.access[frozenset({"ocsp", "issuers"})], critical=False)
            .add_extension(issuer.crl_distribution_points, critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        response = (
            ocsp.OCSPResponseBuilder()
            .add_response(
                certificate, self._ca, hashes.SHA1(), ocsp.OCSPCertStatus.GOOD,
                now, now + dt.timedelta(days=4), None, None,
            )
            .responder_id(ocsp.OCSPResponderEncoding.HASH, self._ca)
            .sign(self._key, hashes.SHA256())
        )  # fmt: skip
        serial = f"{certificate.serial_number:x}"
        return serial, certificate.public_bytes(Encoding.DER), response.public_bytes(Encoding.DER)


def _self_signed(like: x509.Certificate, key: Key) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .serial_number(1)
        .subject_name(like.subject)
        .issuer_name(like.subject)
        .not_valid_before(like.not_valid_before_utc)
        .not_valid_after(like.not_valid_after_utc)
        .public_key(key.public_key())
        .sign(key, hashes.SHA256())
    )
