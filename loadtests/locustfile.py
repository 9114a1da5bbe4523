"""Locust users: ministry systems that issue, relying parties that ask OCSP. Every answer is checked.

Against a certmill of yours (`make load` does it with one of its own):
    CERTMILL_LOAD_HOME=var CERTMILL_LOAD_API=https://127.0.0.1:8443 CERTMILL_LOAD_PUBLIC=http://127.0.0.1:8080 \
    locust -f loadtests/locustfile.py
"""

import base64
import json
import os
import random
import uuid
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from locust import HttpUser, between, events, task
from locust.contrib.fasthttp import FastHttpUser

from loadtests.plan import Bureau, read_bureaux

HOME = Path(os.environ.get("CERTMILL_LOAD_HOME", "var"))
API = os.environ.get("CERTMILL_LOAD_API", "https://127.0.0.1:8443")
PUBLIC = os.environ.get("CERTMILL_LOAD_PUBLIC", "http://127.0.0.1:8080")
RESULT = os.environ.get("CERTMILL_LOAD_RESULT")
ISSUER = x509.load_pem_x509_certificate((HOME / "ca/issuing.pem").read_bytes())
BUREAUX = read_bureaux()
# A handful of keys: the load is the server's work, not the making of keys.
KEYS = [ec.generate_private_key(ec.SECP256R1()) for _ in range(16)]


@dataclass(slots=True)
class Issued:
    """A certificate that was issued here; whether its revocation was asked for, and whether that has returned."""

    serial: str
    sha1: bytes
    sha256: bytes
    revoking: bool = False
    revoked: bool = False


class Register:
    """What the users know together."""

    def __init__(self) -> None:
        self.recent: deque[Issued] = deque(maxlen=5000)
        self.serials: list[str] = []
        self.revoked = 0

    def add(self, certificate_pem: str, serial: str) -> None:
        """Take in a new certificate; its OCSP requests are made once."""
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        sha1, sha256 = (
            ocsp.OCSPRequestBuilder().add_certificate(certificate, ISSUER, algorithm).build()
            for algorithm in (hashes.SHA1(), hashes.SHA256())
        )
        self.recent.append(Issued(serial, sha1.public_bytes(Encoding.DER), sha256.public_bytes(Encoding.DER)))
        self.serials.append(serial)

    def one(self) -> Issued | None:
        """Return one of the recent certificates."""
        return random.choice(self.recent) if self.recent else None


REGISTER = Register()


def make_csr(bureau: Bureau) -> str:
    """Make a CSR for a host of a bureau."""
    host = f"{uuid.uuid4().hex[:12]}.{bureau.name.lower().replace(' ', '-')[:40]}.example.gov"
    subject = [
        x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, bureau.ministry[:64]),
        x509.NameAttribute(x509.NameOID.ORGANIZATIONAL_UNIT_NAME, bureau.name[:64]),
    ]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    return builder.sign(random.choice(KEYS), hashes.SHA256()).public_bytes(Encoding.PEM).decode()


class MinistrySystem(HttpUser):
    """A system of a ministry: issues, sometimes repeats a request, reads, searches, revokes."""

    host = API
    wait_time = between(0, 0.05)

    def on_start(self) -> None:
        """Take the client certificate and a bureau, drawn by its share of the licences."""
        demo = HOME / "clients/demo"
        self.client.cert = (str(demo / "cert.pem"), str(demo / "key.pem"))
        self.client.verify = str(HOME / "ca/root.pem")
        self.bureau = random.choices(BUREAUX, [bureau.share for bureau in BUREAUX])[0]

    @task(20)
    def issue(self) -> None:
        """Issue one certificate; one time in ten, send the request twice and expect the same certificate."""
        order = {"profile": "tls-server", "csr": make_csr(self.bureau)}
        key = {"Idempotency-Key": str(uuid.uuid4())}
        first = self._post("POST /v1/certificates", order, key)
        if first is None:
            return
        REGISTER.add(first["certificate"], first["serial"])
        if random.random() < 0.1:
            again = self._post("POST /v1/certificates (repeated)", order, key)
            if again is not None and again["serial"] != first["serial"]:
                raise AssertionError(f"one key, two certificates: {first['serial']} and {again['serial']}")

    @task(4)
    def read(self) -> None:
        """Read one certificate."""
        known = REGISTER.one()
        if known is None:
            return
        revoked = known.revoked
        with self.client.get(
            f"/v1/certificates/{known.serial}", name="GET /v1/certificates/{serial}", catch_response=True
        ) as answer:
            if answer.status_code == 200 and revoked and answer.json()["status"] != "revoked":
                answer.failure(f"{known.serial} is revoked, but reads {answer.json()['status']}")

    @task(1)
    def search(self) -> None:
        """Ask for a page."""
        self.client.get("/v1/certificates?status=good&limit=20", name="GET /v1/certificates")

    @task(2)
    def revoke(self) -> None:
        """Revoke one certificate."""
        known = REGISTER.one()
        if known is None or known.revoking:
            return
        known.revoking = True
        answer = self._post(
            "POST /v1/certificates/{serial}/revocation",
            {"reason": "cessationOfOperation"},
            path=f"/v1/certificates/{known.serial}/revocation",
        )
        if answer is not None:
            REGISTER.revoked += 1
            known.revoked = True

    def _post(
        self,
        name: str,
        body: dict[str, str],
        headers: dict[str, str] | None = None,
        path: str = "/v1/certificates",
    ) -> dict[str, Any] | None:
        with self.client.post(path, name=name, json=body, headers=headers, catch_response=True) as answer:
            if answer.status_code in {200, 201}:
                found: dict[str, Any] = answer.json()
                return found
            answer.failure(f"{answer.status_code}: {answer.text[:300]}")
            return None


class RelyingParty(FastHttpUser):
    """A browser or service: asks OCSP about certificates that exist, now and then fetches the CRL."""

    host = PUBLIC
    wait_time = between(0, 0.02)

    @task(60)
    def ocsp_get(self) -> None:
        """Ask by GET."""
        known = REGISTER.one()
        if known is not None:
            path = "/ocsp/" + quote(base64.b64encode(known.sha1).decode(), safe="")
            self._ask(known, "GET", path, "OCSP GET", None)

    @task(30)
    def ocsp_post(self) -> None:
        """Ask by POST."""
        known = REGISTER.one()
        if known is not None:
            self._ask(known, "POST", "/ocsp", "OCSP POST", known.sha1)

    @task(10)
    def ocsp_sha256(self) -> None:
        """Ask with a SHA-256 CertID: the answer is signed when it is first asked for."""
        known = REGISTER.one()
        if known is not None:
            self._ask(known, "POST", "/ocsp", "OCSP POST (SHA-256)", known.sha256)

    @task(1)
    def crl(self) -> None:
        """Fetch the CRL."""
        with self.client.get("/crl/issuing.crl", name="CRL", catch_response=True) as answer:
            if answer.status_code == 200:
                x509.load_der_x509_crl(answer.content)

    def _ask(self, known: Issued, method: str, path: str, name: str, body: bytes | None) -> None:
        revoked = known.revoked  # before the question: what was revoked by then must be answered so
        headers = {"Content-Type": "application/ocsp-request"} if body else {}
        with self.client.request(
            method,
            path,
            name=name,
            data=body,  # type: ignore[arg-type]  # HTTP sends bytes
            headers=headers,
            catch_response=True,
        ) as answer:
            if answer.status_code != 200:
                return
            read = ocsp.load_der_ocsp_response(answer.content)
            if read.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
                # tryLater is right for the moment in which a revocation is durable and not yet signed.
                if read.response_status is not ocsp.OCSPResponseStatus.TRY_LATER or revoked or not known.revoking:
                    answer.failure(f"OCSP says {read.response_status.name} about a certificate that exists")
            elif read.serial_number != int(known.serial, 16):
                answer.failure("OCSP answers about another certificate")
            elif read.certificate_status is ocsp.OCSPCertStatus.GOOD and revoked:
                answer.failure(f"OCSP says good, but the revocation of {known.serial} had returned")
            elif read.certificate_status is ocsp.OCSPCertStatus.REVOKED and not known.revoking:
                answer.failure("OCSP says revoked, but nobody has revoked it")


def write_result(environment: Any, **_: object) -> None:  # noqa: ANN401 - Locust's
    """Leave the figures where `run_load` reads them."""
    if RESULT is None:
        return
    stats = environment.stats
    figures = {
        "serials": REGISTER.serials,
        "revoked": REGISTER.revoked,
        "failures": stats.total.num_failures + len(environment.runner.exceptions),
        "requests": {
            entry.name: {
                "count": entry.num_requests,
                "per_s": entry.total_rps,
                "p50_ms": entry.get_response_time_percentile(0.5),
                "p99_ms": entry.get_response_time_percentile(0.99),
            }
            for entry in stats.entries.values()
        },
    }
    Path(RESULT).write_text(json.dumps(figures), "utf-8")


events.quitting.add_listener(write_result)  # type: ignore[no-untyped-call]  # Locust's
