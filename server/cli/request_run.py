"""What `certmill request` does: key, CSR, call, files; each step may be the last before a crash."""

import hashlib
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import typer
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from client.api import CertmillClient
from client.errors import CertmillError
from client.files import PRIVATE, PUBLIC, whole_file
from client.messages import Certificate
from pkix.attributes import BY_NAME
from server.cli.calling import print_json, run
from server.cli.connection import Connection
from server.cli.pending import Pending, PendingFile
from server.errors import RequestRefused

_LONGEST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the certificate is to say."""

    profile: str
    subject: dict[str, str]
    names: dict[str, list[str]]
    validity_days: int | None

    @classmethod
    def of(
        cls, *, profile: str, subject: list[str], names: dict[str, list[str]], validity_days: int | None
    ) -> Self:
        """Parse the options; ends the command if one is wrong."""
        pairs = [text.partition("=") for text in subject]
        for (name, equals, value), text in zip(pairs, subject, strict=True):
            if not equals or not name or not value:
                raise typer.BadParameter(f"{text!r} is not ATTRIBUTE=VALUE", param_hint="--subject")
            if [other for other, _, _ in pairs].count(name) > 1:
                raise typer.BadParameter(f"{name} is there twice", param_hint="--subject")
        parsed = {name: value for name, _, value in pairs}
        return cls(profile=profile, subject=parsed, names=names, validity_days=validity_days)


@dataclass(frozen=True, slots=True)
class Output:
    """The files that are written; `key` is None with a CSR from elsewhere."""

    key: Path | None
    certificate: Path
    pending: PendingFile

    @classmethod
    def at(cls, out: Path, *, with_key: bool) -> Self:
        """Name them after OUT; a dot in a name is no suffix (www.example.gov)."""
        key, certificate, pending = (out.with_name(out.name + end) for end in (".key", ".pem", ".pending"))
        return cls(key if with_key else None, certificate, PendingFile(pending))

    def refuse_to_replace(self) -> None:
        """Raise `RequestRefused` if something is there that no earlier run is to finish."""
        for path in (self.key, self.certificate):
            if path is not None and path.exists() and not self.pending.path.exists():
                raise _taken(path)

    def write(self, pending: Pending, issued: Certificate, *, force: bool) -> None:
        """Write key and certificate, then forget the request; may be repeated after any of its steps."""
        if self.key is not None:
            _put(self.key, pending.private_key.encode(), PRIVATE, force=force)
        _put(self.certificate, issued.pem.encode(), PUBLIC, force=force)
        self.pending.done()


def request(
    connection: Connection, wanted: Wanted, *, out: Path | None, csr: Path | None, force: bool, as_json: bool
) -> int:
    """Ask for a certificate and write it; returns the exit code."""

    def work(certmill: CertmillClient) -> int:
        target = out or (csr and csr.with_suffix(""))
        if target is None:
            raise RequestRefused(
                "is missing", field="--out", remedy="say where key and certificate are to be written"
            )
        if not target.parent.is_dir():
            raise RequestRefused(f"there is no directory {target.parent}", field="--out", remedy="make it first")
        output = Output.at(target, with_key=csr is None)
        given = None if csr is None else _read_csr(csr)
        if not force:
            output.refuse_to_replace()
        pending = output.pending.claim(_asked(wanted, given), lambda: _make(wanted, given))
        try:
            issued = certmill.issue(
                pending.csr,
                wanted.profile,
                subject=(wanted.subject or None) if given else None,
                names=(wanted.names or None) if given else None,
                validity_days=wanted.validity_days,
                idempotency_key=pending.idempotency_key,
            )
        except CertmillError as error:
            output.pending.failed(error)
            raise
        output.write(pending, issued, force=force)
        _report(output, issued, as_json=as_json)
        return 0

    return run(connection, work, as_json=as_json)


def _read_csr(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(_LONGEST_BYTES)
    try:
        load = x509.load_pem_x509_csr if content.lstrip().startswith(b"-----") else x509.load_der_x509_csr
        return load(content).public_bytes(Encoding.PEM).decode("ascii")
    except ValueError:
        raise RequestRefused(
            f"{path} is no PKCS #10 request", field="--csr", remedy="make one with openssl req"
        ) from None


def _asked(wanted: Wanted, csr: str | None) -> dict[str, object]:
    return {
        "profile": wanted.profile,
        "subject": wanted.subject,
        "names": wanted.names,
        "validity_days": wanted.validity_days,
        "csr_sha256": csr and hashlib.sha256(csr.encode()).hexdigest(),
    }


def _make(wanted: Wanted, csr: str | None) -> Pending:
    """Make key and CSR, unless there is a CSR."""
    asked = _asked(wanted, csr)
    if csr is not None:
        return Pending(asked=asked, csr=csr)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(wanted.subject))
    if wanted.names:
        builder = builder.add_extension(x509.SubjectAlternativeName(_general_names(wanted.names)), critical=False)
    made = builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Pending(asked=asked, csr=made.decode("ascii"), private_key=private.decode("ascii"))


def _name(subject: dict[str, str]) -> x509.Name:
    attributes = []
    for name, value in subject.items():
        if name not in BY_NAME:
            raise RequestRefused(f"no attribute {name}", field="--subject", remedy=f"use {', '.join(BY_NAME)}")
        try:
            attributes.append(x509.NameAttribute(BY_NAME[name].oid, value))
        except ValueError as error:
            raise RequestRefused(f"{name}: {error}", field="--subject", remedy="give another value") from None
    return x509.Name(attributes)


def _general_names(names: dict[str, list[str]]) -> list[x509.GeneralName]:
    made: list[x509.GeneralName] = []
    for kind, values in names.items():
        for value in values:
            try:
                made.append(_GENERAL_NAMES[kind](value))
            except ValueError as error:  # beyond ASCII, or no address
                raise RequestRefused(
                    f"{value}: {error}",
                    field=f"--{kind}",
                    remedy="write it as it stands in certificates (xn--… in DNS)",
                ) from None
    return made


_GENERAL_NAMES = {
    "dns": x509.DNSName,
    "ip": lambda text: x509.IPAddress(ipaddress.ip_address(text)),
    "email": x509.RFC822Name,
    "uri": x509.UniformResourceIdentifier,
}


def _put(path: Path, content: bytes, mode: int, *, force: bool) -> None:
    """Write a file; one that holds this already is what an earlier run wrote."""
    try:
        with whole_file(path, mode=mode, replace=force) as file:
            file.write(content)
    except FileExistsError:
        if path.read_bytes() != content:
            raise _taken(path) from None


def _taken(path: Path) -> RequestRefused:
    return RequestRefused(
        "is there already", field=str(path), remedy="use another --out, or --force to replace it"
    )


def _report(output: Output, issued: Certificate, *, as_json: bool) -> None:
    files = {"certificate": output.certificate, **({"key": output.key} if output.key else {})}
    if as_json:
        print_json({"certificate": issued, "files": {name: str(path) for name, path in files.items()}})
        return
    until = issued.not_after.date().isoformat()
    whose = issued.subject or ", ".join(issued.dns_names) or "no subject"
    typer.echo(f"{output.certificate}: {whose}, serial {issued.serial}, until {until}")
    if output.key is not None:
        typer.echo(f"{output.key}: its private key")
