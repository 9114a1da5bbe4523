"""What is wrong with a row's values is that row's problem; what is wrong with its shape is the batch's."""

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from pkix.errors import MalformedCsr
from pkix.profile import Profile
from server.batches.rows import RowChecker, asked_names, csr_bytes, decode_row
from server.errors import BrokenBatch, InvalidRequest
from tests.support.ca import make_csr
from tests.support.profiles import BUILT_IN


def named(name: str) -> Profile:
    if name not in BUILT_IN or BUILT_IN[name].internal:
        raise InvalidRequest("there is no profile", field="profile", remedy="use another")
    return BUILT_IN[name]


def checker(*, days: int | None = None, text: bool = False) -> RowChecker:
    return RowChecker(named=named, request_id="r-1", validity_days=days, text=text)


def test_a_row_is_kept_with_its_profile_version_and_validity() -> None:
    row = checker(days=90).check(7, {"csr": "x", "reference": "n 1", "profile": "tls-client"})
    assert (row.number, row.reference, row.problem) == (7, "n 1", None)
    kept = decode_row(row.request)
    assert (kept.profile, kept.validity_days) == (BUILT_IN["tls-client"].identity, 90)
    assert decode_row(checker(days=90).check(1, {"csr": "x", "validity_days": 5}).request).validity_days == 5


def test_names_beside_the_csr_are_handed_over() -> None:
    row = {
        "csr": "x",
        "subject": {"CN": "a", "OU": ["b", "c"]},
        "names": {"dns": ["a.gov"], "ip": ["::1"], "email": ["x@y"]},
    }
    asked = asked_names(decode_row(checker().check(1, row).request))
    assert asked is not None
    assert asked.subject == (("CN", "a"), ("OU", "b"), ("OU", "c"))
    assert (asked.dns_names, asked.ip_addresses, asked.emails, asked.uris) == (("a.gov",), ("::1",), ("x@y",), ())
    assert asked_names(decode_row(checker().check(1, {"csr": "x"}).request)) is None


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({}, "csr"),
        ({"csr": 5}, "csr"),
        ({"csr": ""}, "csr"),
        ({"csr": "x" * 65537}, "csr"),
        ({"csr": "x", "validity_days": 0}, "validity_days"),
        ({"csr": "x", "validity_days": "30"}, "validity_days"),
        ({"csr": "x", "profile": "no-such"}, "profile"),
        ({"csr": "x", "profile": "ocsp-responder"}, "profile"),
        ({"csr": "x", "reference": "r" * 129}, "reference"),
        ({"csr": "x", "reference": "a\0b"}, "reference"),
        ({"csr": "x", "names": {"dns": "a.gov"}}, "names.dns"),
        ({"csr": "x", "names": {"other": []}}, "names"),
        ({"csr": "x", "subject": {"CN": 5}}, "subject[...]"),
    ],
)
def test_a_wrong_value_fails_its_row_alone(row: dict[str, Any], field: str) -> None:
    kept = checker().check(3, {"reference": "mine", **row})
    assert kept.problem is not None
    assert kept.problem["field"] == field
    assert kept.problem["type"] == "/docs#invalid-request"
    assert kept.problem["remedy"]
    assert kept.reference is not None  # so that its sender finds it again
    assert kept.reference.isprintable()


def test_numbers_of_a_csv_are_text() -> None:
    good = checker(text=True).check(1, {"csr": "x", "validity_days": "30"})
    assert decode_row(good.request).validity_days == 30
    bad = checker(text=True).check(1, {"csr": "x", "validity_days": "many"})
    assert bad.problem is not None
    assert bad.problem["field"] == "validity_days"


def test_an_unknown_member_breaks_the_batch() -> None:
    with pytest.raises(BrokenBatch, match="row 3: there is no member 'csrr'") as caught:
        checker().check(3, {"csrr": "x"})
    assert caught.value.field == "csrr"


def test_a_csr_is_pem_or_base64_of_der() -> None:
    pem, der = make_csr("a.gov"), make_csr("a.gov", encoding=Encoding.DER)
    assert csr_bytes(pem.decode()) == pem
    assert csr_bytes(base64.encodebytes(der).decode()) == der
    for wrong in ("!", "MII", "MIIກ"):
        with pytest.raises(MalformedCsr):
            csr_bytes(wrong)
