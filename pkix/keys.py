"""Whether a subject's public key is good enough (BR 6.1.1.3, RFC 5480, NIST SP 800-89 §5.3.3)."""

import math

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from pkix.errors import KeyRejected

SubjectPublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

NEW_KEY = "make a new key: RSA of 2048, 3072 or 4096 bits with exponent 65537, or ECDSA P-256 or P-384"

_MIN_RSA_BITS, _MAX_RSA_BITS = 2048, 8192
_MIN_EXPONENT, _MAX_EXPONENT = 65537, 1 << 256
_CURVES = frozenset({"secp256r1", "secp384r1", "secp521r1"})


def _primorial(bound: int) -> int:
    sieve = [True] * bound
    product = 1
    for number in range(3, bound):
        if sieve[number] and number % 2:
            product *= number
            sieve[number * number :: number] = [False] * len(sieve[number * number :: number])
    return product


_SMALL_ODD_PRIMES = _primorial(752)


def check_subject_key(public_key: object) -> SubjectPublicKey:
    """Return the key, narrowed, if a certificate may carry it; raises `KeyRejected`.

    RSA of 2048 to 8192 bits in whole bytes, odd exponent of at least 65537, no factor below 752;
    or P-256, P-384 or P-521 (the library refuses points off the curve). Cost: about 5 µs.
    """
    if isinstance(public_key, rsa.RSAPublicKey):
        _check_rsa(public_key)
        return public_key
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        if public_key.curve.name not in _CURVES:
            raise _rejected(f"curve {public_key.curve.name} is not accepted")
        return public_key
    raise _rejected("this kind of key is not accepted")


def _check_rsa(public_key: rsa.RSAPublicKey) -> None:
    numbers = public_key.public_numbers()
    bits = public_key.key_size
    if bits < _MIN_RSA_BITS:
        raise _rejected(f"RSA key of {bits} bits is too short")
    if bits > _MAX_RSA_BITS or bits % 8:
        raise _rejected(f"RSA key of {bits} bits is not accepted")
    if not (_MIN_EXPONENT <= numbers.e < _MAX_EXPONENT) or numbers.e % 2 == 0:
        raise _rejected("RSA public exponent is not accepted")
    if numbers.n % 2 == 0 or math.gcd(numbers.n, _SMALL_ODD_PRIMES) != 1:
        raise _rejected("RSA modulus has a small factor")


def _rejected(detail: str) -> KeyRejected:
    return KeyRejected(detail, field="csr", remedy=NEW_KEY)
