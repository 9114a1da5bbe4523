"""Where everything lies below the home directory, and the locks that keep a second certmill out of it."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.errors import AlreadyRunning, ConfigError

AUTHORITY, SUPERVISOR = "authority", "supervisor"
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Home:
    """The files of one certmill. Others rely on `ca/*.pem` and `clients/demo/*.pem`."""

    root: Path

    @property
    def settings(self) -> Path:
        """The settings file."""
        return self.root / "certmill.toml"

    @property
    def database(self) -> Path:
        """The SQLite database: the truth about every certificate."""
        return self.root / "certmill.sqlite"

    @property
    def authority_id(self) -> Path:
        """Which authority this home is, among those on one database."""
        return self.root / "authority-id"

    @property
    def response_store(self) -> Path:
        """The directory of the OCSP response store (LMDB); rebuilt from the database if lost."""
        return self.root / "responses"

    @property
    def secrets(self) -> Path:
        """PINs and the API's TLS key; readable by the owner alone."""
        return self.root / "secrets"

    @property
    def token(self) -> Path:
        """SoftHSM's directory."""
        return self.root / "token"

    @property
    def software_keys(self) -> Path:
        """Encrypted software keys, where there is no HSM."""
        return self.root / "software-keys"

    @property
    def ca(self) -> Path:
        """CA certificates as PEM, for people and clients."""
        return self.root / "ca"

    @property
    def clients(self) -> Path:
        """Client certificates made by `certmill init`."""
        return self.root / "clients"

    @property
    def profiles(self) -> Path:
        """Profiles of the operator's own, over the built-in ones."""
        return self.root / "profiles"

    @property
    def demo_client(self) -> tuple[Path, Path]:
        """Certificate and key of the client for trying out."""
        return self.clients / "demo/cert.pem", self.clients / "demo/key.pem"

    @property
    def public(self) -> Path:
        """What the public listener serves besides OCSP: `crl/` and `ca/`."""
        return self.root / "public"

    @property
    def traces_of_a_ca(self) -> tuple[Path, ...]:
        """What stands here only after a database knew a CA: its certificate and what it published."""
        crls = self.public / "crl"
        return self.ca / "root.pem", crls / "issuing.crl", crls / "root.crl"

    @property
    def run(self) -> Path:
        """Sockets and lock files, worthless after a reboot; and what a restart must not forget."""
        return self.root / "run"

    @property
    def refused_pins(self) -> Path:
        """Which PINs the tokens have refused, as hashes; a PIN in it is not tried again."""
        return self.run / "refused-pins.json"

    @property
    def replaced_responder(self) -> Path:
        """Which key of the OCSP responder is lost, while its successor has no certificate yet."""
        return self.run / "replaced-responder"

    @property
    def authority_socket(self) -> Path:
        """Where OCSP workers ask the authority to sign."""
        return self.run / "authority.sock"

    def worker_metrics_socket(self, number: int) -> Path:
        """Where OCSP worker `number` serves its metrics."""
        return self.run / f"ocsp-{number}.metrics.sock"

    @property
    def notify_socket(self) -> Path:
        """Where the supervisor hears from its children."""
        return self.run / "notify.sock"

    def lock(self, role: str) -> Path:
        """The lock file of a role: `authority`, `supervisor`, `ocsp-0`."""
        return self.run / f"{role}.lock"

    def create(self) -> None:
        """Make the directories; only the owner may look into those with secrets. Raises `ConfigError`.

        Directories that are there keep their modes.
        """
        try:
            public = (self.public, self.public / "crl", self.public / "ca")
            for path in (self.root, self.ca, self.clients, *public):
                _make(path, 0o755)
            for path in (self.profiles, self.secrets, self.token, self.software_keys, self.run):
                _make(path, 0o700)
        except OSError as error:
            raise ConfigError(
                f"home {self.root}: {error.filename} cannot be made: {error.strerror}; "
                "set CERTMILL_HOME to a directory that certmill's user may write to"
            ) from None


class Lock:
    """A lock file that this process has open. The kernel drops the lock with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def acquire(self) -> bool:
        """Take the lock, without a note, unless somebody holds it; say which."""
        if self._descriptor is None or not _locked(self._descriptor, fcntl.LOCK_EX):
            return False
        os.ftruncate(self._descriptor, 0)
        return True

    def write(self, note: str) -> None:
        """Leave a note, once, for those who find the lock held."""
        if self._descriptor is not None:
            os.pwrite(self._descriptor, note.encode(), 0)

    def release(self) -> None:
        """Let somebody else have it; idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def exclusive(home: Home, role: str = AUTHORITY, *, patience_s: float = 0.0) -> Iterator[Lock]:
    """Be the only one in this role on this home while inside; raises `AlreadyRunning`.

    The home has been created. With `patience_s`, wait so long for another one to go, which blocks.
    """
    deadline = time.monotonic() + patience_s
    lock = Lock(home.lock(role))
    try:
        while not lock.acquire():
            if time.monotonic() >= deadline:
                raise AlreadyRunning(_already(home, role))
            time.sleep(_POLL_S)
        yield lock
    finally:
        lock.release()


def held(path: Path) -> str | None:
    """Return the note on a lock file that somebody holds now; None if nobody does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return None if _locked(descriptor, fcntl.LOCK_SH) else os.read(descriptor, 1000).decode()
    finally:
        os.close(descriptor)


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _already(home: Home, role: str) -> str:
    if role in {AUTHORITY, SUPERVISOR}:
        return f"another certmill uses {home.root}: stop it, or set CERTMILL_HOME to another directory"
    return f"another {role} runs on {home.root}: stop it, or give this one another --number"


def _make(path: Path, mode: int) -> None:
    """Make a directory of this mode, whatever the umask, and what is missing above it."""
    if path.is_dir():
        return
    _make(path.parent, 0o755)
    path.mkdir(exist_ok=True, mode=0o700)
    path.chmod(mode)


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace a file so that readers and crashes see the old or the new content, never a part; durable."""
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
