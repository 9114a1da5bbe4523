"""The presigner gives out nothing that was signed with another key than its responder certificate's."""

import datetime as dt
from collections.abc import Sequence

import pytest

from ocsp.presigner import Presigner
from ocsp.store import IssuerTag
from pkix.errors import SignatureMismatch
from pkix.names import SerialNumber
from pkix.ocsp_response import CertificateStatus, Responder
from tests.support.ca import NOW, TestCa, make_ca

SERIAL = SerialNumber(1 << 100)


class PoolOf:
    """A pool whose tokens hold one CA's key."""

    def __init__(self, ca: TestCa) -> None:
        self._ca = ca

    async def sign_many(self, _key: str, tbs: Sequence[bytes], *_: object, **__: object) -> list[bytes]:
        return [self._ca.sign(one) for one in tbs]

    def public_key(self, _label: str) -> object:
        return self._ca.issuer.public_key


def presigner(pool: TestCa, responder: TestCa) -> Presigner:
    issuer = responder.issuer
    return Presigner(
        pool=PoolOf(pool),  # type: ignore[arg-type]
        responder=Responder.of(issuer.certificate, {name: issuer.hashes(name) for name in ("sha1", "sha256")}),
        key_label="ocsp",
        issuer_tag=IssuerTag(bytes(16)),
        validity=dt.timedelta(days=4),
        clock=lambda: NOW,
    )


async def test_response_of_the_responders_key_is_given_out() -> None:
    ca = make_ca()
    one = presigner(ca, ca)
    (signed,) = await one.sign([one.prepare(CertificateStatus(serial=SERIAL), "sha1")], 0)  # type: ignore[arg-type]
    assert signed.stored.der


async def test_tokens_with_another_key_than_the_responder_certificates_give_out_nothing() -> None:
    one = presigner(make_ca(), make_ca())
    with pytest.raises(SignatureMismatch, match="another key"):
        await one.sign([one.prepare(CertificateStatus(serial=SERIAL), "sha1")], 0)  # type: ignore[arg-type]
