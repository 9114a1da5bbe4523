"""How the commands of a ministry system are told where the API is. Loaded by every command: it loads little."""

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from server.config import CLIENT_VARIABLES

_URL, _CERTIFICATE, _KEY, _CA = CLIENT_VARIABLES

Url = Annotated[
    str | None, typer.Option("--url", envvar=_URL, help="The API, for example https://pki.example.gov:8443")
]
Certificate = Annotated[
    Path | None,
    typer.Option("--client-certificate", envvar=_CERTIFICATE, help="PEM: the certificate to call with."),
]
Key = Annotated[Path | None, typer.Option("--client-key", envvar=_KEY, help="PEM: its private key.")]
Ca = Annotated[
    Path | None, typer.Option("--ca", envvar=_CA, help="PEM: the root that the API's certificate is from.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


class Connection(NamedTuple):
    """What was said about the API: everything, or nothing for the demo client of the certmill of this home."""

    url: str | None
    certificate: Path | None
    key: Path | None
    ca: Path | None
