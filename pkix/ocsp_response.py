"""OCSP responses (RFC 6960 §4.2, RFC 9919): prepared, assembled around a signature, and read back."""

import datetime as dt
from dataclasses import dataclass
from typing import Literal, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from pkix.algorithms import SignatureAlgorithm, SigningPublicKey, algorithm_for, verify_signature
from pkix.crl import RevocationReason
from pkix.errors import SignatureMismatch
from pkix.issuer import signing_public_key
from pkix.names import SerialNumber, TbsDer
from pkix.unsigned import capture_tbs, tlv

HashName = Literal["sha1", "sha256"]
# SHA-1 names a CertID here; it signs nothing (RFC 9919 §3.1.1).
_HASHES: dict[HashName, hashes.HashAlgorithm] = {"sha1": hashes.SHA1(), "sha256": hashes.SHA256()}  # noqa: S303

_BASIC_RESPONSE_OID = bytes.fromhex("06092b0601050507300101")


@dataclass(frozen=True, slots=True, kw_only=True)
class Responder:
    """A delegated responder: its certificate and the issuer whose certificates it answers for."""

    certificate: x509.Certificate
    certificate_der: bytes
    public_key: SigningPublicKey
    algorithm: SignatureAlgorithm
    issuer_hashes: dict[HashName, tuple[bytes, bytes]]

    @classmethod
    def of(
        cls,
        certificate: x509.Certificate,
        issuer_hashes: dict[HashName, tuple[bytes, bytes]],
        algorithm_name: str | None = None,
    ) -> Self:
        """Describe the holder of `certificate`, who signs as `algorithm_for` says; raises `UnsupportedKey`.

        `issuer_hashes` maps hash to (name hash, key hash).
        """
        public_key = signing_public_key(certificate)
        return cls(
            certificate=certificate,
            certificate_der=certificate.public_bytes(Encoding.DER),
            public_key=public_key,
            algorithm=algorithm_for(public_key, algorithm_name),
            issuer_hashes=issuer_hashes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateStatus:
    """What is known of one issued certificate: good, or revoked when and why."""

    serial: SerialNumber
    revoked_at: dt.datetime | None = None
    reason: RevocationReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedResponse:
    """The exact ResponseData of one single response, and what it says."""

    status: CertificateStatus
    hash_name: HashName
    this_update: dt.datetime
    next_update: dt.datetime
    tbs: TbsDer


def prepare_response(
    *,
    responder: Responder,
    status: CertificateStatus,
    hash_name: HashName,
    this_update: dt.datetime,
    next_update: dt.datetime,
) -> PreparedResponse:
    """Build the ResponseData for one CertID, responder named byKey, no nonce. Cost: about 50 µs."""
    name_hash, key_hash = responder.issuer_hashes[hash_name]
    revoked = status.revoked_at is not None
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response_by_hash(
            name_hash,
            key_hash,
            status.serial,
            _HASHES[hash_name],
            ocsp.OCSPCertStatus.REVOKED if revoked else ocsp.OCSPCertStatus.GOOD,
            this_update,
            next_update,
            status.revoked_at,
            status.reason.flag if status.reason is not None else None,
        )
        .responder_id(ocsp.OCSPResponderEncoding.HASH, responder.certificate)
    )
    tbs = capture_tbs(builder, responder.public_key, responder.algorithm)
    return PreparedResponse(
        status=status, hash_name=hash_name, this_update=this_update, next_update=next_update, tbs=tbs
    )


def assemble_response(prepared: PreparedResponse, responder: Responder, signature: bytes) -> bytes:
    """Join ResponseData, signature and responder certificate into a successful OCSPResponse."""
    certificates = tlv(0xA0, tlv(0x30, responder.certificate_der))
    bit_string = tlv(0x03, b"\x00" + signature)
    basic = tlv(0x30, prepared.tbs + responder.algorithm.identifier_der + bit_string + certificates)
    response_bytes = tlv(0x30, _BASIC_RESPONSE_OID + tlv(0x04, basic))
    return tlv(0x30, b"\x0a\x01\x00" + tlv(0xA0, response_bytes))


def check_response(
    response_der: bytes,
    prepared: PreparedResponse,
    responder: Responder,
    *,
    verified_signature: bytes | None = None,
) -> None:
    """Read a finished response back, as a relying party would, before it may be published.

    `verified_signature`: one over the prepared TBS that has been verified with the responder's key; without it the
    response's own is verified here. Raises `SignatureMismatch`. Cost: about 15 µs, and the verification.
    """
    try:
        read = ocsp.load_der_ocsp_response(response_der)
        same = (
            read.tbs_response_bytes == prepared.tbs
            and read.serial_number == prepared.status.serial
            and (read.certificate_status is ocsp.OCSPCertStatus.REVOKED)
            == (prepared.status.revoked_at is not None)
            and read.this_update_utc == prepared.this_update
            and read.next_update_utc == prepared.next_update
            and (verified_signature is None or read.signature == verified_signature)
        )
    except ValueError as error:
        raise SignatureMismatch("the OCSP response does not parse") from error
    if not same:
        raise SignatureMismatch("the OCSP response is not the one that was prepared")
    if verified_signature is None:
        verify_signature(responder.public_key, prepared.tbs, read.signature, responder.algorithm)
