import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from pkix.algorithms import BY_KEY_ALGORITHM, SIGNATURE_ALGORITHMS, KeyAlgorithm
from tests.support.ca import TestCa, make_ca
from tests.unit.pkix.authorities import PrivateKey, generate


@pytest.fixture(scope="session")
def ca() -> TestCa:
    return make_ca()


@pytest.fixture(scope="session")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="session")
def rsa_ca(rsa_key: rsa.RSAPrivateKey) -> TestCa:
    return make_ca(rsa_key)


@pytest.fixture(scope="session")
def key_of_kind(rsa_key: rsa.RSAPrivateKey) -> dict[KeyAlgorithm, PrivateKey]:
    return {kind: rsa_key if kind is KeyAlgorithm.RSA_2048 else generate(kind) for kind in KeyAlgorithm}


@pytest.fixture(scope="session")
def key_of(key_of_kind: dict[KeyAlgorithm, PrivateKey]) -> dict[str, PrivateKey]:
    """A key for the name of every signature algorithm: the default's of its kind, RSA-2048 for all of RSA."""
    return _by_name(key_of_kind)


@pytest.fixture(scope="session")
def another_key_of() -> dict[str, PrivateKey]:
    """Other keys than `key_of`, for those whom a CA certifies."""
    kinds = set(KeyAlgorithm) - {KeyAlgorithm.RSA_3072, KeyAlgorithm.RSA_4096}
    return _by_name({kind: generate(kind) for kind in kinds})


def _by_name(keys: dict[KeyAlgorithm, PrivateKey]) -> dict[str, PrivateKey]:
    of_default = {BY_KEY_ALGORITHM[kind].name: key for kind, key in keys.items()}
    rsa_key = keys[KeyAlgorithm.RSA_2048]
    return {
        name: rsa_key if row.rsa_padding is not None else of_default[name]
        for name, row in SIGNATURE_ALGORITHMS.items()
    }
