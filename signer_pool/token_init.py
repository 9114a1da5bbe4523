"""Initialise a fresh PKCS #11 token, in a child process of its own.

python-pkcs11 cannot do it, and `softhsm2-util --pin` would show the PINs in argv. So the module's exported
C_… functions are called through ctypes; PINs arrive on standard input, the answer leaves on a descriptor
of its own, because vendor libraries print to standard output.
"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping

import msgspec

from signer_pool.errors import TokenExists, TokenInitError

_TIMEOUT_S = 60.0
_LABEL_BYTES = 32
_CKR_OK = 0
_CKF_TOKEN_INITIALIZED = 0x400
_CKF_SERIAL_RW_SESSION = 0x4 | 0x2
_CKU_SO = 0
_CKR_TOKEN_ABSENT = {0xE0, 0xE1}


class Task(msgspec.Struct, frozen=True):
    """What the child is to do; without PINs, only look whether the token is there."""

    module_path: str
    label: str
    so_pin: str = ""
    user_pin: str = ""

    def __repr__(self) -> str:
        return f"Task(module_path={self.module_path!r}, label={self.label!r})"


class Outcome(msgspec.Struct, frozen=True):
    """What came of it."""

    exists: bool
    error: str = ""


def token_exists(module_path: str, label: str, env: Mapping[str, str]) -> bool:
    """Tell whether the module has an initialised token of this label; raises `TokenInitError`.

    `env` is added to the child's environment (SOFTHSM2_CONF, say). Blocks: some 0.1 s.
    """
    return _run_child(Task(module_path, label), env).exists


def initialise_token(module_path: str, label: str, so_pin: str, user_pin: str, env: Mapping[str, str]) -> None:
    """Initialise the first free slot as token `label` and set both PINs. Blocks: some 0.2 s.

    Raises `TokenExists` if there is a token of this label, `TokenInitError` with one line otherwise.
    """
    if not so_pin or not user_pin:
        raise TokenInitError("both PINs must be given")
    if not 0 < len(label.encode()) <= _LABEL_BYTES:
        raise TokenInitError(f"token label {label!r}: 1 to {_LABEL_BYTES} bytes of UTF-8")
    if _run_child(Task(module_path, label, so_pin, user_pin), env).exists:
        raise TokenExists(f"{module_path}: token {label!r} exists already")


def _run_child(task: Task, env: Mapping[str, str]) -> Outcome:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as answers:
        try:
            child = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-P", "-m", "signer_pool.token_init", str(write_end)],
                stdin=subprocess.PIPE,
                stdout=2,
                pass_fds=(write_end,),
                env={**os.environ, **env},
            )
        finally:
            os.close(write_end)
        try:
            child.communicate(msgspec.json.encode(task), timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            raise TokenInitError(f"{task.module_path}: no answer within {_TIMEOUT_S:.0f} s") from None
        answer = answers.read()
    if not answer:
        raise TokenInitError(f"{task.module_path}: the module ended its process (status {child.returncode})")
    outcome = msgspec.json.decode(answer, type=Outcome)
    if outcome.error:
        raise TokenInitError(outcome.error)
    return outcome


def main(arguments: list[str]) -> int:
    """Do the task on standard input; write the outcome to the descriptor that is the only argument."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    try:
        outcome = perform(task)
    except TokenInitError as error:
        outcome = Outcome(exists=False, error=str(error))
    with os.fdopen(int(arguments[0]), "wb") as answers:
        answers.write(msgspec.json.encode(outcome))
    return 0


def perform(task: Task) -> Outcome:
    """Do the task in this process; raises `TokenInitError`."""
    try:
        module = ctypes.CDLL(task.module_path)
        _check(task, "C_Initialize", module.C_Initialize(None))
    except (OSError, AttributeError) as error:
        raise TokenInitError(
            f"{task.module_path}: cannot be loaded as a PKCS #11 module ({error}); correct the path"
        ) from None
    try:
        free_slot: int | None = None
        for slot in _slots(task, module):
            label = _token_label(task, module, slot)
            if label == task.label:
                return Outcome(exists=True)
            if label is None and free_slot is None:
                free_slot = slot
        if task.so_pin:
            _initialise(task, module, free_slot)
        return Outcome(exists=False)
    finally:
        module.C_Finalize(None)


def _slots(task: Task, module: ctypes.CDLL) -> list[int]:
    count = ctypes.c_ulong()
    _check(task, "C_GetSlotList", module.C_GetSlotList(True, None, ctypes.byref(count)))
    slots = (ctypes.c_ulong * count.value)()
    _check(task, "C_GetSlotList", module.C_GetSlotList(True, slots, ctypes.byref(count)))
    return list(slots)[: count.value]


class _TokenInfo(ctypes.Structure):
    """CK_TOKEN_INFO (PKCS #11 §3.2): what we read of it, and room for the rest."""

    _fields_ = (
        ("label", ctypes.c_char * _LABEL_BYTES),
        ("names", ctypes.c_char * (32 + 16 + 16)),
        ("flags", ctypes.c_ulong),
        ("rest", ctypes.c_char * 256),
    )


def _token_label(task: Task, module: ctypes.CDLL, slot: int) -> str | None:
    """Return the token's label; None when the token is not initialised; empty when there is none."""
    info = _TokenInfo()
    status = module.C_GetTokenInfo(ctypes.c_ulong(slot), ctypes.byref(info))
    if status in _CKR_TOKEN_ABSENT:
        return ""
    _check(task, "C_GetTokenInfo", status)
    if not info.flags & _CKF_TOKEN_INITIALIZED:
        return None
    return bytes(info.label).decode("utf-8", "replace").rstrip(" \0")


def _initialise(task: Task, module: ctypes.CDLL, slot: int | None) -> None:
    if slot is None:
        raise TokenInitError(f"{task.module_path}: no slot with a fresh token; free one")
    label = task.label.encode().ljust(_LABEL_BYTES)
    number, session = ctypes.c_ulong(slot), ctypes.c_ulong()
    _check(task, "C_InitToken", module.C_InitToken(number, *_pin(task.so_pin), label))
    flags = ctypes.c_ulong(_CKF_SERIAL_RW_SESSION)
    _check(task, "C_OpenSession", module.C_OpenSession(number, flags, None, None, ctypes.byref(session)))
    _check(task, "C_Login", module.C_Login(session, ctypes.c_ulong(_CKU_SO), *_pin(task.so_pin)))
    _check(task, "C_InitPIN", module.C_InitPIN(session, *_pin(task.user_pin)))
    module.C_CloseSession(session)


def _pin(pin: str) -> tuple[bytes, ctypes.c_ulong]:
    encoded = pin.encode()
    return encoded, ctypes.c_ulong(len(encoded))


def _check(task: Task, function: str, status: int) -> None:
    if status & 0xFFFFFFFF != _CKR_OK:
        raise TokenInitError(
            f"{task.module_path}, token {task.label!r}: {function} answers 0x{status & 0xFFFFFFFF:X}; "
            "check the module's own configuration and log"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
