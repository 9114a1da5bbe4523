"""Every fault of the faulty module, on a real token: what is armed must really happen, and nothing else."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from signer_pool.errors import TokenInitError
from signer_pool.lane_config import Pkcs11LaneConfig
from signer_pool.token_init import initialise_token, token_exists
from tests.support import faulty_module
from tests.support.faulty_module import FUNCTIONS, BuildError, Faults, build
from tests.unit.signer_pool.lanes import PIN, SO_PIN, softhsm_token

DEVICE_ERROR = 0x30
INVALID = {None: "SessionHandleInvalid", 0x82: "ObjectHandleInvalid", 0x101: "UserNotLoggedIn"}

# Uses the module through python-pkcs11 itself, not through a lane: lanes may hide faults, which is their task.
CHILD = """
import ctypes, os, sys, pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.util.ec import encode_named_curve_parameters
path, label, pin = sys.argv[1:]
library = pkcs11.lib(path)
digest = bytes(range(32))
def open_():
    global session
    session = library.get_token(token_label=label).open(rw=True, user_pin=pin)
def restart(): library.reinitialize(); open_()
def close(): session.close()
def find():
    global private, public
    [private] = session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.LABEL: "key"})
    [public] = session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.LABEL: "key"})
def count(name): return len(list(session.get_objects({Attribute.LABEL: name})))
def sign(): return private.sign(digest, mechanism=Mechanism.ECDSA).hex()
def verify(signature):
    return "good" if public.verify(digest, bytes.fromhex(signature), mechanism=Mechanism.ECDSA) else "bad"
def generate(name):
    parameters = {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
    session.create_domain_parameters(KeyType.EC, parameters, local=True).generate_keypair(label=name, store=True)
def info():
    return hex(ctypes.CDLL(path).C_GetSessionInfo(ctypes.c_ulong(session.handle), (ctypes.c_ulong * 4)()))
for line in sys.stdin:
    command, *arguments = line.split()
    try:
        answer = globals()[command](*arguments)
    except pkcs11.PKCS11Error as error:
        answer = type(error).__name__
    os.write(1, f"{'ok' if answer is None else answer}\\n".encode())
"""


class Child:
    """A process that runs `CHILD`."""

    def __init__(self, config: Pkcs11LaneConfig, env: dict[str, str]) -> None:
        command = [sys.executable, "-P", "-c", CHILD, config.module_path, config.token_label, config.pin]
        env, pipe = {**os.environ, **config.env, **env}, subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)

    def send(self, command: str) -> None:
        assert self.process.stdin
        print(command, file=self.process.stdin, flush=True)

    def ask(self, command: str) -> str:
        """Return a result, or the name of what went wrong; nothing if the process ended."""
        assert self.process.stdout
        self.send(command)
        return self.process.stdout.readline().strip()

    def assert_signs(self) -> None:
        """Let it look for the key, sign, and verify."""
        assert self.ask("find") == "ok"
        assert self.ask(f"verify {self.ask('sign')}") == "good"


Start = Callable[..., Child]


@pytest.fixture(scope="module")
def token() -> Iterator[Pkcs11LaneConfig]:
    """A token with a P-256 key, made through the module; no control file yet: nothing can break."""
    with softhsm_token() as softhsm:
        config = msgspec.structs.replace(softhsm, module_path=str(build()))
        child = Child(config, {})
        with child.process:
            assert [child.ask("open_"), child.ask("generate key")] == ["ok", "ok"]
        yield config


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    return Faults(tmp_path)


@pytest.fixture
def start(token: Pkcs11LaneConfig, faults: Faults) -> Iterator[Start]:
    """Start a child that is ready to sign. One by one: SoftHSM may refuse to be opened twice at an instant."""
    with ExitStack() as stack:

        def start(**env: str) -> Child:
            child = Child(faults.lane_config(token, Path(token.module_path)), env)
            stack.enter_context(child.process)
            stack.callback(child.process.kill)
            assert [child.ask("open_"), child.ask("find")] == ["ok", "ok"]
            return child

        yield start


def duration_s(child: Child, answer: str = "") -> float:
    started = time.perf_counter()
    assert child.ask("sign").startswith(answer)
    return time.perf_counter() - started


def test_nothing_armed_changes_nothing(start: Start, faults: Faults) -> None:
    child = start()
    child.assert_signs()
    child.assert_signs()
    assert faults.calls("C_Sign") == 2  # python-pkcs11 asks for the length each time, which is no call
    assert [faults.calls(name) for name in ("C_Initialize", "C_OpenSession", "C_Login")] == [1, 1, 1]
    assert not any(faults.hits(name) for name in FUNCTIONS)


def test_calls_are_counted_across_processes(start: Start, faults: Faults) -> None:
    first, second = start(), start()
    faults.arm("C_Sign", nth=3, times=2, rv=DEVICE_ERROR)
    first.assert_signs()
    second.assert_signs()
    assert [first.ask("sign"), second.ask("sign")] == ["DeviceError"] * 2
    first.assert_signs()  # nothing of the failed operation is left over
    second.assert_signs()
    assert (faults.calls("C_Sign"), faults.hits("C_Sign")) == (6, 2)


def test_call_that_is_done_although_it_fails(start: Start, faults: Faults) -> None:
    child = start()
    faults.arm("C_GenerateKeyPair", rv=DEVICE_ERROR)
    assert [child.ask("generate never"), child.ask("count never")] == ["DeviceError", "0"]
    faults.arm("C_GenerateKeyPair", rv=DEVICE_ERROR, after=True)
    assert [child.ask("generate lost"), child.ask("count lost")] == ["DeviceError", "2"]


@pytest.mark.parametrize(
    ("command", "functions"),
    [
        ("restart", ["C_Initialize", "C_GetSlotList", "C_GetTokenInfo", "C_OpenSession", "C_Login", "C_Finalize"]),
        ("find", ["C_FindObjectsInit", "C_FindObjects", "C_FindObjectsFinal", "C_GetAttributeValue"]),
        ("sign", ["C_SignInit", "C_Sign"]),
        ("close", ["C_Logout", "C_CloseSession"]),
    ],
)
def test_every_function_can_be_broken(command: str, functions: list[str], start: Start, faults: Faults) -> None:
    child = start()
    for function in functions:
        # python-pkcs11 is not impressed until the attributes cannot be read one by one either: 2 + 2 calls.
        times = 4 if function == "C_GetAttributeValue" else 1
        faults.arm(function, times=times, rv=DEVICE_ERROR, after=function == "C_Finalize")
        assert child.ask(command) == "DeviceError"
        assert faults.hits(function) == times
        assert child.ask("restart") == "ok"
        child.assert_signs()


def test_functions_that_only_ctypes_calls(start: Start, faults: Faults, tmp_path: Path) -> None:
    child = start()
    faults.arm("C_GetSessionInfo", rv=DEVICE_ERROR)
    assert [child.ask("info"), child.ask("info")] == ["0x30", "0x0"]
    (tmp_path / "conf").write_text(f"directories.tokendir = {tmp_path}\nobjectstore.backend = file\n")
    env, module = {**faults.env, "SOFTHSM2_CONF": f"{tmp_path}/conf"}, str(build())
    for function, exists in (("C_InitToken", False), ("C_InitPIN", True)):
        faults.arm(function, rv=DEVICE_ERROR)
        with pytest.raises(TokenInitError, match=f"{function} answers 0x30"):
            initialise_token(module, "new", SO_PIN, PIN, env)
        assert token_exists(module, "new", env) is exists


def test_hang_ends_by_sigkill_only(start: Start, faults: Faults) -> None:
    hanging, other = start(), start()
    faults.arm("C_Sign", hang=True)
    hanging.send("sign")
    while not faults.hits("C_Sign"):
        time.sleep(0.002)
    other.assert_signs()
    hanging.process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        hanging.process.wait(0.2)
    hanging.process.kill()
    assert hanging.process.wait() == -signal.SIGKILL


def test_crash(start: Start, faults: Faults) -> None:
    child = start()
    faults.arm("C_Sign", nth=2, crash=True)
    child.assert_signs()
    assert (child.ask("sign"), child.process.wait(), faults.hits("C_Sign")) == ("", -signal.SIGSEGV, 1)


def test_delay_and_latency(start: Start, faults: Faults) -> None:
    child, constant = start(), start(FAULTY_PKCS11_SIGN_LATENCY_US="0")
    faults.arm("C_SignInit", delay_us=100_000)
    faults.arm("C_SignInit", nth=2, delay_us=100_000, rv=DEVICE_ERROR)
    assert duration_s(child) >= 0.1
    assert duration_s(child, "DeviceError") >= 0.1
    faults.sign_latency_us(100_000)
    assert duration_s(child) >= 0.1
    faults.sign_latency_us(10**10)
    constant.assert_signs()
    faults.sign_latency_us(0)
    child.assert_signs()


def test_flipped_signature_does_not_verify(start: Start, faults: Faults) -> None:
    child = start()
    faults.arm("C_Sign", flip=True)
    assert child.ask(f"verify {child.ask('sign')}") == "bad"
    child.assert_signs()


@pytest.mark.parametrize("rv", INVALID)
@pytest.mark.parametrize("function", ["C_SignInit", "C_Sign", "C_FindObjectsInit", "C_FindObjects"])
def test_invalid_session_heals_by_reopening(function: str, rv: int | None, start: Start, faults: Faults) -> None:
    child, other, name = start(), start(), INVALID[rv]
    faults.arm(function, rv=rv, invalidate=True)
    assert child.ask("sign" if "Sign" in function else "find") == name
    assert faults.hits(function) == 1
    assert [child.ask(command) for command in ("sign", "find", "sign", "close")] == [name] * 4
    other.assert_signs()  # each process has sessions of its own
    # Either logs in anew, as the token has logged the user out; C_Finalize lets numbers of sessions come again.
    assert child.ask("open_" if "Sign" in function else "restart") == "ok"
    child.assert_signs()


def test_several_rules(start: Start, faults: Faults) -> None:
    child = start()
    for _ in range(8):
        faults.arm("C_SignInit", nth=2, delay_us=1)
    with pytest.raises(RuntimeError, match="8 rules"):
        faults.arm("C_SignInit", crash=True)
    child.assert_signs()
    child.assert_signs()
    assert faults.hits("C_SignInit") == 1  # one rule a call
    faults.arm("C_SignInit", rv=DEVICE_ERROR)  # in the place of one that is used up
    assert child.ask("sign") == "DeviceError"
    faults.arm("C_SignInit", times=0, rv=DEVICE_ERROR)
    assert {child.ask("sign") for _ in range(20)} == {"DeviceError"}
    faults.clear()
    child.assert_signs()


def test_faults_that_make_no_sense(faults: Faults) -> None:
    nonsense: list[tuple[str, dict[str, int], str]] = [
        ("C_Sign", {}, "nothing"),
        ("C_Sign", {"hang": 1, "crash": 1}, "HANG, CRASH"),
        ("C_Sign", {"flip": 1, "after": 1}, "after"),
        ("C_SignInit", {"flip": 1}, "signatures"),
        ("C_OpenSession", {"invalidate": 1}, "session"),
        ("C_Sign", {"hang": 1, "nth": 0}, "nth"),
        ("C_Encrypt", {"hang": 1}, "C_Encrypt"),
    ]
    for function, fault, complaint in nonsense:
        with pytest.raises(ValueError, match=complaint):
            faults.arm(function, **fault)  # type: ignore[arg-type]  # of a dict of many types


@pytest.mark.parametrize("damage", ["no file", "wrong size", "wrong magic", "no real module"])
def test_module_without_its_faults_does_not_load(damage: str, token: Pkcs11LaneConfig, faults: Faults) -> None:
    control, env = Path(faults.env["FAULTY_PKCS11_CONTROL"]), faults.env
    if damage == "no file":
        control.unlink()
    elif damage == "no real module":
        env["FAULTY_PKCS11_MODULE"] = "/nowhere.so"
    else:
        control.write_bytes(b"" if damage == "wrong size" else bytes(control.stat().st_size))
    with Child(token, env).process as process:
        assert process.wait() == 70


def test_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, directory = tmp_path / "source.c", tmp_path / "new"
    monkeypatch.setattr(faulty_module, "SOURCE", source)
    source.write_text("int")
    with pytest.raises(BuildError, match=r"source\.c:1"):
        build(directory)
    source.write_text("extern int nothing;")
    built = build(directory)
    monkeypatch.setenv("PATH", "")
    assert (build(directory), list(directory.iterdir())) == (built, [built])  # there, so needs no compiler
    with pytest.raises(BuildError, match="apt-get install gcc"):
        build(tmp_path / "elsewhere")
