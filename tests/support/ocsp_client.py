"""A relying party: makes OCSP requests and reads the answers."""

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from tests.support.certmill import RunningCertmill


def ocsp_request_der(certificate: x509.Certificate, issuer: x509.Certificate, algorithm: str = "sha1") -> bytes:
    """Make a request for one certificate, without nonce."""
    chosen = hashes.SHA1() if algorithm == "sha1" else hashes.SHA256()
    return (
        ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, chosen).build().public_bytes(Encoding.DER)
    )


def ask(running: RunningCertmill, request: bytes) -> ocsp.OCSPResponse:
    """POST a request and return the answer."""
    reply = running.public("POST", "/ocsp", request, **{"Content-Type": "application/ocsp-request"})
    assert reply.status == 200
    return ocsp.load_der_ocsp_response(reply.body)
