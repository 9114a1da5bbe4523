"""Which key a label stands for."""

import hashlib
from types import SimpleNamespace
from typing import cast

import pytest

from signer_pool.errors import KeyMismatch, UnknownKey
from signer_pool.key_ring import KeyRing
from signer_pool.lane import Lane
from tests.unit.signer_pool.played import KEY, KEYS, OTHER_SPKI, SPKI


def lane(**keys: bytes) -> Lane:
    return cast("Lane", SimpleNamespace(public_keys=keys))


def test_first_key_shown_counts_where_none_is_expected() -> None:
    ring = KeyRing()
    assert ring.adopt(lane(ec=SPKI)) == {"ec"}
    with pytest.raises(KeyMismatch, match="'ec' is not the one"):
        ring.adopt(lane(ec=OTHER_SPKI))
    ring.pin("ec", KEY.public_key())


def test_expected_key_counts_whoever_comes_first() -> None:
    ring = KeyRing({"ec": hashlib.sha256(SPKI).digest(), "absent": b"?"})
    with pytest.raises(KeyMismatch):
        ring.adopt(lane(ec=OTHER_SPKI))
    with pytest.raises(UnknownKey):
        ring.public_key("ec")
    assert ring.adopt(lane(ec=SPKI)) == {"ec"}
    assert ring.labels() == {"ec"}


def test_token_with_one_wrong_key_leaves_no_trace() -> None:
    ring = KeyRing()
    ring.adopt(lane(ec=SPKI))
    with pytest.raises(KeyMismatch):
        ring.adopt(lane(aaa=OTHER_SPKI, ec=OTHER_SPKI))
    assert ring.labels() == {"ec"}


def test_new_key_takes_the_place_of_one_that_was_expected_and_is_gone() -> None:
    ring = KeyRing({"ocsp": b"of a token that is lost"})
    ring.made("ocsp", SPKI)
    assert ring.adopt(lane(ocsp=SPKI)) == {"ocsp"}


def test_keys_of_other_kinds_are_left_alone() -> None:
    ring = KeyRing()
    assert ring.adopt(lane(**dict(KEYS), garbage=b"\x30\x00")) == {"ec"}
