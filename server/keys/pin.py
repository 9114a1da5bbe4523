"""PINs: from a file, from a systemd credential, or from whoever starts certmill. Never in argv or environment.

A source is written `file:/path` (or just `/path`), `credential:NAME` or `prompt`; the attribute `pin-source` of
a PKCS #11 URI (RFC 7512 §2.4) takes the same. Commands (`|/path`) are not run.
"""

import getpass
import os
import re
import stat
import warnings
from collections.abc import Callable, Mapping
from typing import BinaryIO

import msgspec

from server.errors import ConfigError

PROMPT = "prompt"
_LONGEST_BYTES = 4096
_PINS = msgspec.json.Decoder(dict[str, str])
_SOURCE = re.compile(r"(?:file:(?://)?)?(?P<file>/[^/\0][^\0]*)|credential:(?P<credential>[^/\0]+)|prompt")


class PinError(ValueError):
    """A PIN cannot be had from its source (operator). Never quotes the PIN."""


def check_pin_source(source: str) -> None:
    """Raise `PinError` unless the source is of a form that we know."""
    _parse(source)


def read_pin(source: str, environ: Mapping[str, str], prompt: Callable[[], str], *, setting: str) -> str:
    """Return the PIN; raises a `ConfigError` that names the setting. Blocking.

    A line end after the PIN is not part of it; anything else is. `prompt` asks for it, where that is the source.
    """
    try:
        found = _parse(source)
        if found["file"]:
            return _checked(_read(found["file"], private=True), found["file"])
        if found["credential"]:
            return _credential(found["credential"], environ)
        return _checked(prompt(), "what was entered")
    except PinError as error:
        raise ConfigError(f"setting {setting}: {error}") from None


def ask_on_terminal(token: str) -> str:
    """Ask for a token's PIN, without echo; raises `PinError` where there is no terminal. Blocking."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)  # else it would go on, and show the PIN
        try:
            return getpass.getpass(f"PIN of token {token}: ")
        except (getpass.GetPassWarning, EOFError):
            raise PinError(
                "there is no terminal to ask on; start certmill on one, or use file:/path or credential:NAME"
            ) from None


def encode_pins(pins: Mapping[str, str]) -> bytes:
    """Return the line that `certmill authority --pins-on-stdin` reads: token to PIN, as JSON."""
    return msgspec.json.encode(pins) + b"\n"


def receive_pins(stream: BinaryIO) -> dict[str, str]:
    """Read to the end of the stream what `encode_pins` made; raises `ConfigError`. Blocking."""
    try:
        return _PINS.decode(stream.read())
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ConfigError(
            "option --pins-on-stdin: standard input must be one JSON object, token name to PIN, and then end"
        ) from None


def _parse(source: str) -> re.Match[str]:
    match = _SOURCE.fullmatch(source)
    if not match or match["credential"] in {".", ".."}:
        # Not quoted: somebody may have written the PIN itself.
        raise PinError("write file:/path/of/the/pin, credential:NAME or prompt, not the PIN itself")
    return match


def _credential(name: str, environ: Mapping[str, str]) -> str:
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise PinError(
            f"systemd hands over no credentials; put LoadCredential={name}:/path/of/the/pin into certmill's unit"
        )
    # The directory is private; systemd lets us in by an ACL, which shows as a permission of the group.
    path = os.path.join(directory, name)  # noqa: PTH118 - only joined, never looked at
    return _checked(_read(path, private=False), path)


def _read(path: str, *, private: bool) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would block for ever
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise PinError(f"{path} is not a regular file; name the file that holds the PIN")
            if private and mode & 0o077:
                raise PinError(f"{path} is open to others than its owner; chmod 600 {path}")
            return os.read(descriptor, _LONGEST_BYTES).decode("utf-8")
        finally:
            os.close(descriptor)
    except UnicodeDecodeError:
        raise PinError(f"{path} is not UTF-8 text; write nothing but the PIN into it") from None
    except OSError as error:
        raise PinError(
            f"{path} cannot be read ({error.strerror}); it must be there and belong to certmill's user"
        ) from None


def _checked(text: str, where: str) -> str:
    pin = text.rstrip("\r\n")
    if not pin:
        raise PinError(f"{where} is empty; it must hold the PIN")
    if "\n" in pin or "\r" in pin or "\0" in pin:
        raise PinError(f"{where} has more than one line; it must hold nothing but the PIN")
    return pin
