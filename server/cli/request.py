"""`certmill request`: how the command is called; request_run.py does what it does."""

from pathlib import Path
from typing import Annotated

import typer

from server.cli.connection import AsJson, Ca, Certificate, Connection, Key, Url

Subject = Annotated[
    list[str] | None,
    typer.Option(
        "--subject", metavar="ATTRIBUTE=VALUE", help="As CN=www.example.gov; repeat for more attributes."
    ),
]
Dns = Annotated[list[str] | None, typer.Option("--dns", help="A DNS name; repeat for more.")]
Ip = Annotated[list[str] | None, typer.Option("--ip", help="An IP address; repeat for more.")]
Email = Annotated[list[str] | None, typer.Option("--email", help="An e-mail address; repeat for more.")]
Uri = Annotated[list[str] | None, typer.Option("--uri", help="A URI; repeat for more.")]


def request(
    *,
    profile: Annotated[str, typer.Option(help="What kind of certificate.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Writes OUT.key and OUT.pem; with --csr, CSR's name if left out."),
    ] = None,
    csr: Annotated[
        Path | None, typer.Option(help="A PKCS #10 file instead of a new key (P-256) and request.")
    ] = None,
    subject: Subject = None,
    dns: Dns = None,
    ip: Ip = None,
    email: Email = None,
    uri: Uri = None,
    validity_days: Annotated[int | None, typer.Option(min=1, help="Shortens the profile's validity.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a key and certificate that are there.")] = False,
    url: Url = None,
    client_certificate: Certificate = None,
    client_key: Key = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Make a key, ask certmill for a certificate, and write both. Safe to run again after whatever happened."""
    from server.cli import request_run  # noqa: PLC0415 - only this command needs it

    names = {"dns": dns, "ip": ip, "email": email, "uri": uri}
    wanted = request_run.Wanted.of(
        profile=profile,
        subject=subject or [],
        names={kind: values for kind, values in names.items() if values},
        validity_days=validity_days,
    )
    connection = Connection(url=url, certificate=client_certificate, key=client_key, ca=ca)
    raise typer.Exit(request_run.request(connection, wanted, out=out, csr=csr, force=force, as_json=as_json))
