"""Where everything lies below the home directory, and the lock that keeps a second certmill out of it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.errors import AlreadyRunning


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
    def public(self) -> Path:
        """What the public listener serves besides OCSP: `crl/` and `ca/`."""
        return self.root / "public"

    @property
    def run(self) -> Path:
        """Sockets and lock files; worthless after a reboot."""
        return self.root / "run"

    @property
    def authority_socket(self) -> Path:
        """Where OCSP workers ask the authority to sign."""
        return self.run / "authority.sock"

    def worker_metrics_socket(self, number: int) -> Path:
        """Where OCSP worker `number` serves its metrics."""
        return self.run / f"ocsp-{number}.metrics.sock"

    def create(self) -> None:
        """Make the directories; only the owner may look into those with secrets."""
        for path in (self.root, self.ca, self.clients, self.public, self.public / "crl", self.public / "ca"):
            path.mkdir(parents=True, exist_ok=True, mode=0o755)
        for path in (self.secrets, self.token, self.software_keys, self.run):
            path.mkdir(exist_ok=True, mode=0o700)


@contextmanager
def exclusive(home: Home, role: str = "authority") -> Iterator[None]:
    """Be the only process of this role (authority, supervisor) in this home while inside; raises `AlreadyRunning`.

    The kernel drops the lock with the process, however it ends. The home has been created.
    """
    descriptor = os.open(home.run / f"{role}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"another certmill uses {home.root}: stop it, or set CERTMILL_HOME to another directory"
            ) from None
        yield
    finally:
        os.close(descriptor)


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
