"""Keys in files, in this process."""

import base64
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519

from pkix.algorithms import (
    BY_KEY_ALGORITHM,
    SIGNATURE_ALGORITHMS,
    KeyAlgorithm,
    algorithm_for,
    key_algorithm,
    verify_signature,
)
from pkix.errors import UnsupportedKey
from signer_pool.ckr import Action
from signer_pool.errors import KeyExists, LaneStartError, PinRejected, TokenRefused
from signer_pool.lane import TokenFacts
from signer_pool.lane_config import SoftwareLaneConfig
from signer_pool.lane_process import open_session
from signer_pool.software import SoftwareSession
from tests.unit.signer_pool.lanes import PASSPHRASE, p256_config, software_config


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> SoftwareSession:
    """A session with a key of every kind."""
    kinds = [(algorithm.value, algorithm) for algorithm in KeyAlgorithm]
    session = SoftwareSession(software_config(tmp_path_factory.mktemp("keys"), *kinds))
    session.public_keys()
    return session


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_keys_of_every_kind(every_kind: SoftwareSession, algorithm: KeyAlgorithm) -> None:
    public_key: Any = serialization.load_der_public_key(every_kind.public_keys()[algorithm.value])
    assert key_algorithm(public_key) is algorithm
    name = BY_KEY_ALGORITHM[algorithm].name
    verify_signature(public_key, b"tbs", every_kind.signer(algorithm.value, name)(b"tbs"))


@pytest.mark.parametrize("name", list(SIGNATURE_ALGORITHMS))
def test_signatures_of_every_row(every_kind: SoftwareSession, name: str) -> None:
    row = SIGNATURE_ALGORITHMS[name]
    signed = 0
    for key, spki_der in every_kind.public_keys().items():
        public_key: Any = serialization.load_der_public_key(spki_der)
        try:
            assert algorithm_for(public_key, name) is row
        except UnsupportedKey:
            continue
        verify_signature(public_key, b"tbs", every_kind.signer(key, name)(b"tbs"), row)
        signed += 1
    assert signed


def test_what_a_directory_says_of_itself(tmp_path: Path) -> None:
    session = open_session(p256_config(tmp_path))
    assert session.token == f"software keys in {tmp_path}"
    assert session.facts() == TokenFacts(label="software", manufacturer="certmill", model="software keys")
    assert session.notes() == []
    session.touch()


def test_key_files_are_encrypted_and_private(tmp_path: Path) -> None:
    p256_config(tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.name == "ec.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")


def test_no_key_is_ever_replaced(tmp_path: Path) -> None:
    config = p256_config(tmp_path)
    before = (tmp_path / "ec.pem").read_bytes()
    with pytest.raises(KeyExists):
        SoftwareSession(config).generate("ec", KeyAlgorithm.EC_P256)
    assert (tmp_path / "ec.pem").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_key_that_is_not_read_yet_is_looked_for_again(tmp_path: Path) -> None:
    session = SoftwareSession(p256_config(tmp_path))
    with pytest.raises(TokenRefused, match="no key 'ec'") as caught:
        session.signer("ec", "ecdsa-with-SHA256")
    assert caught.value.ckr.action is Action.REOPEN
    session.reopen()
    session.signer("ec", "ecdsa-with-SHA256")
    (tmp_path / "ec.pem").unlink()
    session.reopen()
    with pytest.raises(TokenRefused):
        session.signer("ec", "ecdsa-with-SHA256")


# A key on a curve that the library does not know, sm2p256v1, under PASSPHRASE.
SM2 = b"""\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAhrFCb/3opRcgICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEOY1yT2lRzWsecyIMLIM4uEEgZAS
wKjiHqNGVsQ2WR0F0ZQP5U/tBa/vkmhNxWRrmXOw1ggNiAEnyI+PdSnithXT9Bje
MEGsBad2NtaQ7qn3u/KVEpQxKOcVOvurdgLkJi/5q6bAlHQ1KpVPPzTkDFdypWWv
8MSgDGoMiLXSK73y5l0Hue9Hpf29iDIaaaEKGm1gBEIB84r+XC8U/R5T0l/2pik=
-----END ENCRYPTED PRIVATE KEY-----
"""


def _pem(key: Any, passphrase: bytes | None = PASSPHRASE.encode()) -> bytes:
    cipher = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, cipher))


def _damaged(pem: bytes) -> bytes:
    """Change the start of what is encrypted: its padding is right, its content is not."""
    head, body, foot = pem.partition(b"\n")[0], b"".join(pem.splitlines()[1:-1]), pem.splitlines()[-1]
    der = bytearray(base64.b64decode(body))
    der[-100] ^= 1
    return b"\n".join((head, base64.b64encode(der), foot, b""))


@pytest.mark.parametrize(
    ("pem", "error", "message"),
    [
        (b"nonsense", LaneStartError, "not a private key"),
        (_pem(ec.generate_private_key(ec.SECP256R1()), None), LaneStartError, "not encrypted"),
        (_pem(ec.generate_private_key(ec.SECP256R1()), b"other"), PinRejected, "wrong passphrase"),
        (_damaged(_pem(ec.generate_private_key(ec.SECP256R1()))), PinRejected, "wrong passphrase, or damaged"),
        (_pem(ed448.Ed448PrivateKey.generate()), LaneStartError, "cannot be used"),
        (_pem(ec.generate_private_key(ec.SECP256K1())), LaneStartError, "cannot be used"),
        (SM2, LaneStartError, "cannot be used"),
    ],
)
def test_key_that_cannot_be_used(tmp_path: Path, pem: bytes, error: type[Exception], message: str) -> None:
    (tmp_path / "bad.pem").write_bytes(pem)
    session = SoftwareSession(SoftwareLaneConfig(directory=str(tmp_path), passphrase=PASSPHRASE))
    with pytest.raises(error, match=message) as caught:
        session.public_keys()
    assert "bad.pem" in str(caught.value)


def test_file_of_an_ed25519_key_made_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "own.pem").write_bytes(_pem(ed25519.Ed25519PrivateKey.generate()))
    session = SoftwareSession(SoftwareLaneConfig(directory=str(tmp_path), passphrase=PASSPHRASE))
    assert set(session.public_keys()) == {"own"}


def test_directory_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(LaneStartError, match="no such directory"):
        SoftwareSession(SoftwareLaneConfig(directory=str(tmp_path / "x"), passphrase="p")).public_keys()


def test_new_key_is_on_the_disk_before_it_has_its_name_and_its_name_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate may be made for it at once: it must outlive a power cut."""
    steps: list[str] = []
    fsync, link = os.fsync, Path.hardlink_to

    def traced_fsync(descriptor: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def traced_link(self: Path, target: Path) -> None:
        steps.append("link")
        link(self, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(Path, "hardlink_to", traced_link)
    session = SoftwareSession(SoftwareLaneConfig(directory=str(tmp_path), passphrase=PASSPHRASE))
    session.generate("new", KeyAlgorithm.EC_P256)
    assert steps == ["file", "link", "directory"]
