"""certmill's own end-entity certificates: the API's TLS certificate and the demo client.

They are issued by the ordinary engine, so each has its row, its audit entries and its OCSP answer.
"""

import asyncio
import datetime as dt
import hashlib
import ipaddress
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import ParamSpec, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from pkix.errors import RequesterError
from pkix.issuer import Issuer
from pkix.profile import Profile
from server.auth.clients import CERTMILL, Client, ClientRegistry
from server.auth.permissions import ANY
from server.clock import Clock
from server.errors import ConfigError
from server.home import Home, write_file
from server.issuance.order import Order
from server.issuance.profile_files import TLS_CLIENT, TLS_SERVER
from server.issuance.profiles import ProfileRegistry
from server.issuance.service import IssuanceService

P = ParamSpec("P")
R = TypeVar("R")
RENEWAL = dt.timedelta(days=30)
DEMO = Client(name="demo", profiles=(ANY,), names=(ANY,), organizations=(ANY,), identifiers=(ANY,))


class OwnCertificates:
    """Issues and renews certificates whose keys are files of this home."""

    def __init__(
        self,
        *,
        home: Home,
        issuing: Issuer,
        issuance: IssuanceService,
        profiles: ProfileRegistry,
        files: Executor,
        clock: Clock,
    ) -> None:
        self._home = home
        self._files = files
        self._issuing = issuing
        self._issuance = issuance
        self._profiles = profiles
        self._clock = clock

    async def ensure_api(self, names: Sequence[str]) -> tuple[Path, Path]:
        """Return certificate chain and key files of the API listener, renewed 30 days before the end."""
        chain, key = self._home.secrets / "api-cert.pem", self._home.secrets / "api-key.pem"
        await self._ensure(chain, key, self._profiles.own(TLS_SERVER), x509.Name([]), names)
        return chain, key

    async def ensure_demo(self, registry: ClientRegistry) -> None:
        """Make the demo client, once: files in `clients/demo`, pinned to a client that may ask for anything.

        A demo client that operators removed or narrowed stays as they left it. On a shared database it is that of
        the home which made it: others have none.
        """
        directory = self._home.clients / "demo"
        await self._on_disk(_make_directory, directory)
        marker = directory / "enrolled"
        enrolled = await self._on_disk(Path.exists, marker)
        known = await registry.knows(DEMO.name)
        if enrolled != known and (enrolled or registry.shared):
            return
        profile = self._profiles.own(TLS_CLIENT)
        await self._ensure(directory / "cert.pem", directory / "key.pem", profile, _name("demo"), ())
        certificate = x509.load_pem_x509_certificate(await self._on_disk(Path.read_bytes, directory / "cert.pem"))
        spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        await registry.enrol(DEMO, hashlib.sha256(spki).digest())
        await self._on_disk(Path.touch, marker)

    async def _ensure(
        self, chain: Path, key_file: Path, profile: Profile, subject: x509.Name, names: Sequence[str]
    ) -> None:
        if await self._on_disk(self._usable, chain, key_file, names):
            return
        key = ec.generate_private_key(ec.SECP256R1())
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(n) for n in names]), critical=False
            )
        csr = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
        order = Order(client=CERTMILL, profile=profile, csr=csr, request_id=f"own-{chain.stem}")
        try:
            issued = await self._issuance.issue(order)
        except RequesterError as error:
            raise ConfigError(
                f"profile {profile.identity}: certmill cannot have its own certificate under it: {error.detail}; "
                "make it optional in the profile"
            ) from None
        certificate = x509.load_der_x509_certificate(issued.certificate_der)
        pem = certificate.public_bytes(Encoding.PEM) + self._issuing.certificate_pem.encode()
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        await self._on_disk(_write_pair, key_file, secret, chain, pem)

    async def _on_disk(self, work: Callable[P, R], *arguments: P.args, **_: P.kwargs) -> R:
        """Do blocking file work in the thread for it."""
        return await asyncio.get_running_loop().run_in_executor(self._files, work, *arguments)

    def _usable(self, chain: Path, key_file: Path, names: Sequence[str]) -> bool:
        """Say whether the files hold a matching, live certificate of this CA for these names."""
        try:
            certificate = x509.load_pem_x509_certificate(chain.read_bytes())
            key = load_pem_private_key(key_file.read_bytes(), None)
            certificate.verify_directly_issued_by(self._issuing.certificate)
        except (OSError, ValueError, TypeError, InvalidSignature):
            return False
        if certificate.not_valid_after_utc < self._clock() + RENEWAL:
            return False
        if certificate.not_valid_before_utc > self._clock():  # made while the clock was wrong
            return False
        return key.public_key() == certificate.public_key() and _has_names(certificate, names)


def _make_directory(path: Path) -> None:
    path.mkdir(exist_ok=True, mode=0o700)


def _write_pair(key_file: Path, secret: bytes, chain: Path, pem: bytes) -> None:
    """Write key and chain; a crash in between leaves a pair that does not match, which is made anew."""
    write_file(key_file, secret, mode=0o600)
    write_file(chain, pem)


def _has_names(certificate: x509.Certificate, names: Sequence[str]) -> bool:
    try:
        present = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return not names
    return {str(n.value) for n in present} == {str(_general_name(n).value) for n in names}


def _general_name(name: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
