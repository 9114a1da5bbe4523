"""What a lane has to open: a session of a PKCS #11 token, or a directory of software keys."""

from typing import Any

import msgspec


class KeyMatch(msgspec.Struct, frozen=True, kw_only=True):
    """Which private key of a token is meant, by CKA_LABEL, CKA_ID or both (RFC 7512 `object`, `id`)."""

    label: str | None = None
    id: bytes | None = None


class Pkcs11LaneConfig(msgspec.Struct, frozen=True, kw_only=True, tag="pkcs11"):
    """A session of a PKCS #11 token. `env` is added to the child's environment; the PIN never is.

    Token: `token_label`, and whichever of serial, manufacturer, model and slot are given, must all match.
    `keys` maps the pool's names of keys to the token's; a key that is not in it goes by its CKA_LABEL.
    `name` tells tokens apart in metrics and logs. No form that people see (repr, rich) shows the PIN.
    """

    module_path: str
    token_label: str
    pin: str
    env: dict[str, str] = {}
    name: str = ""
    serial: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    slot_id: int | None = None
    keys: dict[str, KeyMatch] = {}

    @property
    def token_name(self) -> str:
        """Return the short name of the token."""
        return self.name or self.token_label

    @property
    def token(self) -> str:
        """Name the token and its module, for people."""
        return f"token {self.token_label!r} of {self.module_path}"

    def __repr__(self) -> str:
        return f"Pkcs11LaneConfig(module_path={self.module_path!r}, token_label={self.token_label!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("module_path", self.module_path), ("token_label", self.token_label)]


class SoftwareLaneConfig(msgspec.Struct, frozen=True, kw_only=True, tag="software"):
    """Keys in files: encrypted PKCS #8, `<label>.pem` in `directory`. The passphrase is never shown."""

    directory: str
    passphrase: str
    name: str = "software"

    @property
    def token_name(self) -> str:
        """Return the short name of the token."""
        return self.name

    @property
    def token(self) -> str:
        """Name the directory, for people."""
        return f"software keys in {self.directory}"

    @property
    def env(self) -> dict[str, str]:
        """Return what to add to the child's environment: nothing."""
        return {}

    def __repr__(self) -> str:
        return f"SoftwareLaneConfig(directory={self.directory!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("directory", self.directory)]


LaneConfig = Pkcs11LaneConfig | SoftwareLaneConfig
