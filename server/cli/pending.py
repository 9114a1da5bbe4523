"""A request that has perhaps been heard: kept in a file until its answer is safe, so that a rerun repeats it.

Whoever runs the same command again, after whatever happened, sends the same request with the same idempotency key:
there is never a second certificate, or batch, of what was asked for once.
"""

import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec

from client.errors import CertmillError, CertmillProblem
from client.files import sync_directory, whole_file
from server.errors import RequestRefused

_LONGEST_BYTES = 2**20


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """What a rerun needs. `asked` tells whether it is the same request; the key is PEM and belongs to the CSR."""

    asked: dict[str, object]
    idempotency_key: str = msgspec.field(default_factory=lambda: str(uuid.uuid4()))
    csr: str = ""
    private_key: str = ""


class PendingFile:
    """The file of one pending request; it is its owner's alone, as it may hold a private key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._heard = False

    def claim(self, asked: dict[str, object], make: Callable[[], Pending]) -> Pending:
        """Return the request that an earlier run left, or make and keep one; raises `RequestRefused`, OSError."""
        pending = self._load()
        if pending is None:
            pending = make()
            try:
                with whole_file(self.path, replace=False) as file:
                    file.write(msgspec.json.encode(pending))
            except FileExistsError:  # another run was faster
                pending = self._load() or pending
                self._heard = True
        else:
            self._heard = True
        if pending.asked != asked:
            raise RequestRefused(
                "an earlier request for something else has not been answered",
                field=str(self.path),
                remedy="repeat that one, or remove the file to give it up: its certificate may exist already",
            )
        return pending

    def done(self) -> None:
        """Forget the request: its answer is safe."""
        self.path.unlink(missing_ok=True)
        sync_directory(self.path.parent)

    def failed(self, error: CertmillError) -> None:
        """Forget the request if nothing can have come of it: it was refused when it was first heard."""
        if isinstance(error, CertmillProblem) and not error.temporary and not (self._heard or error.repeated):
            self.done()

    def _load(self) -> Pending | None:
        try:
            with self.path.open("rb") as file:
                return msgspec.json.decode(file.read(_LONGEST_BYTES), type=Pending)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError:
            raise RequestRefused(
                "is no pending request", field=str(self.path), remedy="use another name, or remove the file"
            ) from None
