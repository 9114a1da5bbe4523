"""CRLs and OCSP responses, read back with an independent decoder."""

import datetime as dt
import re

import pytest
from cryptography import x509
from cryptography.x509 import ocsp

from pkix.crl import RevocationReason, RevokedEntry, check_crl, prepare_crl
from pkix.errors import SignatureMismatch
from pkix.names import SerialNumber
from pkix.ocsp_response import (
    CertificateStatus,
    HashName,
    PreparedResponse,
    Responder,
    assemble_response,
    check_response,
    prepare_response,
)
from pkix.unsigned import assemble
from tests.support.ca import NOW, TestCa, make_ca

WEEK = dt.timedelta(days=7)
SERIAL = SerialNumber(1 << 100)


def crl(ca: TestCa, *entries: RevokedEntry, number: int = 7) -> bytes:
    tbs = prepare_crl(issuer=ca.issuer, number=number, this_update=NOW, next_update=NOW + WEEK, entries=entries)
    return assemble(tbs, ca.issuer.algorithm, ca.sign(tbs))


def test_an_empty_crl_has_no_revoked_certificates_at_all(ca: TestCa) -> None:
    der = crl(ca)
    check_crl(der, issuer=ca.issuer, number=7, entries=0)
    tbs = x509.load_der_x509_crl(der).tbs_certlist_bytes
    next_update = (NOW + WEEK).strftime("%y%m%d%H%M%SZ").encode()
    after_next_update = tbs.index(next_update) + len(next_update)
    assert tbs[after_next_update] == 0xA0  # crlExtensions follow nextUpdate directly


def test_reasons_are_written_except_unspecified(ca: TestCa) -> None:
    entries = [
        RevokedEntry(serial=SerialNumber(1000 + n), revoked_at=NOW, reason=reason)
        for n, reason in enumerate(RevocationReason)
    ]
    der = crl(ca, *entries)
    check_crl(der, issuer=ca.issuer, number=7, entries=len(entries))
    for entry in entries:
        found = x509.load_der_x509_crl(der).get_revoked_certificate_by_serial_number(entry.serial)
        assert found is not None
        if entry.reason is RevocationReason.UNSPECIFIED:
            assert not list(found.extensions)
        else:
            assert (
                found.extensions.get_extension_for_class(x509.CRLReason).value.reason.value == entry.reason.value
            )


def test_a_crl_is_checked_before_it_is_published(ca: TestCa) -> None:
    good = crl(ca)
    broken = good[:-1] + bytes((good[-1] ^ 1,))
    for der, number, entries in ((broken, 7, 0), (good, 8, 0), (good, 7, 1)):
        with pytest.raises((SignatureMismatch, ValueError)):
            check_crl(der, issuer=ca.issuer, number=number, entries=entries)
    with pytest.raises(SignatureMismatch):
        check_crl(good, issuer=make_ca().issuer, number=7, entries=0)


def responder(ca: TestCa) -> Responder:
    return Responder.of(
        ca.issuer.certificate, {"sha1": ca.issuer.hashes("sha1"), "sha256": ca.issuer.hashes("sha256")}
    )


def response(
    ca: TestCa, status: CertificateStatus, hash_name: HashName = "sha1"
) -> tuple[PreparedResponse, bytes]:
    prepared = prepare_response(
        responder=responder(ca), status=status, hash_name=hash_name, this_update=NOW, next_update=NOW + WEEK
    )
    return prepared, assemble_response(prepared, responder(ca), ca.sign(prepared.tbs))


@pytest.mark.parametrize("hash_name", ["sha1", "sha256"])
def test_good_is_one_single_response_by_key_without_nonce(ca: TestCa, hash_name: HashName) -> None:
    prepared, der = response(ca, CertificateStatus(serial=SERIAL), hash_name)
    check_response(der, prepared, responder(ca))
    read = ocsp.load_der_ocsp_response(der)
    assert read.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL
    assert read.certificate_status is ocsp.OCSPCertStatus.GOOD
    assert read.responder_name is None
    assert read.responder_key_hash == ca.issuer.hashes("sha1")[1]
    assert read.hash_algorithm.name == hash_name
    assert (read.issuer_name_hash, read.issuer_key_hash) == ca.issuer.hashes(hash_name)
    assert (read.this_update_utc, read.next_update_utc) == (NOW, NOW + WEEK)
    assert not list(read.extensions)
    assert not list(read.single_extensions)
    assert read.certificates == [ca.issuer.certificate]


def test_times_end_in_z_with_seconds_and_no_fractions(ca: TestCa) -> None:
    prepared, _ = response(ca, CertificateStatus(serial=SERIAL))
    times = re.findall(rb"\x18(.)(\d[\d.]*Z?)", prepared.tbs, re.DOTALL)
    assert len(times) == 3  # producedAt, thisUpdate, nextUpdate
    assert all(re.fullmatch(rb"\d{14}Z", text) for _, text in times)


def test_revoked_says_when_and_why_in_revoked_info_only(ca: TestCa) -> None:
    status = CertificateStatus(serial=SERIAL, revoked_at=NOW, reason=RevocationReason.KEY_COMPROMISE)
    prepared, der = response(ca, status)
    check_response(der, prepared, responder(ca))
    read = ocsp.load_der_ocsp_response(der)
    assert read.revocation_time_utc == NOW
    assert read.revocation_reason is x509.ReasonFlags.key_compromise
    assert not list(read.single_extensions)


def test_unspecified_is_not_written(ca: TestCa) -> None:
    status = CertificateStatus(serial=SERIAL, revoked_at=NOW, reason=RevocationReason.UNSPECIFIED)
    assert ocsp.load_der_ocsp_response(response(ca, status)[1]).revocation_reason is None


def test_a_response_is_checked_before_it_is_published(ca: TestCa) -> None:
    prepared, der = response(ca, CertificateStatus(serial=SERIAL))
    other, _ = response(ca, CertificateStatus(serial=SERIAL, revoked_at=NOW, reason=RevocationReason.SUPERSEDED))
    with pytest.raises(SignatureMismatch, match="not the one"):
        check_response(der, other, responder(ca))
    with pytest.raises(SignatureMismatch):
        check_response(b"\x30", prepared, responder(ca))  # DigiCert 2019: a body of one byte or so
    wrong = assemble_response(prepared, responder(ca), make_ca().sign(prepared.tbs))
    with pytest.raises(SignatureMismatch):
        check_response(wrong, prepared, responder(ca))


def test_a_response_carries_the_very_signature_that_was_verified(ca: TestCa) -> None:
    prepared, der = response(ca, CertificateStatus(serial=SERIAL))
    signature = ocsp.load_der_ocsp_response(der).signature
    check_response(der, prepared, responder(ca), verified_signature=signature)
    with pytest.raises(SignatureMismatch, match="not the one"):
        check_response(der, prepared, responder(ca), verified_signature=ca.sign(prepared.tbs))
