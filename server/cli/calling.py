"""What all commands of a ministry system share: the connection, one line for what goes wrong, exit codes."""

import sys
from collections.abc import Callable

import msgspec
import typer

from client.api import CertmillClient
from client.errors import CertmillError, CertmillProblem, CertmillUnreachable
from server.cli.connection import Connection
from server.cli.guard import read_config
from server.config import CLIENT_VARIABLES, Address
from server.errors import RequestRefused
from server.home import Home
from server.supervisor import EXIT_CONFIG, EXIT_TEMPORARY

EXIT_REFUSED = 1
_REMEDY = "set all four variables or options (--help), or go to the home of a certmill that has a demo client"


class _NotConfigured(RequestRefused):
    """Nobody said where the API is and as whom to call it, or what was said is none."""


def run(connection: Connection, work: Callable[[CertmillClient], int], *, as_json: bool) -> int:
    """Do it, and return the exit code. What goes wrong becomes one line with its remedy, and JSON if wanted."""
    try:
        with _connected(connection) as certmill:
            return work(certmill)
    except KeyboardInterrupt:
        return 130
    except CertmillError as error:
        return _complain(error, as_json=as_json)
    except _NotConfigured as error:
        return tell(f"{error.field}: {error.detail}; {error.remedy}", code=EXIT_CONFIG)
    except RequestRefused as error:
        return tell(f"{error.field}: {error.detail}; {error.remedy}", code=EXIT_REFUSED)
    except OSError as error:
        return tell(f"{error.filename}: {error.strerror}", code=EXIT_REFUSED)


def tell(line: str, *, code: int = 0) -> int:
    """Write a line to standard error, without control characters; return the exit code."""
    typer.echo("certmill: " + "".join(c if c.isprintable() else " " for c in line), err=True)
    return code


def print_json(report: object) -> None:
    """Write one line of JSON to standard output, at once."""
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    sys.stdout.flush()


def _connected(said: Connection) -> CertmillClient:
    url, certificate, key, ca = said.url, said.certificate, said.key, said.ca
    if url is None and certificate is None and key is None and ca is None:
        config = read_config()
        home, api = Home(config.home), config.listen.api
        url = f"https://{Address('127.0.0.1', api.port) if api.is_wildcard else api}"
        ca, (certificate, key) = home.ca / "root.pem", home.demo_client
        if not key.exists():
            certificate = None
    if url is None or certificate is None or key is None or ca is None:
        given = zip(CLIENT_VARIABLES, (url, certificate, key, ca), strict=True)
        raise _NotConfigured(
            "must be set to call certmill",
            field=next(name for name, value in given if value is None),
            remedy=_REMEDY,
        )
    try:
        return CertmillClient(url, certificate, key, ca, tell=_tell_retry)
    except ValueError as error:
        raise _NotConfigured(str(error), field=CLIENT_VARIABLES[0], remedy="write it so") from None


def _tell_retry(error: CertmillError, pause_s: float) -> None:
    tell(f"{error}; trying again in {pause_s:.1f} s")


def _complain(error: CertmillError, *, as_json: bool) -> int:
    if not isinstance(error, CertmillProblem):
        later = isinstance(error, CertmillUnreachable)
        hint = "; try again later" if later else ""
        return tell(f"{error}{hint}", code=EXIT_TEMPORARY if later else EXIT_CONFIG)
    if as_json:
        print_json({"problem": {"status": error.status, **msgspec.structs.asdict(error.details)}})
    remedy = f"; {error.remedy}" if error.remedy else ""
    return tell(
        f"{error}{remedy} ({error.instance or error.title})",
        code=EXIT_TEMPORARY if error.temporary else EXIT_REFUSED,
    )
