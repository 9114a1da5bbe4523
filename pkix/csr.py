"""PKCS #10 certification requests (RFC 2986): parsed once, checked, then only our own type is used."""

import hashlib
import ipaddress
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pkix.errors import MalformedCsr, ProofOfPossessionFailed
from pkix.keys import SubjectPublicKey, check_subject_key

MAX_CSR_BYTES = 32 * 1024
_PEM_BEGIN = b"-----BEGIN "
# extensionRequest (RFC 2985 §5.4.2) and Microsoft's older name for it.
_EXTENSION_REQUESTS = (
    bytes.fromhex("060a2b0601040182370201 0e"),
    bytes.fromhex("06092a864886f70d01090e"),
)

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificationRequest:
    """A request whose key is acceptable and whose signature has been verified.

    `der` is the whole request. `other_names` counts the subject alternative names of other kinds than the four.
    """

    der: bytes
    public_key: SubjectPublicKey
    spki_sha256: bytes
    subject: x509.Name
    dns_names: tuple[str, ...]
    ip_addresses: tuple[IpAddress, ...]
    emails: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()
    other_names: int


def parse_csr(data: bytes) -> CertificationRequest:
    """Parse a PEM or DER request, check its key and verify the proof of possession.

    Raises `MalformedCsr`, `KeyRejected` or `ProofOfPossessionFailed`. Cost: about 150 µs (P-256).
    """
    if len(data) > MAX_CSR_BYTES:
        raise _malformed(f"the request is larger than {MAX_CSR_BYTES} bytes")
    with _malformed_unless_parsed():
        csr = _load(data)
        public_key = csr.public_key()
    checked = check_subject_key(public_key)
    with _malformed_unless_parsed():
        proven = csr.is_signature_valid
    if not proven:
        raise ProofOfPossessionFailed(
            "the signature on the CSR does not verify with the key in it",
            field="csr",
            remedy="make the CSR anew with the private key that belongs to it",
        )
    with _malformed_unless_parsed():
        return _read(csr, checked)


def request_der(data: bytes) -> bytes:
    """Return the DER of a PEM or DER request, unchecked; raises `ValueError`."""
    return _load(data).public_bytes(Encoding.DER)


def _load(data: bytes) -> x509.CertificateSigningRequest:
    if _PEM_BEGIN in data[:1024]:
        return x509.load_pem_x509_csr(data)
    return x509.load_der_x509_csr(data)


def _read(csr: x509.CertificateSigningRequest, public_key: SubjectPublicKey) -> CertificationRequest:
    spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    der = csr.public_bytes(Encoding.DER)
    if sum(map(der.count, _EXTENSION_REQUESTS)) > 1:  # the library reads the first and is silent about others
        raise _malformed("the request has two lists of extensions")
    try:
        names = list(csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        names = []
    dns_names = [name.value for name in names if isinstance(name, x509.DNSName)]
    emails = [name.value for name in names if isinstance(name, x509.RFC822Name)]
    uris = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    ip_addresses = [
        name.value
        for name in names
        if isinstance(name, x509.IPAddress)
        and isinstance(name.value, ipaddress.IPv4Address | ipaddress.IPv6Address)
    ]
    with bounds_in_characters():
        subject = csr.subject
    return CertificationRequest(
        der=der,
        public_key=public_key,
        spki_sha256=hashlib.sha256(spki).digest(),
        subject=subject,
        dns_names=tuple(dns_names),
        ip_addresses=tuple(ip_addresses),
        emails=tuple(emails),
        uris=tuple(uris),
        other_names=len(names) - len(dns_names) - len(ip_addresses) - len(emails) - len(uris),
    )


@contextmanager
def bounds_in_characters() -> Iterator[None]:
    """Let names be read and made whose values are longer in octets than the bound of their type.

    RFC 5280's upper bounds count characters, and so does `subject.py`; `cryptography` counts octets of UTF-8 and
    warns, though 22 Lao letters have 66 of them. Cost: about 2 µs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@contextmanager
def _malformed_unless_parsed() -> Iterator[None]:
    """Turn every error that the parser is known to raise, early or on attribute access, into one."""
    try:
        yield
    except (
        ValueError,
        TypeError,
        NotImplementedError,
        OverflowError,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise _malformed("the CSR cannot be parsed as PKCS #10") from error


def _malformed(detail: str) -> MalformedCsr:
    return MalformedCsr(
        detail,
        field="csr",
        remedy="send a PKCS #10 request (RFC 2986), PEM or DER, for example from `openssl req -new`",
    )
