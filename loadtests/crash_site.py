"""A home whose authority dies again and again: at a numbered step, at its start, or as it enters an fsync."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.crash_evidence import Evidence
from loadtests.crash_load import Journal, Load, repeat_open_calls
from server.milestones import Step
from server.storage.place import PostgresPlace, SqlitePlace
from server.supervisor import EXIT_TEMPORARY
from tests.support.certmill import RunningCertmill
from tests.support.dying_authority import NEVER

KILL = "signal=SIGKILL"
EIO = "error=EIO"
DEATH_S = 30.0
CRL_S = 15.0
_QUICK = {
    "CERTMILL_CRL_DEBOUNCE_S": "0.05",
    "CERTMILL_LOG_LEVEL": "info",
    "CERTMILL_LOG_FORMAT": "json",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """One way to die: at the `nth` passing of `step`, under load or while starting, or at an fsync.

    `fault`: strace's word for what happens at the `nth` fsync of a thread; of `file` alone, if one is named.
    """

    step: Step | None
    nth: int
    at_start: bool = False
    fault: str = KILL
    file: str | None = None

    @property
    def name(self) -> str:
        """Say it in a table."""
        if self.step is None:
            what = "fsync" if self.fault == KILL else self.fault
            return f"{what} {self.nth}{f' of {self.file}' if self.file else ''}"
        return f"{self.step}{' at start' if self.at_start else ''}"


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of one crash. `open_calls`: never answered, repeated afterwards."""

    crash: Crash
    acknowledged: int = 0
    revoked: int = 0
    open_calls: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


class CannotTrace(Exception):
    """This machine does not let strace trace our own processes."""


class CrashSite:
    """One home, one database: that of the home, or one at a PostgreSQL's URL.

    Crashes are made one after the other; each finds what the former left.
    """

    def __init__(self, directory: Path, settings: Mapping[str, str], url: str | None = None) -> None:
        home = directory / "home"
        self._directory = directory
        settings = {**_QUICK, **settings, **({"CERTMILL_STORAGE_DATABASE": url} if url else {})}
        self._running = RunningCertmill(home, settings, command=("server", "authority"))
        self._place = PostgresPlace(url=url) if url else SqlitePlace(home / "certmill.sqlite")
        self._crl_numbers: list[int] = []
        self._crashes = 0

    def prepare(self) -> None:
        """Make the home by a first start."""
        self._running.start()
        self._end()

    def crash(self, crash: Crash) -> Outcome:
        """Let the authority die, start another, repeat what was not answered, and judge."""
        began = time.monotonic()
        outcome = Outcome(crash=crash)
        self._crashes += 1
        journal = Journal(self._directory / f"journal-{self._crashes}")
        said_before = len(self._said())
        with contextlib.closing(journal), self._nothing_is_left():
            try:
                self._die(crash, journal)
                self._judge(journal, outcome)
            except AssertionError as error:
                outcome.wrong.append(str(error) or repr(error))
        outcome.acknowledged, outcome.revoked = len(journal.issued), len(journal.revoked)
        said = self._said()[said_before:]
        if "Traceback" in said:
            outcome.wrong.append(f"a traceback in the log: {said[said.index('Traceback') :][:2000]}")
        outcome.seconds = time.monotonic() - began
        return outcome

    def _die(self, crash: Crash, journal: Journal) -> None:
        if crash.step is None:
            self._die_at_fsync(crash, journal)
        elif crash.at_start:
            self._die_under_load([Step.REVOKED_DURABLE, "2"], journal)
            self._running.launch(*_dying(crash.step, str(crash.nth), "--from-start"))
            self._dead(crash.name)
        else:
            self._die_under_load([crash.step, str(crash.nth)], journal)

    def _die_under_load(self, death: list[str], journal: Journal) -> None:
        self._running.launch(*_dying(*death))
        if self._ready():
            with Load(self._running, journal):
                self._dead(death[0])

    def _die_at_fsync(self, crash: Crash, journal: Journal) -> None:
        self._running.launch(*_dying(NEVER, "1"))
        assert self._ready(), "it died before it was ready, and nobody had asked for that"
        assert self._running.process is not None
        path = None if crash.file is None else self._running.home / crash.file
        injection = f"inject=fsync,fdatasync:{crash.fault}:when={crash.nth}"
        with strace(self._running.process.pid, injection, path), Load(self._running, journal):
            self._dead(crash.name, -signal.SIGKILL if crash.fault == KILL else EXIT_TEMPORARY)

    def _judge(self, journal: Journal, outcome: Outcome) -> None:
        evidence = Evidence(self._running.home, self._place)
        outcome.open_calls = len(journal.open_calls)
        outcome.wrong += evidence.after_death(journal)
        self._running.start()
        outcome.wrong += evidence.after_start(journal)
        repeat_open_calls(self._running, journal)
        outcome.wrong += evidence.after_recovery(journal)
        outcome.wrong += self._judge_crls(evidence, journal)
        self._end()

    def _judge_crls(self, evidence: Evidence, journal: Journal) -> list[str]:
        deadline = time.monotonic() + CRL_S
        while (lacking := evidence.crl_lacks(journal)) and time.monotonic() < deadline:
            time.sleep(0.05)
        self._crl_numbers.append(evidence.crl_number())
        wrong = evidence.crls_are_in_order(self._crl_numbers)
        return [*wrong, *(f"the CRL lacks {serial}, {CRL_S:g} s after its revocation" for serial in lacking)]

    def _ready(self) -> bool:
        """Wait until the dying process is ready; False if it died before."""
        process = self._running.process
        assert process is not None
        try:
            self._running.wait_ready()
        except AssertionError:
            assert process.poll() == -signal.SIGKILL, f"it ended with {process.poll()}:\n{self._said()[-3000:]}"
            return False
        return True

    def _dead(self, where: str, expected: int = -signal.SIGKILL) -> None:
        assert self._running.process is not None
        try:
            code = self._running.process.wait(DEATH_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{where} was not passed within {DEATH_S:g} s") from None
        assert code == expected, f"it ended with {code}, not {expected}:\n{self._said()[-3000:]}"

    def _end(self) -> None:
        code = self._running.stop()
        assert code == 0, f"asked to stop, it ended with {code}"

    def _said(self) -> str:
        return self._running.log.read_text() if self._running.log.exists() else ""

    @contextlib.contextmanager
    def _nothing_is_left(self) -> Iterator[None]:
        try:
            yield
        finally:
            process = self._running.process
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()


def _dying(*arguments: str) -> tuple[str, ...]:
    return ("tests.support.dying_authority", *arguments)


@contextlib.contextmanager
def strace(pid: int, injection: str, path: Path | None = None) -> Iterator[None]:
    """Trace a process and its threads while inside, calls for `path` alone if given; raises `CannotTrace`."""
    calls = injection.removeprefix("inject=").partition(":")[0]
    command = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={calls}", "-e", injection, "-p", str(pid)]
    if path is not None:
        command += ["-P", str(path)]
    try:
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        raise CannotTrace("strace is not installed: run deploy/bootstrap strace") from None
    try:
        assert tracer.stderr is not None
        first = tracer.stderr.readline()
        while "Requested path" in first:  # a symlink is resolved
            first = tracer.stderr.readline()
        if "attached" not in first:
            raise CannotTrace(f"strace may not trace here (ptrace is not permitted?): {first.strip()}")
        yield
    finally:
        tracer.send_signal(signal.SIGINT)  # it detaches; what it traced goes on
        try:
            tracer.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            tracer.kill()
            tracer.communicate()
