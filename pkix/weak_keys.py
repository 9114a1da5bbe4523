"""Keys that look like others and can be broken (BR 6.1.1.3): badkeys' checks that need no network.

ROCA (CVE-2017-15361), close primes (Fermat, CVE-2022-26320), primes shared with keys of public surveys, small
factors, patterns and polynomials in the modulus. A private exponent small enough for Wiener's attack needs a
public one as long as the modulus, which `check_subject_key` has refused. EC keys: their points are
checked when they are parsed. Blocklists of leaked keys (Debian's of 2008 among them) are not part of badkeys and
not loaded; keys that this CA knows to be compromised are in its own database.
"""

from collections.abc import Callable
from typing import Any

from badkeys.rsakeys import fermat, pattern, roca, rsapoly, sharedprimes, smallfactors, xzbackdoor
from cryptography.hazmat.primitives.asymmetric import rsa

from pkix.errors import KeyRejected
from pkix.keys import NEW_KEY, SubjectPublicKey

_CHECKS: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("has small factors", smallfactors),
    ("is of a library with the ROCA defect (CVE-2017-15361)", roca),
    ("is the product of two close primes (CVE-2022-26320)", fermat),
    ("has a repeated pattern", pattern),
    ("has a pattern that makes it easy to factor", rsapoly),
    ("carries the xz backdoor's signal", xzbackdoor),
    ("shares a prime with other keys that were published", sharedprimes),
)


def check_weaknesses(public_key: SubjectPublicKey) -> None:
    """Raise `KeyRejected` if badkeys can tell that somebody may know the private key.

    The key has passed `check_subject_key`. Cost: 0.45 ms for RSA-2048, 0.2 to 0.3 ms for 3072 and 4096 bits;
    nothing for EC. The first call for a size of RSA reads a file of badkeys
    (see `load_known_primes`).
    """
    if not isinstance(public_key, rsa.RSAPublicKey):
        return
    numbers = public_key.public_numbers()
    for what, is_weak in _CHECKS:
        if is_weak(numbers.n, e=numbers.e):
            raise KeyRejected(f"the RSA key {what}", field="csr", remedy=NEW_KEY)


def load_known_primes() -> None:
    """Load what the check for shared primes reads: 80 kB. Blocking, 1 ms; call it before serving."""
    for bits in (2048, 4096):
        sharedprimes((1 << bits) - 1, e=65537)
