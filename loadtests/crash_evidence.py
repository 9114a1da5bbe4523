"""What must be true of a home after a crash, whatever the crash interrupted: every violation as a sentence.

It reads the database, the response store, the CRL file and the witness of the dying process from outside, and
verifies with `cryptography`, not with certmill's own code.
"""

import datetime as dt
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from sqlalchemy import Connection, text

from loadtests.crash_load import Journal, is_sent
from ocsp.entry import unpack
from ocsp.lmdb_store import LmdbReader
from ocsp.store import Status, StoredResponse, issuer_tag, response_key
from pkix.algorithms import signature_algorithm
from pkix.unsigned import assemble
from server.storage.blocking import blocking
from server.storage.place import Place
from tests.support.dying_authority import WITNESS

Rows = Sequence[Mapping[str, Any]]


class Evidence:
    """Looks at one home and the database behind it."""

    def __init__(self, home: Path, place: Place) -> None:
        self._home = home
        self._place = place
        self._issuing = x509.load_pem_x509_certificate((home / "ca/issuing.pem").read_bytes())

    def after_death(self, journal: Journal) -> list[str]:
        """Judge the store alone, before anything was mended: what a relying party sees while certmill is down."""
        wrong = []
        for serial, response in self._stored(issued.serial for issued in journal.issued.values()):
            if response is None:
                wrong.append(f"{serial} was acknowledged without an OCSP answer")
            elif response.status is Status.GOOD and serial in journal.revoked:
                wrong.append(f"{serial} is good after its revocation was acknowledged")
            elif response.status is not Status.GOOD and serial not in journal.revoking:
                wrong.append(f"{serial} is {response.status.name}, and nobody revoked it")
        return wrong

    def after_start(self, journal: Journal) -> list[str]:
        """Judge what the next process made of it by itself, as soon as it is ready, before anybody calls."""
        rows, audit = self._certificates(), self._audit()
        listed = {f"{entry.serial_number:x}" for entry in self._crl_file()}
        revoked = {row["serial"] for row in rows if row["revoked_at"] is not None}
        return [
            *self._rows_are_whole(rows, audit),
            *self._acknowledged_are_there(journal, rows, audit),
            *self._answers_are_true(rows, journal),
            *(f"{serial} is revoked and not in the CRL" for serial in revoked if serial.lstrip("0") not in listed),
        ]

    def after_recovery(self, journal: Journal) -> list[str]:
        """Judge everything, when every call was repeated."""
        rows, audit = self._certificates(), self._audit()
        return [
            *journal.wrong,
            *self._rows_are_whole(rows, audit),
            *self._acknowledged_are_there(journal, rows, audit),
            *self._answers_are_true(rows, journal),
            *self._batches_are_whole(rows),
            *self._nothing_was_signed_in_secret(rows),
        ]

    def crl_lacks(self, journal: Journal) -> list[str]:
        """Return the acknowledged revocations that the CRL file does not show yet; it follows soon after them."""
        listed = {f"{entry.serial_number:x}" for entry in self._crl_file()}
        return sorted(serial for serial in journal.revoked if serial.lstrip("0") not in listed)

    def crl_number(self) -> int:
        """Return the number of the CRL file; its signature is verified."""
        crl = self._crl_file()
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number

    def crls_are_in_order(self, numbers: Sequence[int]) -> list[str]:
        """Judge the CRL numbers: those of the file, in the order seen, and those in the database."""
        wrong = [f"the CRL file went from {a} to {b}" for a, b in pairwise(numbers) if b < a]
        rows = self._query("select number, der from crls where issuer = 'issuing' order by number")
        finished = [row["number"] for row in rows if row["der"] is not None]
        if len({row["number"] for row in rows}) != len(rows):
            wrong.append("a CRL number stands twice")
        if numbers and finished and numbers[-1] > finished[-1]:
            wrong.append(f"the CRL file has number {numbers[-1]}, the database ends at {finished[-1]}")
        return wrong

    def _rows_are_whole(self, rows: Rows, audit: Mapping[tuple[str, str], int]) -> Iterator[str]:
        keys = {row["serial"] for row in self._query("select serial from idempotency_keys")}
        if len({row["serial"] for row in rows}) != len(rows):
            yield "a serial number stands twice"
        names = Counter(row["subject"] for row in rows if row["state"] == "issued" and row["client"] == "demo")
        yield from (f"{count} certificates for {name}" for name, count in names.items() if count > 1)
        for row in rows:
            serial, state = row["serial"], row["state"]
            if state == "intent":
                yield f"the intent {serial} is open"
            if state == "abandoned" and (row["der"] is not None or serial in keys or row["revoked_at"]):
                yield f"{serial} is abandoned, and more than that"
            wanted = {
                "certificate.intent": 1,
                "certificate.issued": int(state == "issued"),
                "certificate.abandoned": int(state == "abandoned"),
                "certificate.revoked": int(row["revoked_at"] is not None),
            }
            for action, count in wanted.items():
                # certmill's own responder is recorded without an intent: no caller waits for it
                if audit[(action, serial)] != count and row["client"] != "certmill":
                    yield f"{serial} is {state} and has {audit[(action, serial)]} audit entries {action}"

    def _acknowledged_are_there(
        self, journal: Journal, rows: Rows, audit: Mapping[tuple[str, str], int]
    ) -> Iterator[str]:
        by_serial = {row["serial"]: row for row in rows}
        by_key = {
            row["key"]: row["serial"]
            for row in self._query("select key, serial from idempotency_keys where client = 'demo'")
        }
        for key, issued in journal.issued.items():
            row = by_serial.get(issued.serial)
            der = x509.load_pem_x509_certificate(issued.pem.encode()).public_bytes(Encoding.DER)
            if row is None or row["state"] != "issued" or bytes(row["der"]) != der:
                yield f"LOST: {issued.serial} was acknowledged and is {row and row['state']} now"
            elif is_sent(key) and by_key.get(key) != issued.serial:
                yield f"key {key} got {issued.serial}, and is recorded for {by_key.get(key)}"
            elif issued.serial in journal.revoked and row["revoked_at"] is None:
                yield f"LOST: the revocation of {issued.serial} was acknowledged"
            elif audit[("certificate.issued", issued.serial)] != 1:
                yield f"{issued.serial} has no audit entry"

    def _answers_are_true(self, rows: Rows, journal: Journal) -> Iterator[str]:
        wanted = {row["serial"]: row for row in rows if row["not_after"] > dt.datetime.now(dt.UTC).timestamp()}
        for serial, response in self._stored(wanted):
            row = wanted[serial]
            if row["state"] != "issued":
                if response is not None:
                    yield f"{serial} is {row['state']} and has an OCSP answer"
                continue
            if response is None or not response.der:
                yield f"{serial} has no OCSP answer"
                continue
            says = self._verified(response.der)
            revoked = row["revoked_at"] is not None or serial in journal.revoked
            if f"{says.serial_number:x}" != serial.lstrip("0"):
                yield f"{serial} has the answer of {says.serial_number:x}"
            expected = ocsp.OCSPCertStatus.REVOKED if revoked else ocsp.OCSPCertStatus.GOOD
            if says.certificate_status is not expected:
                yield f"{serial} is answered {says.certificate_status.name}, it is {expected.name}"

    def _batches_are_whole(self, rows: Rows) -> Iterator[str]:
        issued = {row["serial"] for row in rows if row["state"] == "issued"}
        given = self._query("select job, number, state, serial from job_rows")
        yield from (
            f"row {row['number']} of {row['job']} is pending" for row in given if row["state"] == "pending"
        )
        serials = Counter(row["serial"] for row in given if row["state"] == "issued")
        yield from (
            f"{serial} is the certificate of {count} rows" for serial, count in serials.items() if count > 1
        )
        yield from (f"LOST: a row has {serial}, which is not issued" for serial in set(serials) - issued)
        used = sum(row["issued"] for row in self._query("select issued from client_usage where client = 'demo'"))
        own = sum(row["state"] == "issued" and row["client"] == "demo" for row in rows)
        if used != own:
            yield f"{used} certificates are counted for the client, it has {own}"

    def _nothing_was_signed_in_secret(self, rows: Rows) -> Iterator[str]:
        if not (self._home / WITNESS).exists():  # nobody was to die there
            return
        recorded = {bytes(row["tbs_sha256"]) for row in rows}
        algorithm = signature_algorithm(self._issuing.public_key())
        numbers: dict[int, bytes] = {}
        for line in (self._home / WITNESS).read_text().splitlines():
            key, _, hexadecimal = line.partition(" ")
            tbs = bytes.fromhex(hexadecimal)
            if key != "issuing" or hashlib.sha256(tbs).digest() in recorded:
                continue
            number = _crl_number(assemble(tbs, algorithm, b""))  # type: ignore[arg-type]
            if number is None:
                yield f"GHOST: the token was asked to sign what no row records: {hexadecimal[:80]}…"
            elif numbers.setdefault(number, tbs) != tbs:
                yield f"two CRLs were signed under number {number}"

    def _stored(self, serials: Any) -> Iterator[tuple[str, StoredResponse | None]]:  # noqa: ANN401
        tag = issuer_tag(self._issuing.public_bytes(Encoding.DER))
        reader = LmdbReader(self._home / "responses")
        try:
            for serial in serials:
                entry = reader.read(response_key(tag, "sha1", int(serial, 16)))
                yield serial, None if entry is None else unpack(entry)
        finally:
            reader.close()

    def _verified(self, der: bytes) -> ocsp.OCSPResponse:
        """Return a response that the responder signed, whom the issuing CA certified, and that is fresh."""
        response = ocsp.load_der_ocsp_response(der)
        (responder,) = response.certificates
        responder.verify_directly_issued_by(self._issuing)
        _verify(responder.public_key(), response.signature, response.tbs_response_bytes)
        now = dt.datetime.now(dt.UTC)
        next_update = response.next_update_utc
        assert response.this_update_utc <= now + dt.timedelta(seconds=1)
        assert next_update is not None
        assert next_update > now
        return response

    def _crl_file(self) -> x509.CertificateRevocationList:
        crl = x509.load_der_x509_crl((self._home / "public/crl/issuing.crl").read_bytes())
        assert crl.is_signature_valid(self._issuing.public_key())  # type: ignore[arg-type]
        return crl

    def _certificates(self) -> Rows:
        return self._query("select * from certificates where issuer = 'issuing'")

    def _audit(self) -> Mapping[tuple[str, str], int]:
        return Counter(
            (row["action"], row["object"]) for row in self._query("select action, object from audit_log")
        )

    def _query(self, sql: str) -> Rows:
        def work(connection: Connection) -> Rows:
            return [dict(row) for row in connection.execute(text(sql)).mappings()]

        return blocking(self._place, work)


def _verify(key: object, signature: bytes, tbs: bytes) -> None:
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, tbs, ec.ECDSA(hashes.SHA256()))
    else:
        assert isinstance(key, rsa.RSAPublicKey)
        key.verify(signature, tbs, padding.PKCS1v15(), hashes.SHA256())


def _crl_number(der: bytes) -> int | None:
    """Return the number of a CRL; None if it is none."""
    try:
        crl = x509.load_der_x509_crl(der)
    except ValueError:
        return None
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
