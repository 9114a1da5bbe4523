"""PostgreSQL's own programs, pg_dump and pg_restore: they know every version's ways. Blocking.

The URL in their arguments holds no password; that goes through a file that only we can open, for so long.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from server.errors import ConfigError, StorageError
from server.storage.place import PostgresPlace

DEADLINE_S = 6 * 3600


def run_tool(program: str, arguments: Sequence[str], place: PostgresPlace | None = None) -> None:
    """Run one of the programs, on the database of `place`; raises `StorageError` with its own words."""
    path = shutil.which(program)
    if path is None:
        raise ConfigError(
            f"{program} is not installed: install PostgreSQL's client programs, of the server's version"
        )
    with _environment(place) as environ:
        where = [] if place is None else ["--no-password", f"--dbname={place.url}"]
        try:
            done = subprocess.run(  # noqa: S603 - arguments are ours and the settings'
                [path, *where, *arguments],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=DEADLINE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise StorageError(f"{program} was not done after {DEADLINE_S // 3600} hours") from None
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise StorageError(f"{program}: {lines[0] if lines else f'ended with {done.returncode}'}")


@contextmanager
def _environment(place: PostgresPlace | None) -> Iterator[dict[str, str]]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    with tempfile.TemporaryDirectory(prefix="certmill-") as directory:  # mode 0700
        file = Path(directory) / "pgpass"
        file.touch(mode=0o600)
        if place is not None and place.password is not None:
            escaped = place.password.replace("\\", "\\\\").replace(":", "\\:")
            file.write_text(f"*:*:*:*:{escaped}\n", "utf-8")
        yield {**environ, "PGPASSFILE": str(file), "PGAPPNAME": "certmill"}
