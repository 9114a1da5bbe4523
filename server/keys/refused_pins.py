"""Remembers which PINs a token has refused, so that no restart tries one again: a few wrong ones lock an HSM.

A file in the home holds, by token, the reason and a salted scrypt hash of the PIN. Another PIN is tried. The same
one is tried again when the file is gone: a person deletes it, or `certmill serve` does that starts on a terminal.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec
from structlog.typing import FilteringBoundLogger

from server.home import write_file
from signer_pool.lane_config import LaneConfig, Pkcs11LaneConfig

_SALT_BYTES = 16
_SCRYPT_N, _SCRYPT_R = 2**13, 8  # 8 MiB and some 50 ms: the PIN in question is a wrong one


class _Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """One PIN that was refused."""

    reason: str
    salt: bytes
    scrypt: bytes


_REFUSALS = msgspec.json.Decoder(dict[str, _Refusal])


class RefusedPins:
    """The memory of one home's tokens, of which `lanes` hold the present PINs. Blocking; nothing here raises.

    The caller holds the home's authority lock. A damaged file is removed, and a warning says so.
    """

    def __init__(self, path: Path, lanes: Sequence[LaneConfig], logger: FilteringBoundLogger) -> None:
        self._path = path
        self._pins = {lane.token_name: _pin(lane) for lane in lanes}
        self._logger = logger

    def recall(self) -> dict[str, str]:
        """Name the tokens whose present PIN was refused before, with the reason; forget a PIN that has changed."""
        known = self._read()
        changed = {name for name, one in known.items() if name in self._pins and not self._matches(name, one)}
        kept = {name: refusal for name, refusal in known.items() if name not in changed}
        if changed:
            self._write(kept)
        return {name: self._told(refusal.reason) for name, refusal in kept.items() if name in self._pins}

    def remember(self, token: str, reason: str) -> None:
        """Note, durably, that the token has refused its present PIN."""
        salt = secrets.token_bytes(_SALT_BYTES)
        refusal = _Refusal(reason=reason, salt=salt, scrypt=_scrypt(self._pins[token], salt))
        if self._write({**self._read(), token: refusal}):
            self._logger.error(
                f"PIN refused: it is not tried again; correct it, or delete {self._path} to try this PIN again",
                token=token,
                cause=reason,
            )

    def _told(self, reason: str) -> str:
        return f"{reason}; it was refused at an earlier start: delete {self._path} to try the same PIN again"

    def _matches(self, token: str, refusal: _Refusal) -> bool:
        return hmac.compare_digest(_scrypt(self._pins[token], refusal.salt), refusal.scrypt)

    def _read(self) -> dict[str, _Refusal]:
        try:
            return _REFUSALS.decode(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            self._logger.warning(
                "the memory of refused PINs is damaged and removed: each PIN is tried once more",
                file=str(self._path),
                cause=str(error),
            )
            self._remove()
            return {}

    def _remove(self) -> None:
        try:
            self._path.unlink()
        except OSError as error:
            self._logger.error("file cannot be removed", file=str(self._path), cause=str(error))

    def _write(self, refusals: dict[str, _Refusal]) -> bool:
        try:
            write_file(self._path, msgspec.json.encode(refusals), mode=0o600)
        except OSError as error:
            self._logger.error(
                "refused PINs cannot be remembered: a restart would try them again; see to the disk",
                file=str(self._path),
                cause=str(error),
            )
            return False
        return True


def _pin(lane: LaneConfig) -> str:
    return lane.pin if isinstance(lane, Pkcs11LaneConfig) else lane.passphrase


def _scrypt(pin: str, salt: bytes) -> bytes:
    return hashlib.scrypt(pin.encode(), salt=salt, n=_SCRYPT_N, r=_SCRYPT_R, p=1)
