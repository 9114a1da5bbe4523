"""`make soak-batch`: a large batch while the authority is killed three times; exactly one certificate per row.

A real `certmill serve` with a token of its own (SoftHSM, P-256) gets one batch of CSRs over mTLS. While it is
worked off, the authority process is ended with SIGKILL at a quarter, a half and three quarters of the rows; the
supervisor starts it anew, and the batch goes on by itself. At the end the database is asked: every row issued, as
many certificates as rows, each serial once, none twice for a row. Memory of the authority is read from /proc.
Exits with 1 if anything is wrong.
"""

import argparse
import base64
import http.client
import json
import os
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from rich.progress import Progress

from server.keys.hierarchy import ISSUING
from tests.support.certmill import RunningCertmill, certmill

MEMORY_BOUND_MB = 200
_RESULT = Path("build/soak/batch.json")
_STALLED_S = 120.0


def rows(count: int) -> Iterator[bytes]:
    """Yield NDJSON, a few hundred rows in each piece; a handful of keys is enough."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(16)]
    piece: list[bytes] = []
    for number in range(count):
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"host{number}.example.gov")])
        csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(keys[number % 16], hashes.SHA256())
        text = base64.b64encode(csr.public_bytes(Encoding.DER)).decode()
        piece.append(json.dumps({"reference": f"host{number}", "csr": text}).encode() + b"\n")
        if len(piece) == 250:
            yield b"".join(piece)
            piece = []
    yield b"".join(piece)


@dataclass
class Soak:
    """One run; `violations` are sentences, empty if all is well."""

    server: RunningCertmill
    count: int
    kills: int
    violations: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    growth_mb: float = 0.0
    base_mb: float = 0.0
    growth_mapped_mb: float = 0.0
    base_mapped_mb: float = 0.0

    def run(self, progress: Progress) -> None:
        """Send the batch, kill, wait for its end, judge."""
        self._sample()
        began = time.monotonic()
        batch = self._send()
        self.figures["upload_s"] = time.monotonic() - began
        self._work_off(batch["id"], progress)
        self.figures["seconds"] = time.monotonic() - began
        self.figures["rows_per_s"] = self.count / (self.figures["seconds"] - self.figures["upload_s"])
        self.figures["memory_growth_mb"] = self.growth_mb
        self.figures["mapped_growth_mb"] = self.growth_mapped_mb
        self._judge(batch["id"])

    def _send(self) -> dict[str, str]:
        made = list(rows(self.count))  # before the clock of the sender runs
        context = self.server.tls()
        connection = http.client.HTTPSConnection("127.0.0.1", self.server.api_port, timeout=600, context=context)
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": "soak"}

        def body() -> Iterator[bytes]:
            for number, piece in enumerate(made):
                if number % 20 == 0:
                    self._sample()
                yield piece

        connection.request("POST", "/v1/batches?profile=tls-server", body(), headers, encode_chunked=True)
        response = connection.getresponse()
        text = response.read()
        connection.close()
        if response.status != 202:
            raise SystemExit(f"refused: {response.status} {text.decode()}")
        batch: dict[str, str] = json.loads(text)
        return batch

    def _work_off(self, batch_id: str, progress: Progress) -> None:
        task = progress.add_task("rows", total=self.count)
        kill_at = [self.count * (n + 1) // (self.kills + 1) for n in range(self.kills)]
        seen, moved = -1, time.monotonic()
        while True:
            time.sleep(0.2)
            self._sample()
            try:
                batch = self.server.api("GET", f"/v1/batches/{batch_id}").json
            except (OSError, http.client.HTTPException):
                continue  # the authority is being started
            done = batch["issued"] + batch["failed"]
            progress.update(task, completed=done)
            if batch["state"] == "done":
                return
            if done > seen:
                seen, moved = done, time.monotonic()
            elif time.monotonic() - moved > _STALLED_S:
                raise SystemExit(f"no row in {_STALLED_S:g} s: {batch}\n{self.server.log.read_text()[-3000:]}")
            if kill_at and done >= kill_at[0]:
                kill_at.pop(0)
                os.kill(self._authority(), signal.SIGKILL)
                self.figures["kills"] = self.figures.get("kills", 0) + 1

    def _authority(self) -> int:
        found = self.server.pids(r"server authority")
        return found[0] if found else 0

    def _sample(self) -> None:
        """Read the memory of the authority; each new process has a base of its own."""
        pid = self._authority()
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return
        kinds = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in status.splitlines() if "kB" in line}
        # RssFile are pages of files: mostly of the response store, which the kernel takes back when it needs them.
        own, mapped = kinds.get("RssAnon", 0.0), kinds.get("RssFile", 0.0)
        self.base_mb = self.base_mb or own  # of the first process, idle: a later one begins in the midst of work
        self.base_mapped_mb = self.base_mapped_mb or mapped
        self.growth_mb = max(self.growth_mb, own - self.base_mb)
        self.growth_mapped_mb = max(self.growth_mapped_mb, mapped - self.base_mapped_mb)

    def _judge(self, batch_id: str) -> None:
        """Ask the database, not the API."""
        connection = sqlite3.connect(self.server.home / "certmill.sqlite")
        states = dict(
            connection.execute("select state, count(*) from job_rows where job = ? group by state", [batch_id])
        )
        own = "from certificates where client = 'demo' and state = 'issued' and profile like 'tls-server%'"
        issued, serials = connection.execute(f"select count(*), count(distinct serial) {own}").fetchone()
        (bound,) = connection.execute(
            "select count(distinct c.serial) from job_rows r join certificates c "
            "on c.issuer = ? and c.serial = r.serial where r.job = ? and c.state = 'issued'",
            [ISSUING, batch_id],
        ).fetchone()
        connection.close()
        if states != {"issued": self.count}:
            self.violations.append(f"rows by state are {states}, not {self.count} issued")
        if (issued, serials, bound) != (self.count,) * 3:
            self.violations.append(f"{issued} certificates, {serials} serials, {bound} bound; {self.count} rows")
        if self.growth_mb >= MEMORY_BOUND_MB:
            self.violations.append(f"the authority grew by {self.growth_mb:.0f} MB")
        if self.figures.get("kills", 0) != self.kills:
            self.violations.append("the batch was done before the last kill: use more rows")


def main() -> None:
    """Soak and tell; exits with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--signer", default="auto", help="auto (SoftHSM if installed) or software")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="certmill-soak-") as home,
        certmill(Path(home) / "home", CERTMILL_SIGNER_KIND=arguments.signer) as server,
        Progress() as progress,
    ):
        soak = Soak(server=server, count=arguments.rows, kills=arguments.kills)
        soak.run(progress)
    details = {"violations": soak.violations, "figures": soak.figures, "rows": soak.count}
    _RESULT.parent.mkdir(parents=True, exist_ok=True)
    _RESULT.write_text(json.dumps(details, indent=2) + "\n", "utf-8")
    for name, value in soak.figures.items():
        sys.stdout.write(f"{name:20} {value:10.1f}\n")
    for sentence in soak.violations:
        sys.stdout.write(f"WRONG: {sentence}\n")
    sys.exit(1 if soak.violations else 0)


if __name__ == "__main__":
    main()
