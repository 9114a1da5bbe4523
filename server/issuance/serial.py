"""Serial numbers (RFC 5280 §4.1.2.2, BR 7.1.2.7)."""

import secrets
from collections.abc import Callable

from pkix.names import SerialNumber

RANDOM_BITS = 127
_SHORTEST = 1 << 64


def new_serial(randbits: Callable[[int], int] = secrets.randbits) -> SerialNumber:
    """Draw a serial number of 127 random bits, so that no octet is needed for the sign.

    Uniqueness is the database's business. A draw below 2**64 (once in 2**63) is drawn again: linters
    would take it for a counter.
    """
    while (serial := randbits(RANDOM_BITS)) < _SHORTEST:
        pass
    return SerialNumber(serial)
