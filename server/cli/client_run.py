"""What `certmill client …` does: change the clients in the database, also while certmill serves.

Each function returns the exit code: 1 when the operator asked for something that cannot be done.
"""

import asyncio
import getpass
import hashlib
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import typer
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from server.auth.directory import ClientDirectory
from server.auth.limits import Limits
from server.cli.client_sheet import plain, sheet, table, write_json
from server.cli.console import console_for
from server.cli.guard import guarded, read_config
from server.clock import utc_now
from server.errors import ConfigError, InvalidRequest, RequestRefused
from server.home import Home
from server.issuance.profile_files import profile_names, read_profile_files
from server.storage.database import Database
from server.storage.place import is_initialised, no_database, place_of
from server.usage.report import UsageReports

EXIT_REFUSED = 1
_LONGEST_BYTES = 2**20


def add(name: str, certificate: Path, limits: Limits) -> int:
    """Add a client."""
    told = (
        f"client {name} is there; it calls with a certificate of this CA for the key in {certificate}, under the "
        "profile tls-client, which a client issues that has this profile (docs/operating.md, Clients)"
    )
    return _change(lambda directory: directory.add(name, _spki_sha256(certificate), limits), told)


def limit(name: str, limits: Limits) -> int:
    """Replace limits of a client."""
    return _change(lambda directory: directory.limit(name, limits), f"client {name} has these limits now")


def pin(name: str, certificate: Path) -> int:
    """Pin a client to another key."""
    told = f"client {name} is known by the key in {certificate} now, and by no other"
    return _change(lambda directory: directory.pin(name, _spki_sha256(certificate)), told)


def disable(name: str, *, disabled: bool) -> int:
    """Refuse a client, or accept it again."""
    told = f"client {name} is {'refused from now on' if disabled else 'accepted again'}"
    return _change(lambda directory: directory.disable(name, disabled=disabled), told)


def list_clients(*, as_json: bool) -> int:
    """Print all clients."""

    async def print_all(directory: ClientDirectory, _: Database) -> None:
        records = await directory.records()
        if as_json:
            write_json({"clients": [plain(one) for one in records]})
        else:
            console_for(sys.stdout).print(table(records))

    return _run(print_all)


def show(name: str, *, as_json: bool) -> int:
    """Print one client with its usage."""

    async def print_one(directory: ClientDirectory, database: Database) -> None:
        (record,) = await directory.records(name)
        usage = await UsageReports(database, utc_now).of(name)
        if as_json:
            write_json({**plain(record), "usage": usage})
        else:
            console_for(sys.stdout).print(sheet(record, usage))

    return _run(print_one)


def _change(work: Callable[[ClientDirectory], Awaitable[None]], told: str) -> int:
    code = _run(lambda directory, _: work(directory))
    if code == 0:
        typer.echo(told)
    return code


def _run(work: Callable[[ClientDirectory, Database], Awaitable[None]]) -> int:
    """Open the database and do it; what the operator can mend becomes one line."""
    refused = 0

    async def main() -> None:
        nonlocal refused
        config = read_config()
        place = await asyncio.to_thread(place_of, config)
        if not is_initialised(place):
            raise ConfigError(no_database(Home(config.home), place))
        names = profile_names(read_profile_files(Home(config.home).profiles))
        async with Database(place) as database:
            directory = ClientDirectory(
                database, utc_now, operator=f"operator:{getpass.getuser()}", profiles=names
            )
            try:
                await work(directory, database)
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
