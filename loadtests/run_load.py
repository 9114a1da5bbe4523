"""`make load`: Locust, headless, against a certmill of its own; then every certificate is looked for.

Prints Locust's table and what the rates mean for a year of the plan. Fails if one answer was wrong, or if one
certificate that was acknowledged is not in the database with the OCSP answer that belongs to it.
"""

import argparse
import base64
import http.client
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from rich.progress import Progress

from loadtests.plan import Demand, demand, read_bureaux
from tests.support.certmill import RunningCertmill

_BUILD = Path("build/load")
_PAGE = 500


def main() -> None:
    """Run the load test; exits with 1 when something was wrong or lost."""
    arguments = _arguments()
    try:
        asked = demand(arguments.year, read_bureaux())
    except ValueError as error:
        raise SystemExit(f"--year: {error}") from None
    _BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="certmill-load-") as home:
        running = RunningCertmill(Path(home), {"CERTMILL_LOG_LEVEL": "warning"})
        sys.stdout.write(f"starting a certmill of its own in {home}\n")
        try:
            running.start()
            figures = _locust(running, arguments)
            serials = figures.pop("serials")
            figures["acknowledged"] = len(serials)
            figures["lost"] = _lost(running, serials)
            running.stop()
        finally:
            log = _BUILD / "certmill.log"
            log.write_bytes(running.log.read_bytes())
            if running.process is not None and running.process.poll() is None:
                running.process.kill()
    _report(figures, asked, arguments)
    if figures["failures"] or figures["lost"]:
        sys.stdout.write(f"FAILED: see the table above and {log}\n")
        raise SystemExit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=8, help="half of them issue, half ask OCSP (default 8)")
    parser.add_argument("--seconds", type=int, default=20, help="how long (default 20)")
    parser.add_argument("--year", type=int, default=2028, help="year of the plan to compare with (default 2028)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return parser.parse_args()


def _locust(running: RunningCertmill, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run Locust in a process of its own (it patches what it imports) and return what it left."""
    result = (_BUILD / "locust.json").absolute()
    result.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless", "--only-summary",
        "--users", str(arguments.users), "--spawn-rate", str(arguments.users),
        "--run-time", f"{arguments.seconds}s", "--stop-timeout", "10",
        "--loglevel", "WARNING",
    ]  # fmt: skip
    environ = {
        **os.environ,
        "CERTMILL_LOAD_HOME": str(running.home),
        "CERTMILL_LOAD_API": f"https://127.0.0.1:{running.api_port}",
        "CERTMILL_LOAD_PUBLIC": f"http://127.0.0.1:{running.public_port}",
        "CERTMILL_LOAD_RESULT": str(result),
    }
    sys.stdout.write(f"{arguments.users} users for {arguments.seconds} s\n")
    sys.stdout.flush()
    subprocess.run(command, env=environ, check=False)  # its exit code says "a request failed": so do we, below
    if not result.exists():
        raise SystemExit("Locust did not come to its end, see above")
    figures: dict[str, Any] = json.loads(result.read_bytes())
    return figures


def _lost(running: RunningCertmill, serials: Sequence[str]) -> int:
    """Count acknowledged certificates that have no row, or were given twice, and wrong OCSP answers of all."""
    issuer = x509.load_pem_x509_certificate((running.home / "ca/issuing.pem").read_bytes())
    connection = http.client.HTTPConnection("127.0.0.1", running.public_port, timeout=10)
    missing, wrong = set(serials), 0
    with Progress() as progress:
        task = progress.add_task("every certificate and its OCSP answer", total=len(serials))
        for row in _rows(running):
            missing.discard(row["serial"])
            wrong += _status(connection, row["certificate"], issuer) != row["status"]
            progress.advance(task)
    connection.close()
    return wrong + len(missing) + len(serials) - len(set(serials))


def _rows(running: RunningCertmill) -> Iterator[dict[str, Any]]:
    cursor = ""
    while True:
        page = running.api("GET", f"/v1/certificates?limit={_PAGE}{cursor}").json
        yield from page["certificates"]
        if page["next_cursor"] is None:
            return
        cursor = f"&cursor={page['next_cursor']}"


def _status(connection: http.client.HTTPConnection, certificate_pem: str, issuer: x509.Certificate) -> str:
    certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    request = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA1()).build()
    connection.request("GET", "/ocsp/" + base64.b64encode(request.public_bytes(Encoding.DER)).decode())
    read = ocsp.load_der_ocsp_response(connection.getresponse().read())
    if read.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        return read.response_status.name.lower()
    return read.certificate_status.name.lower()


def _report(figures: dict[str, Any], asked: Demand, arguments: argparse.Namespace) -> None:
    requests = figures["requests"]
    issued = figures["acknowledged"] / arguments.seconds
    status = sum(entry["per_s"] for name, entry in requests.items() if name.startswith("OCSP"))
    summary = {
        "issued_per_s": round(issued, 1),
        "ocsp_answers_per_s": round(status, 1),
        f"issued_vs_average_of_{asked.year}": round(issued / asked.average_per_s),
        f"issued_vs_peak_of_{asked.year}": round(issued / asked.peak_per_s, 1),
        "acknowledged": figures["acknowledged"],
        "revoked": figures["revoked"],
        "failures": figures["failures"],
        "lost_or_wrong": figures["lost"],
    }
    sys.stdout.write(
        f"\nplan {asked.year}: {asked.certificates} certificates a year, {asked.average_per_s:.4f}/s on average, "
        f"{asked.peak_per_s:.2f}/s at its peak (the largest bureau's list in an hour)\n"
    )
    for name, value in summary.items():
        sys.stdout.write(f"{name:28} {value:>10}\n")
    if arguments.json:
        arguments.json.write_text(json.dumps({**figures, **summary}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
