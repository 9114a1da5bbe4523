"""`make fuzz`: a hundred thousand hostile requests against a whole certmill.

Only 2xx and 4xx may come back, the log may hold neither a traceback nor a defect, and the authority's memory stays
flat. A batch that is accepted is a dry run: its rows are looked at, nothing is signed for them. What is wrong is
printed with the body that caused it.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from loadtests.mutations import Case, Cases
from tests.support.certmill import RunningCertmill, certmill

_RESULT = Path("build/bench/fuzz.json")
_CONNECTIONS = 16
_SERVER_FAULT = 500
_FLAT_MIB = 64
_DEADLINE_S = 60.0
PROFILES = ("tls-server", "tls-client")


@dataclass(slots=True)
class Findings:
    """Answers by kind of case and status; what is wrong; memory of the authority in MiB, sampled."""

    answers: collections.Counter[tuple[str, int]] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)

    @property
    def growth_mib(self) -> float:
        """What the memory grew by, once a tenth of the cases had warmed everything up."""
        tenth = len(self.memory_mib) // 10
        return max(self.memory_mib[tenth:]) - self.memory_mib[tenth]


class Fuzz:
    """Sends cases over a few connections."""

    def __init__(self, running: RunningCertmill, cases: Cases, count: int) -> None:
        self._running = running
        self._cases = cases
        self._left = count
        self.findings = Findings()

    async def run(self, progress: Progress, task: TaskID) -> None:
        """Send every case; findings tell the rest."""
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch())
            callers = [group.create_task(self._call(progress, task)) for _ in range(_CONNECTIONS)]
            await asyncio.wait(callers)
            watch.cancel()

    async def _watch(self) -> None:
        (pid,) = self._running.pids(r" authority")[:1]
        while True:
            status = await asyncio.to_thread(Path(f"/proc/{pid}/status").read_text)
            (kib,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
            self.findings.memory_mib.append(kib / 1024)
            await asyncio.sleep(0.5)

    async def _call(self, progress: Progress, task: TaskID) -> None:
        """Send cases over one connection after the other until none are left."""
        context = self._running.tls()
        while self._left > 0:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._running.api_port, ssl=context)
            try:
                while self._left > 0 and await self._try(reader, writer):
                    progress.advance(task)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _try(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Send one case and judge the answer; tell whether the connection goes on."""
        self._left -= 1
        case = self._cases.next()
        try:
            async with asyncio.timeout(_DEADLINE_S):
                status, body, goes_on = await _ask(reader, writer, case)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            self.findings.wrong.append(f"no answer to {case.kind}: {error!r} {case.body[:300]!r}")
            return False
        self.findings.answers[case.kind, status] += 1
        if status >= _SERVER_FAULT:
            self.findings.wrong.append(f"{status} for {case.kind}: {body[:300]!r} of {case.body!r}")
        return goes_on


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, case: Case) -> tuple[int, bytes, bool]:
    head = f"POST {case.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {case.content_type}\r\n"
    writer.write(f"{head}Content-Length: {len(case.body)}\r\n\r\n".encode() + case.body)
    answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(answer.split("content-length:")[1].split("\r\n")[0])
    body = await reader.readexactly(length)
    return int(answer.split(" ", 2)[1]), body, "connection: close" not in answer


def fuzz(home: Path, count: int, seed: int, *, quiet: bool = False) -> Findings:
    """Run `count` cases against a certmill in `home`, and look into its log."""
    # A client may be refused for calling too often; here everything is to be looked at.
    with certmill(
        home, CERTMILL_SIGNER_KIND="software", CERTMILL_LOG_FORMAT="json", CERTMILL_BATCHES_MAX_OPEN="1000"
    ) as running:
        run = Fuzz(running, Cases(seed, PROFILES), count)
        with Progress(disable=quiet, console=Console(stderr=True)) as progress:
            asyncio.run(run.run(progress, progress.add_task("cases", total=count)))
        if not running.pids(r" authority"):
            run.findings.wrong.append("the authority is gone")
    for line in (home / "log").read_text("utf-8", "replace").splitlines():
        if "Traceback" in line or '"level": "error"' in line or '"level":"error"' in line:
            run.findings.wrong.append(f"log: {line[:2000]}")
    if run.findings.growth_mib > _FLAT_MIB:
        run.findings.wrong.append(f"memory grew by {run.findings.growth_mib:.0f} MiB")
    return run.findings


def main() -> None:
    """Fuzz and print what came back; the exit code tells whether anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=120_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="certmill-fuzz-") as directory:
        findings = fuzz(Path(directory), arguments.cases, arguments.seed, quiet=arguments.json)
    details = {
        "cases": sum(findings.answers.values()),
        "answers": {f"{kind}: {status}": n for (kind, status), n in sorted(findings.answers.items())},
        "memory_mib": [round(findings.memory_mib[0], 1), round(findings.memory_mib[-1], 1)],
        "growth_mib": round(findings.growth_mib, 1),
        "wrong": findings.wrong[:50],
    }
    _RESULT.parent.mkdir(parents=True, exist_ok=True)
    _RESULT.write_text(json.dumps(details, indent=2), "utf-8")
    if arguments.json:
        sys.stdout.write(json.dumps(details) + "\n")
    else:
        _show(findings)
    sys.exit(1 if findings.wrong else 0)


def _show(findings: Findings) -> None:
    table = Table("kind of case", "status", "answers", title="what came back")
    for (kind, status), count in sorted(findings.answers.items()):
        table.add_row(kind, str(status), f"{count:,}")
    Console().print(table)
    sys.stdout.write(f"{sum(findings.answers.values())} cases, memory grew by {findings.growth_mib:.1f} MiB\n")
    for one in findings.wrong[:20]:
        sys.stdout.write(f"WRONG: {one}\n")
    sys.stdout.write("nothing wrong\n" if not findings.wrong else f"{len(findings.wrong)} findings\n")


if __name__ == "__main__":
    main()
