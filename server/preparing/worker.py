"""A preparing process: `python -m server.preparing.worker FD`.

It parses requests, checks them and prepares certificates. It holds no key and no database; what it answers is
looked at again by the authority, and signed there.
"""

import datetime as dt
import sys
from functools import lru_cache
from typing import BinaryIO

import msgspec
from cryptography import x509

from pkix.names import SerialNumber
from pkix.profile import Profile
from pkix.profile_file import parse_profile
from server.clock import epoch
from server.issuance.order import Order
from server.keys.described import describe_issuer
from server.preparing.frames import Begin, Made, Prepare, Prepared, Refused, Wanted
from server.preparing.preparer import Preparer
from server.preparing.refusals import TOLD, told
from server.workers.child import receive, run, send
from server.workers.frames import Ready

MODULE = "server.preparing.worker"


@lru_cache(maxsize=256)
def _profile(text: str) -> Profile:
    return parse_profile(text)


def serve(stream: BinaryIO) -> None:
    """Learn whose certificates these are, then prepare until the stream ends."""
    begin = receive(stream, Begin)
    if begin is None:
        return
    certificate = x509.load_der_x509_certificate(begin.issuer_der)
    issuer = describe_issuer(begin.url, begin.label, certificate)
    preparer = Preparer(issuer, backdate=dt.timedelta(seconds=begin.backdate_s))
    send(stream, Ready(""))
    while (asked := receive(stream, Prepare)) is not None:
        send(stream, Prepared([_prepare(preparer, asked, wanted) for wanted in asked.orders]))


def _prepare(preparer: Preparer, asked: Prepare, wanted: Wanted) -> Made | Refused:
    order = Order(
        client=asked.clients[wanted.client],
        profile=_profile(asked.profiles[wanted.profile]),
        csr=wanted.csr,
        request_id="",
        lifetime=None if wanted.lifetime_s is None else dt.timedelta(seconds=wanted.lifetime_s),
        asked=wanted.asked,
    )
    try:
        prepared = preparer.prepare(order, asked.now)
    except TOLD as error:
        return msgspec.structs.replace(told(error), fingerprint=order.fingerprint())
    certificate = prepared.certificate
    return Made(
        profile=order.profile.identity,
        fingerprint=order.fingerprint(),
        serial=_octets(certificate.serial),
        tbs=certificate.tbs,
        tbs_sha256=certificate.tbs_sha256,
        spki_sha256=certificate.spki_sha256,
        subject=certificate.subject,
        not_before=epoch(certificate.not_before),
        not_after=epoch(certificate.not_after),
        csr_der=prepared.csr_der,
    )


def _octets(serial: SerialNumber) -> bytes:
    return serial.to_bytes((serial.bit_length() + 7) // 8, "big")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], serve))
