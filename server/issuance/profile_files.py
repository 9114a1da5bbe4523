"""The files that profiles are read from: certmill's own, and those of the home over them. Blocking."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pkix.errors import ProfileError
from pkix.profile import Profile
from pkix.profile_file import MAX_PROFILE_BYTES, parse_profile
from server.errors import ConfigError
from server.settings.sources import line_of

TLS_SERVER, TLS_CLIENT = "tls-server", "tls-client"
OCSP_RESPONDER, SUBORDINATE_CA = "ocsp-responder", "subordinate-ca"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileFile:
    """A profile and the text that it was read from. `origin` says where that is."""

    profile: Profile
    toml: str
    origin: str

    @property
    def sha256(self) -> bytes:
        """The digest of the text: a version never changes it."""
        return hashlib.sha256(self.toml.encode()).digest()


def read_profile_files(directory: Path) -> tuple[ProfileFile, ...]:
    """Return the built-in profiles with those of the directory over them, by name; raises `ConfigError`.

    A file with the name of a built-in profile replaces it, and has a higher version.
    """
    found = {file.profile.name: file for file in built_in_files()}
    seen: dict[str, str] = {}
    for path in sorted(directory.glob("*.toml")):
        file = read_profile_file(path)
        name = file.profile.name
        if name in seen:
            raise ConfigError(f"{path}: profile {name} stands in {seen[name]} too; leave one of them")
        seen[name] = str(path)
        if name in found:
            _require_successor(file, found[name].profile)
        found[name] = file
    return tuple(found[name] for name in sorted(found))


def built_in_files() -> tuple[ProfileFile, ...]:
    """Return certmill's own profiles."""
    directory = resources.files("server").joinpath("profiles")
    files = [entry for entry in directory.iterdir() if entry.name.endswith(".toml")]
    return tuple(_parse(entry.read_text("utf-8"), f"built-in {entry.name}") for entry in sorted(files, key=str))


def read_profile_file(path: Path) -> ProfileFile:
    """Return the profile in a file; raises `ConfigError` that names file, line, key and remedy."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_PROFILE_BYTES + 1).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give a file that certmill may read"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8; save it as UTF-8") from None
    return _parse(text.replace("\r\n", "\n"), str(path))


def profile_names(files: Iterable[ProfileFile]) -> list[str]:
    """Return the names that clients may use."""
    return [file.profile.name for file in files if not file.profile.internal]


def _parse(text: str, origin: str) -> ProfileFile:
    try:
        return ProfileFile(profile=parse_profile(text), toml=text, origin=origin)
    except ProfileError as error:
        section, _, key = error.key.rpartition(".")
        line = line_of(text, section, key)
        where = f"{origin}, line {line}" if line else origin
        raise ConfigError(f"{where}: {error.key}: {error.detail}; {error.remedy}") from None


def _require_successor(file: ProfileFile, old: Profile) -> None:
    new = file.profile
    if new.version <= old.version:
        raise ConfigError(
            f"{file.origin}: version: {new.name} is built in as version {old.version}; write a higher version"
        )
    if new.internal != old.internal:
        raise ConfigError(f"{file.origin}: internal: it stays as in the built-in {new.name}; use another name")
    if (new.ocsp_nocheck, new.path_length is None) != (old.ocsp_nocheck, old.path_length is None):
        raise ConfigError(
            f"{file.origin}: extensions: certmill needs {new.name} for itself; keep ocsp_nocheck and path_length"
        )
