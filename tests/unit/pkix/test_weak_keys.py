"""Keys that can be broken are refused. All are made here but one: nobody can make a key that others have published."""

import math
import secrets

import gmpy2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from pkix.errors import KeyRejected
from pkix.keys import SubjectPublicKey, check_subject_key
from pkix.weak_keys import check_weaknesses, load_known_primes

# The public key of a certificate in crt.sh (5534506057).
SHARED_PRIME = """-----BEGIN RSA PUBLIC KEY-----
MIIBCgKCAQEAtQS720djHoBY2eXEDsMNGi6GWY/B37TyGO6tAgQJnweAvk5ABi3A
KaOJzHQLmqpkzzh92z2FHzZpKoOiy4Eq0tt4J20zgFPiYdAG5mffTcgtMhymCXBc
AaUjuZCcyYIIDdENnaP3wTPo0FEdWozb0/4+SNJ1IhlwyQGUu77mAHgr3Q2j/GqY
0RSIbikmgV7NUpf6PA8JAlm2+lQQj9YjurMI5K9BQZPRGm84E2nSe4zT2NkaKrzO
bH+mFd5dRlzi00FXaMF06ViYiwKgW27ef1ZCD3Z0yFZ7uaNaGAnflsOUsoaMutSk
QPs0JEAVmnVkjCfpTKylM9D/B0ZjutZspQIDAQAB
-----END RSA PUBLIC KEY-----
"""


def read(pem: str) -> SubjectPublicKey:
    return check_subject_key(load_pem_public_key(pem.encode()))


def prime(bits: int) -> int:
    return int(gmpy2.next_prime(secrets.randbits(bits) | 3 << (bits - 2)))


def made(modulus: int, exponent: int = 65537) -> SubjectPublicKey:
    return check_subject_key(rsa.RSAPublicNumbers(exponent, modulus).public_key())


def with_roca() -> SubjectPublicKey:
    """Infineon's library made primes of the form k * M + (65537 ** a mod M), M the product of the first 126 primes."""
    product = int(gmpy2.primorial(701))

    def roca_prime() -> int:
        room = 1024 - product.bit_length()
        while True:
            k = secrets.randbits(room) | 3 << (room - 2)
            found = k * product + pow(65537, secrets.randbits(64), product)
            if gmpy2.is_prime(found):
                return found

    return made(roca_prime() * roca_prime())


def with_close_primes() -> SubjectPublicKey:
    first = prime(1024)
    return made(first * int(gmpy2.next_prime(first + 2**100)))


def with_small_factor() -> SubjectPublicKey:
    while (modulus := 60013 * prime(2032)).bit_length() % 8:
        pass
    return made(modulus)


def with_small_private_exponent() -> SubjectPublicKey:
    """Wiener's attack wants d < n^(1/4) / 3; an exponent of 256 bits at most can only have such a d by chance.

    With d of 60 bits its public exponent is as long as n, which `check_subject_key` refuses before.
    """
    p, q = prime(1024), prime(1024)
    private = prime(60)
    return made(p * q, pow(private, -1, math.lcm(p - 1, q - 1)))


def with_pattern() -> SubjectPublicKey:
    while True:
        modulus = (
            int.from_bytes(b"\xc1" + secrets.token_bytes(100) + b"\x5a" * 16 + secrets.token_bytes(139), "big") | 1
        )
        if math.gcd(modulus, int(gmpy2.primorial(65537))) == 1:
            return made(modulus)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (lambda: read(SHARED_PRIME), "shares a prime"),
        (with_roca, "ROCA"),
        (with_close_primes, "close primes"),
        (lambda: made(prime(1024) ** 2), "close primes"),
        (with_small_factor, "small factors"),
        (with_pattern, "repeated pattern"),
        (with_small_private_exponent, "exponent is not accepted"),
    ],
    ids=["shared prime", "ROCA", "close primes", "square", "small factor", "pattern", "small private exponent"],
)
def test_a_weak_key_is_refused_with_its_weakness(key: object, why: str) -> None:
    load_known_primes()
    with pytest.raises(KeyRejected, match=why) as refused:
        check_weaknesses(key())  # type: ignore[operator]
    assert refused.value.field == "csr"
    assert "make a new key" in refused.value.remedy


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
@pytest.mark.parametrize("exponent", [65537, (1 << 255) + 95])
def test_sound_rsa_keys_pass(bits: int, exponent: int) -> None:
    while True:
        modulus = prime(bits // 2) * prime(bits // 2)
        if modulus.bit_length() == bits:
            break
    check_weaknesses(made(modulus, exponent))


def test_ec_keys_need_no_factors() -> None:
    check_weaknesses(ec.generate_private_key(ec.SECP256R1()).public_key())


def test_a_point_off_the_curve_is_no_key() -> None:
    point = b"\x04" + b"\x01" * 64
    with pytest.raises(ValueError, match="Invalid EC key"):
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
