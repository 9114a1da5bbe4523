"""What `certmill client …` does: change the clients in the database, also while certmill serves.

Each function returns the exit code: 1 when the operator asked for something that cannot be done.
"""

import getpass
import hashlib
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import typer
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from rich.table import Table

from server.auth.directory import ClientDirectory, ClientRecord
from server.cli.console import console_for
from server.cli.guard import guarded, read_config
from server.clock import utc_now
from server.errors import ConfigError, InvalidRequest, RequestRefused
from server.home import Home
from server.issuance.profile_files import profile_names, read_profile_files
from server.storage.database import Database

EXIT_REFUSED = 1
_FINGERPRINT_DIGITS = 16
_LONGEST_BYTES = 2**20


def add(name: str, certificate: Path, profiles: Sequence[str], names: Sequence[str]) -> int:
    """Add a client."""
    return _run(lambda directory: directory.add(name, _spki_sha256(certificate), profiles, names))


def limit(name: str, profiles: Sequence[str] | None, names: Sequence[str] | None) -> int:
    """Replace what a client may ask for."""
    return _run(lambda directory: directory.limit(name, profiles, names))


def pin(name: str, certificate: Path) -> int:
    """Pin a client to another key."""
    return _run(lambda directory: directory.pin(name, _spki_sha256(certificate)))


def disable(name: str, *, disabled: bool) -> int:
    """Refuse a client, or accept it again."""
    return _run(lambda directory: directory.disable(name, disabled=disabled))


def list_clients(*, as_json: bool) -> int:
    """Print all clients."""

    async def show(directory: ClientDirectory) -> None:
        records = await directory.records()
        if as_json:
            sys.stdout.write(msgspec.json.encode({"clients": [_plain(one) for one in records]}).decode() + "\n")
        else:
            console_for(sys.stdout).print(_table(records))

    return _run(show)


def _run(work: Callable[[ClientDirectory], Awaitable[None]]) -> int:
    """Open the database and do it; what the operator can mend becomes one line."""
    refused = 0

    async def main() -> None:
        nonlocal refused
        home = Home(read_config().home)
        if not home.database.exists():
            raise ConfigError(f"{home.root} was never initialised: run `certmill init` first")
        names = profile_names(read_profile_files(home.profiles))
        async with Database(home.database) as database:
            directory = ClientDirectory(
                database, utc_now, operator=f"operator:{getpass.getuser()}", profiles=names
            )
            try:
                await work(directory)
            except RequestRefused as error:
                where = f"{error.field}: " if error.field else ""
                typer.echo(f"certmill: {where}{error.detail}; {error.remedy}", err=True)
                refused = EXIT_REFUSED

    return guarded(lambda: uvloop.run(main())) or refused


def _spki_sha256(path: Path) -> bytes:
    """Return the SHA-256 of the public key in a PEM file; raises `InvalidRequest`."""
    try:
        with path.open("rb") as file:
            key = _public_key(file.read(_LONGEST_BYTES))
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except OSError as error:
        raise _unusable(path, f"cannot be read ({error.strerror})") from None
    except Exception:
        raise _unusable(path, "holds no certificate, CSR or public key in PEM") from None
    return hashlib.sha256(spki).digest()


def _public_key(pem: bytes) -> PublicKeyTypes:
    if b"BEGIN CERTIFICATE REQUEST" in pem or b"BEGIN NEW CERTIFICATE REQUEST" in pem:
        return x509.load_pem_x509_csr(pem).public_key()
    if b"BEGIN CERTIFICATE" in pem:
        return x509.load_pem_x509_certificate(pem).public_key()
    return load_pem_public_key(pem)


def _unusable(path: Path, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"{path} {why}",
        field="--certificate",
        remedy="give a PEM file; never a private key, which stays with the client",
    )


def _plain(one: ClientRecord) -> dict[str, object]:
    return {
        "name": one.name,
        "profiles": one.profiles,
        "names": one.names,
        "disabled": one.disabled,
        "spki_sha256": one.spki_sha256.hex(),
        "live_certificates": one.live_certificates,
    }


def _table(records: Sequence[ClientRecord]) -> Table:
    table = Table("client", "may ask for", "names", "key (SHA-256)", "live certificates", "state")
    for one in records:
        table.add_row(
            one.name,
            ", ".join(one.profiles) or "nothing",
            ", ".join(one.names) or "none",
            one.spki_sha256.hex()[:_FINGERPRINT_DIGITS],
            str(one.live_certificates),
            "disabled" if one.disabled else "active",
        )
    return table
