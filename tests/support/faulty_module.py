"""A PKCS #11 module that breaks on command: compiled here, told what to break through a file that it maps.

    module = build()
    faults = Faults(tmp_path)
    config = faults.lane_config(softhsm_config, module)
    faults.arm("C_Sign", nth=3, rv=0x30)      # the third signature from now on, in whichever process

The source, faulty_pkcs11/faulty.c, says what is passed on to the real module and why. For child processes only.
"""

import ctypes
import enum
import hashlib
import mmap
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import msgspec

from signer_pool.lane_config import Pkcs11LaneConfig

SOFTHSM = "/usr/lib/softhsm/libsofthsm2.so"
SOURCE = Path(__file__).parent / "faulty_pkcs11" / "faulty.c"
BUILD_DIRECTORY = Path(__file__).parents[2] / "build"

_FLAGS = ("-std=gnu11", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden")
_LINKER_FLAGS = ("-Wl,-Bsymbolic", "-ldl")
_MAGIC = 0x31544C46
_FUNCTION_COUNT = 68
_RULE_COUNT = 8

# Places in CK_FUNCTION_LIST of the functions that can be broken, by whether they are about a session.
_ABOUT_NO_SESSION = {
    "C_Initialize": 0,
    "C_Finalize": 1,
    "C_GetSlotList": 4,
    "C_GetTokenInfo": 6,
    "C_InitToken": 9,
    "C_OpenSession": 12,
}
_ABOUT_A_SESSION = {
    "C_InitPIN": 10,
    "C_CloseSession": 13,
    "C_GetSessionInfo": 15,
    "C_Login": 18,
    "C_Logout": 19,
    "C_GetAttributeValue": 24,
    "C_FindObjectsInit": 26,
    "C_FindObjects": 27,
    "C_FindObjectsFinal": 28,
    "C_SignInit": 42,
    "C_Sign": 43,
    "C_GenerateKeyPair": 59,
}
FUNCTIONS = _ABOUT_NO_SESSION | _ABOUT_A_SESSION
_CKR_SESSION_HANDLE_INVALID = 0xB3


class BuildError(Exception):
    """The module cannot be compiled; the message says what is missing."""


def build(directory: Path = BUILD_DIRECTORY) -> Path:
    """Compile the module into `directory`, unless this source was compiled there before; raises `BuildError`.

    Some 0.3 s, or none. Test runs at the same time do not disturb each other.
    """
    recipe = SOURCE.read_bytes() + " ".join((*_FLAGS, *_LINKER_FLAGS, platform.machine())).encode()
    module = directory / f"faulty_pkcs11-{hashlib.sha256(recipe).hexdigest()[:16]}.so"
    if module.exists():
        return module
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BuildError(
            f"no C compiler for {SOURCE.name}: apt-get install gcc libc6-dev (`make` as root does it)"
        )
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        output = Path(scratch) / module.name
        command = [compiler, *_FLAGS, "-o", str(output), str(SOURCE), *_LINKER_FLAGS]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise BuildError(f"{' '.join(command)}\n{done.stderr}")
        output.replace(module)
    return module


class _Action(enum.IntEnum):
    """`enum action` of the source."""

    PASS = 0
    ANSWER = 1
    CALL_THEN_ANSWER = 2
    HANG = 3
    CRASH = 4
    FLIP = 5
    INVALIDATE = 6


class _Rule(ctypes.Structure):
    """`struct rule` of the source."""

    _fields_ = (
        ("function", ctypes.c_uint32),
        ("action", ctypes.c_uint32),
        ("rv", ctypes.c_uint64),
        ("delay_us", ctypes.c_uint64),
        ("nth", ctypes.c_uint64),
        ("times", ctypes.c_uint64),
        ("seen", ctypes.c_uint64),
    )


class _Control(ctypes.Structure):
    """`struct control` of the source."""

    _fields_ = (
        ("magic", ctypes.c_uint32),
        ("armed", ctypes.c_uint32),
        ("sign_latency_us", ctypes.c_uint64),
        ("calls", ctypes.c_uint64 * _FUNCTION_COUNT),
        ("hits", ctypes.c_uint64 * _FUNCTION_COUNT),
        ("rules", _Rule * _RULE_COUNT),
    )


class Faults:
    """What is to go wrong in every process that loads the module with this object's `env`.

    Owns the control file, which is made anew in `directory`; `real_module` does what is not broken. Functions go
    by their names in PKCS #11, `FUNCTIONS`. Not for several threads.
    """

    def __init__(self, directory: Path, *, real_module: str = SOFTHSM) -> None:
        self._path = directory / "faulty_pkcs11.control"
        self._real_module = real_module
        self._path.write_bytes(bytes(_Control(magic=_MAGIC)))
        with self._path.open("r+b") as file:
            # The mapping lives as long as the structure that lies over it.
            self._control = _Control.from_buffer(mmap.mmap(file.fileno(), ctypes.sizeof(_Control)))

    @property
    def env(self) -> dict[str, str]:
        """Return the variables that a process needs before it loads the module."""
        return {"FAULTY_PKCS11_MODULE": self._real_module, "FAULTY_PKCS11_CONTROL": str(self._path)}

    def lane_config(self, config: Pkcs11LaneConfig, module: Path) -> Pkcs11LaneConfig:
        """Return the configuration with the faulty module in front of this object's real one."""
        return msgspec.structs.replace(config, module_path=str(module), env={**config.env, **self.env})

    def arm(
        self,
        function: str,
        *,
        nth: int = 1,
        times: int = 1,
        rv: int | None = None,
        after: bool = False,
        hang: bool = False,
        crash: bool = False,
        delay_us: int = 0,
        flip: bool = False,
        invalidate: bool = False,
    ) -> None:
        """Break the `nth` call from now on, of all processes together, and the `times` - 1 after it (0: all).

        rv: answer this CK_RV, in place of the call or `after` it was done all the same. rv=0 without `after`
            answers success with nothing in the caller's variables.
        hang: never return; only SIGKILL ends the process. crash: die of SIGSEGV.
        delay_us: wait before the call, or before what else is to happen.
        flip: flip a bit of the signature (C_Sign).
        invalidate: answer `rv`, CKR_SESSION_HANDLE_INVALID unless given, now and whenever this process uses the
            session again. The session is closed in the real module: its process must open another, log in and
            look for keys again.

        A C_Sign that only asks for the length is no call; other functions' calls for a length are. Of several
        rules that would hit a call one does; all of them count it. Raises ValueError for a combination that
        makes no sense, RuntimeError when eight rules are not used up yet.
        """
        action = _action(rv=rv, after=after, hang=hang, crash=crash, flip=flip, invalidate=invalidate)
        if action is _Action.PASS and delay_us == 0:
            raise ValueError("nothing is to happen")
        if action is _Action.FLIP and function != "C_Sign":
            raise ValueError("only C_Sign makes signatures")
        if action is _Action.INVALIDATE and function not in _ABOUT_A_SESSION:
            raise ValueError(f"{function} is not about a session")
        if nth < 1 or times < 0 or delay_us < 0:
            raise ValueError("nth counts from 1; times and delay_us are not negative")
        if rv is None:
            rv = _CKR_SESSION_HANDLE_INVALID if action is _Action.INVALIDATE else 0
        number = self._free_place()
        self._control.armed &= ~(1 << number)
        self._control.rules[number] = _Rule(_ordinal(function), action, rv, delay_us, nth, times, 0)
        self._control.armed |= 1 << number  # last: from here on processes look at the rule

    def clear(self) -> None:
        """Disarm every rule. What hangs goes on hanging, sessions stay invalid; counters and latency stay."""
        self._control.armed = 0

    def calls(self, function: str) -> int:
        """Count the calls so far, of all processes, broken ones too."""
        return int(self._control.calls[_ordinal(function)])

    def hits(self, function: str) -> int:
        """Count the calls that were broken; it rises before the fault takes effect."""
        return int(self._control.hits[_ordinal(function)])

    def sign_latency_us(self, value: int) -> None:
        """Let every C_Sign take so much longer, in all processes at once, as a network HSM does; 0 ends it.

        A process with FAULTY_PKCS11_SIGN_LATENCY_US in its environment keeps to that.
        """
        self._control.sign_latency_us = value

    def _free_place(self) -> int:
        for number, rule in enumerate(self._control.rules):
            used_up = rule.times > 0 and rule.seen >= rule.nth + rule.times - 1
            if used_up or not self._control.armed & (1 << number):
                return number
        raise RuntimeError(f"{_RULE_COUNT} rules are armed; clear() some")


def _ordinal(function: str) -> int:
    if function not in FUNCTIONS:
        raise ValueError(f"{function} is not one of {', '.join(FUNCTIONS)}")
    return FUNCTIONS[function]


def _action(*, rv: int | None, after: bool, hang: bool, crash: bool, flip: bool, invalidate: bool) -> _Action:
    answer = rv is not None and not invalidate  # an invalid session answers `rv` by itself
    wishes = {
        _Action.HANG: hang,
        _Action.CRASH: crash,
        _Action.FLIP: flip,
        _Action.INVALIDATE: invalidate,
        _Action.CALL_THEN_ANSWER: answer and after,
        _Action.ANSWER: answer and not after,
    }
    wanted = [action for action, is_wanted in wishes.items() if is_wanted]
    if len(wanted) > 1:
        raise ValueError(f"one thing at a time: {', '.join(action.name for action in wanted)}")
    if after and wanted != [_Action.CALL_THEN_ANSWER]:
        raise ValueError("only an answer (rv) can come after the call")
    return wanted[0] if wanted else _Action.PASS
