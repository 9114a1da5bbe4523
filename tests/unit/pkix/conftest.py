import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.ca import TestCa, make_ca


@pytest.fixture(scope="session")
def ca() -> TestCa:
    return make_ca()


@pytest.fixture(scope="session")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="session")
def rsa_ca(rsa_key: rsa.RSAPrivateKey) -> TestCa:
    return make_ca(rsa_key)
