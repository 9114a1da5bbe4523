"""OCSP requests (RFC 6960 §4.1): decoded in full, or recognised by template where they have the usual form.

`template_match` knows the one shape that nearly every client sends: one CertID, no extension, no signature.
Every byte of such a request except the two hashes and the serial number is determined by its length, so it is
compared and sliced, not parsed. It is a strict subset of `decode_request` (a property test says so).
"""

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509 import ocsp

from pkix.errors import MalformedOcspRequest
from pkix.ocsp_response import HashName
from pkix.unsigned import tlv

MAX_NONCE_OCTETS = 128  # RFC 9654 §2.1

# OCSPResponse with nothing but a responseStatus (RFC 6960 §4.2.1).
MALFORMED_REQUEST = bytes.fromhex("30030a0101")
INTERNAL_ERROR = bytes.fromhex("30030a0102")
TRY_LATER = bytes.fromhex("30030a0103")
UNAUTHORIZED = bytes.fromhex("30030a0106")


class UnknownCertIdHash(MalformedOcspRequest):
    """The CertID is well-formed, but hashed with neither SHA-1 nor SHA-256: nobody here can answer for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertId:
    """Which certificate is asked about (RFC 6960 §4.1.1)."""

    hash_algorithm: HashName
    issuer_name_hash: bytes
    issuer_key_hash: bytes
    serial: int

    @property
    def issuer_hashes(self) -> bytes:
        """IssuerNameHash and issuerKeyHash, one after the other: 40 octets for SHA-1, 64 for SHA-256."""
        return self.issuer_name_hash + self.issuer_key_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class OcspRequest:
    """A request for one certificate. A nonce is accepted and not returned: answers are signed in advance."""

    cert_id: CertId
    nonce: bytes | None


def decode_request(der: bytes) -> OcspRequest:
    """Decode any request for one certificate.

    Raises `UnknownCertIdHash`, or `MalformedOcspRequest` for everything else, several CertIDs included.
    """
    try:
        request = ocsp.load_der_ocsp_request(der)
        nonce = _nonce(request.extensions)
        serial, name_hash, key_hash = request.serial_number, request.issuer_name_hash, request.issuer_key_hash
    except (ValueError, TypeError, NotImplementedError, x509.DuplicateExtension, UnsupportedAlgorithm) as error:
        raise MalformedOcspRequest("not an OCSPRequest for one certificate") from error
    hash_name = _hash_name(request, name_hash, key_hash)
    cert_id = CertId(hash_algorithm=hash_name, issuer_name_hash=name_hash, issuer_key_hash=key_hash, serial=serial)
    return OcspRequest(cert_id=cert_id, nonce=nonce)


def _hash_name(request: ocsp.OCSPRequest, name_hash: bytes, key_hash: bytes) -> HashName:
    try:
        name = request.hash_algorithm.name
    except (UnsupportedAlgorithm, ValueError) as error:
        raise UnknownCertIdHash("hash algorithm of the CertID is not known") from error
    sizes: dict[str, tuple[HashName, int]] = {"sha1": ("sha1", 20), "sha256": ("sha256", 32)}
    if name not in sizes:
        raise UnknownCertIdHash(f"hash algorithm {name} of the CertID is not answered")
    known, size = sizes[name]
    if len(name_hash) != size or len(key_hash) != size:
        raise MalformedOcspRequest("hashes of the CertID have the wrong length")
    return known


def _nonce(extensions: x509.Extensions) -> bytes | None:
    try:
        nonce = extensions.get_extension_for_class(x509.OCSPNonce).value.nonce
    except x509.ExtensionNotFound:
        return None
    if not 1 <= len(nonce) <= MAX_NONCE_OCTETS:
        raise ValueError("nonce of a forbidden length")
    return nonce


_SHA1 = bytes.fromhex("06052b0e03021a")
_SHA256 = bytes.fromhex("0609608648016503040201")
_NULL = bytes.fromhex("0500")
_LONGEST_SERIAL = 20


@dataclass(frozen=True, slots=True)
class _Template:
    prefix: bytes
    name_end: int
    between: bytes
    key_end: int
    serial_header: bytes


def _make_template(algorithm: bytes, hash_octets: int, serial_octets: int) -> _Template:
    header = bytes((0x04, hash_octets))
    serial_header = bytes((0x02, serial_octets))
    hole = bytes(hash_octets)
    cert_id = tlv(0x30, algorithm) + header + hole + header + hole + serial_header + bytes(serial_octets)
    whole = tlv(0x30, tlv(0x30, tlv(0x30, tlv(0x30, tlv(0x30, cert_id)))))
    name_start = len(whole) - serial_octets - 2 - hash_octets - 2 - hash_octets
    name_end = name_start + hash_octets
    return _Template(whole[:name_start], name_end, header, name_end + 2 + hash_octets, serial_header)


def _make_templates() -> dict[int, tuple[_Template, ...]]:
    found: dict[int, tuple[_Template, ...]] = {}
    for algorithm, hash_octets in ((_SHA1 + _NULL, 20), (_SHA1, 20), (_SHA256 + _NULL, 32), (_SHA256, 32)):
        for serial_octets in range(1, _LONGEST_SERIAL + 1):
            template = _make_template(algorithm, hash_octets, serial_octets)
            length = template.key_end + 2 + serial_octets
            found[length] = (*found.get(length, ()), template)
    return found


_TEMPLATES = _make_templates()
LONGEST_TEMPLATE = max(_TEMPLATES)


def template_match(der: bytes) -> tuple[bytes, bytes] | None:
    """Return (issuer hashes, octets of the serial) if `der` has the usual form, else None. Cost: 0.5 µs.

    The hashes are name and key hash in one, 40 octets for SHA-1, 64 for SHA-256. The serial's octets are those
    of a minimal, positive INTEGER.
    """
    for t in _TEMPLATES.get(len(der), ()):
        start, name_end, key_end = len(t.prefix), t.name_end, t.key_end
        if (
            der.startswith(t.prefix)
            and der.startswith(t.between, name_end)
            and der.startswith(t.serial_header, key_end)
        ):
            serial = der[key_end + 2 :]
            first = serial[0]
            if first & 0x80 or (first == 0 and (len(serial) == 1 or not serial[1] & 0x80)):
                return None  # negative, zero or not minimal: for the decoder to judge
            return der[start:name_end] + der[name_end + 2 : key_end], serial
    return None
