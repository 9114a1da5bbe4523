"""The profiles that certificates are issued under, by name and by version."""

from collections.abc import Mapping, Sequence

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from pkix.errors import ProfileError
from pkix.profile import Profile
from pkix.profile_file import parse_profile
from server.audit.log import AuditEntry, append
from server.clock import Clock, epoch
from server.errors import ConfigError, InvalidRequest, StorageError
from server.issuance.profile_files import ProfileFile
from server.storage.database import AnyRow, Database
from server.storage.schema import profile_versions


class ProfileRegistry:
    """The active version of each profile, and every version that was ever activated.

    A version is frozen when it is activated: what was issued under it, and what waits to be, stays bound to it.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._active: Mapping[str, Profile] = {}
        self._versions: dict[str, Profile] = {}
        self._texts: dict[str, str] = {}

    async def activate(self, files: Sequence[ProfileFile]) -> list[str]:
        """Make these the active versions and return those that are new.

        Raises `ConfigError` if a version is not what was recorded, or lower than one before; `StorageError`.
        """
        try:
            new = await self._record(files)
        except StorageError:  # another authority may have recorded the same just now
            new = await self._record(files)
        self._active = {file.profile.name: file.profile for file in files}
        self._versions |= {file.profile.identity: file.profile for file in files}
        return new

    async def refresh(self) -> None:
        """Learn of versions that other authorities on this database have activated; raises `StorageError`."""
        async with self._database.read() as connection:
            await self._read(connection)

    async def recorded(self) -> list[AnyRow]:
        """Return every version that was ever activated, by name and number; raises `StorageError`."""
        v = profile_versions.c
        async with self._database.read() as connection:
            return list((await connection.execute(select(profile_versions).order_by(v.name, v.version))).all())

    @property
    def active(self) -> tuple[Profile, ...]:
        """The active version of every profile, internal ones too, by name."""
        return tuple(self._active.values())

    @property
    def offered(self) -> tuple[Profile, ...]:
        """What a client may ask for, by name."""
        return tuple(profile for profile in self._active.values() if not profile.internal)

    def named(self, name: str | None) -> Profile:
        """Return the active version of a profile that clients may ask for; raises `InvalidRequest`."""
        found = self._active.get(name or "")
        if found is None or found.internal:
            raise InvalidRequest(
                "a profile must be named" if not name else f"there is no profile {name[:64]!r}",
                field="profile",
                remedy=f"use one of: {', '.join(profile.name for profile in self.offered)}",
            )
        return found

    def own(self, name: str) -> Profile:
        """Return the active version of a profile that certmill uses for itself."""
        return self._active[name]

    def version(self, identity: str) -> Profile:
        """Return a version that was activated at any time ("name@version"); raises `InvalidRequest`.

        And `StorageError` if this version of certmill cannot read it.
        """
        if identity not in self._versions:
            if identity not in self._texts:
                raise InvalidRequest(
                    f"profile version {identity[:80]!r} was never activated",
                    field="profile",
                    remedy="see: certmill profile list",
                )
            try:
                self._versions[identity] = parse_profile(self._texts[identity])
            except ProfileError as error:
                raise StorageError(f"profile {identity} in the database: {error}") from None
        return self._versions[identity]

    def text(self, profile: Profile) -> str:
        """Return the file that a version was read from."""
        return self._texts[profile.identity]

    async def _record(self, files: Sequence[ProfileFile]) -> list[str]:
        now = epoch(self._clock())
        async with self._database.write() as connection:
            recorded = await self._read(connection)
            new = [file for file in files if is_new(file, recorded)]
            if new:
                await connection.execute(insert(profile_versions), [_row(file, now) for file in new])
                await append(connection, now, [_audit(file) for file in new])
        self._texts |= {file.profile.identity: file.toml for file in new}
        return [file.profile.identity for file in new]

    async def _read(self, connection: AsyncConnection) -> dict[str, dict[int, bytes]]:
        """Return the digests of all recorded versions by name, and keep their texts."""
        recorded: dict[str, dict[int, bytes]] = {}
        for row in (await connection.execute(select(profile_versions))).all():
            recorded.setdefault(row.name, {})[row.version] = row.sha256
            self._texts[f"{row.name}@{row.version}"] = row.toml
        return recorded


def is_new(file: ProfileFile, recorded: Mapping[str, Mapping[int, bytes]]) -> bool:
    """Say whether a start activates this version; `recorded`: digests of the versions before, by name and number.

    Raises `ConfigError` where a start would refuse it.
    """
    name, version = file.profile.name, file.profile.version
    known = recorded.get(name, {})
    if version in known and known[version] != file.sha256:
        raise ConfigError(
            f"{file.origin}: version: {file.profile.identity} was activated with another content, and a version "
            f"never changes; bump the version to {max(known) + 1}, or restore the file (certmill profile show "
            f"{file.profile.identity})"
        )
    if known and version < max(known):
        raise ConfigError(
            f"{file.origin}: version: {name}@{max(known)} was active before, and versions only grow; bump the "
            f"version to {max(known) + 1}, or restore the file (certmill profile show {name}@{max(known)})"
        )
    return version not in known


def _row(file: ProfileFile, now: int) -> dict[str, object]:
    profile = file.profile
    return {
        "name": profile.name,
        "version": profile.version,
        "sha256": file.sha256,
        "toml": file.toml,
        "activated_at": now,
    }


def _audit(file: ProfileFile) -> AuditEntry:
    return AuditEntry(
        actor="certmill",
        action="profile.activated",
        object=file.profile.identity,
        request_id="-",
        detail={"sha256": file.sha256.hex(), "origin": file.origin},
    )
