"""Initialising tokens: in a child as callers do it, and in this process over a stand-in module."""

import ctypes
import io
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from signer_pool import token_init
from signer_pool.errors import TokenExists, TokenInitError
from signer_pool.pkcs11_session import open_pkcs11_session
from signer_pool.token_init import Outcome, Task, initialise_token, perform, token_exists
from tests.unit.signer_pool.lanes import MODULE, PIN, SO_PIN, softhsm_token

TASK = Task("/m.so", "token-1", "so-pin", "user-pin")
UNINITIALISED = 0


def test_fresh_token_opens_with_its_pin_and_is_not_initialised_twice() -> None:
    with softhsm_token("fresh") as config:
        assert token_exists(MODULE, "fresh", config.env)
        assert not token_exists(MODULE, "other", config.env)
        with pytest.raises(TokenExists, match="fresh"):
            initialise_token(MODULE, "fresh", SO_PIN, PIN, config.env)
        initialise_token(MODULE, "other", SO_PIN, PIN, config.env)
        assert token_exists(MODULE, "other", config.env)


@pytest.mark.parametrize(
    ("label", "so_pin", "user_pin", "message"),
    [
        ("t", "", "1234", "PINs"),
        ("t", "1234", "", "PINs"),
        ("", "1234", "1234", "label"),
        ("x" * 33, "1234", "1234", "label"),
    ],
)
def test_wrong_arguments(label: str, so_pin: str, user_pin: str, message: str) -> None:
    with pytest.raises(TokenInitError, match=message):
        initialise_token(MODULE, label, so_pin, user_pin, {})


def test_missing_module_and_broken_configuration_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(TokenInitError, match=r"^/nonexistent\.so: cannot be loaded.*correct the path$"):
        token_exists("/nonexistent.so", "t", {})
    with pytest.raises(TokenInitError, match="C_Initialize answers 0x"):
        token_exists(MODULE, "t", {"SOFTHSM2_CONF": str(tmp_path / "absent")})


def _child_that(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{code}\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))


def test_module_that_ends_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _child_that("cat >/dev/null; exit 7", tmp_path, monkeypatch)
    with pytest.raises(TokenInitError, match="status 7"):
        token_exists(MODULE, "t", {})


def test_module_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _child_that("exec sleep 60", tmp_path, monkeypatch)
    monkeypatch.setattr(token_init, "_TIMEOUT_S", 0.2)
    with pytest.raises(TokenInitError, match="no answer"):
        token_exists(MODULE, "t", {})


def test_task_shows_no_pin() -> None:
    assert "pin" not in repr(TASK)


class FakeModule:
    """Stands for a module with the given tokens: label, flags and status of each slot."""

    def __init__(self, *slots: tuple[bytes, int, int]) -> None:
        self.slots = slots
        self.calls: list[str] = []
        self.failing = ""

    def __getattr__(self, name: str) -> Any:
        def call(*_: object) -> int:
            self.calls.append(name)
            return 0xA0 if name == self.failing else 0

        return call

    def C_GetSlotList(self, _: bool, slots: Any, count: Any) -> int:
        count._obj.value = len(self.slots)
        if slots is not None:
            slots[:] = range(len(self.slots))
        return 0

    def C_GetTokenInfo(self, slot: Any, info: Any) -> int:
        status: int
        label, flags, status = self.slots[slot.value]
        info._obj.label, info._obj.flags = label, flags
        return status


def use(monkeypatch: pytest.MonkeyPatch, module: FakeModule) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: module)


def test_first_free_slot_is_taken_and_empty_ones_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeModule((b"", 0, 0xE0), (b"taken  ", 0x400, 0), (b"", UNINITIALISED, 0), (b"", 0, 0))
    use(monkeypatch, module)
    assert perform(TASK) == Outcome(exists=False)
    assert module.calls == [
        "C_Initialize", "C_InitToken", "C_OpenSession", "C_Login", "C_InitPIN", "C_CloseSession", "C_Finalize",
    ]  # fmt: skip


def test_looking_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeModule((b"token-1", 0x400, 0))
    use(monkeypatch, module)
    assert perform(Task("/m.so", "token-1")) == Outcome(exists=True)
    assert perform(Task("/m.so", "other")) == Outcome(exists=False)
    assert module.calls == ["C_Initialize", "C_Finalize"] * 2


def test_no_free_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeModule((b"taken", 0x400, 0)))
    with pytest.raises(TokenInitError, match="no slot"):
        perform(TASK)


@pytest.mark.parametrize("function", ["C_Initialize", "C_InitToken", "C_OpenSession", "C_Login", "C_InitPIN"])
def test_each_refusal_names_its_function(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    module = FakeModule((b"", UNINITIALISED, 0))
    module.failing = function
    use(monkeypatch, module)
    with pytest.raises(TokenInitError, match=rf"token-1.*{function} answers 0xA0") as caught:
        perform(TASK)
    assert "-pin" not in str(caught.value)


@pytest.mark.parametrize("slots", [[(b"token-1", 0x400, 0)], [(b"taken", 0x400, 0)]])
def test_main_answers_on_its_descriptor(
    monkeypatch: pytest.MonkeyPatch, slots: list[tuple[bytes, int, int]]
) -> None:
    use(monkeypatch, FakeModule(*slots))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(msgspec.json.encode(TASK))))
    read_end, write_end = os.pipe()
    assert token_init.main([str(write_end)]) == 0
    with os.fdopen(read_end, "rb") as answers:
        outcome = msgspec.json.decode(answers.read(), type=Outcome)
    assert outcome.exists is (slots[0][0] == b"token-1")
    assert bool(outcome.error) is not outcome.exists


def test_session_of_this_process_opens_what_was_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    with softhsm_token("inline") as config:
        monkeypatch.setenv("SOFTHSM2_CONF", config.env["SOFTHSM2_CONF"])
        session = open_pkcs11_session(config)
        assert session.public_keys() == {}
        assert "SoftHSM" in session.token
