"""PINs: where they come from, what is refused, and that no message repeats one."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from server.errors import ConfigError
from server.keys.pin import PinError, ask_on_terminal, check_pin_source, encode_pins, read_pin, receive_pins

PIN = "739155 š"


def never() -> str:
    raise AssertionError("asked for a PIN")


def read(source: str, credentials: Path | None = None) -> str:
    environ = {} if credentials is None else {"CREDENTIALS_DIRECTORY": str(credentials)}
    return read_pin(source, environ, never, setting="tokens[0].pin")


def refusal(source: str, credentials: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        read(source, credentials)
    message = str(caught.value)
    assert message.startswith("setting tokens[0].pin: ")
    assert "\n" not in message
    assert "739155" not in message
    return message


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pin"
    path.touch(mode=0o600)
    path.write_text(f"{PIN}\n")
    return path


@pytest.mark.parametrize("form", ["file:{}", "{}", "file://{}"])
def test_pin_of_a_file_is_its_line(file: Path, form: str) -> None:
    assert read(form.format(file)) == PIN


def test_spaces_belong_to_a_pin_and_line_ends_do_not(file: Path) -> None:
    file.write_bytes(b" 1 2 \r\n\n")
    assert read(f"file:{file}") == " 1 2 "


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_file_that_others_can_open_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert f"chmod 600 {file}" in refusal(f"file:{file}")


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n"])
def test_empty_pin_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert f"{file} is empty" in refusal(str(file))


@pytest.mark.parametrize("content", [b"739155\n739155\n", b"\n739155", b"739155\r1", b"739155\0"])
def test_more_than_a_line_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert "nothing but the PIN" in refusal(str(file))


def test_file_that_is_no_text_is_refused(file: Path) -> None:
    file.write_bytes(b"739155\xff")
    assert "UTF-8" in refusal(str(file))


def test_missing_file_and_what_is_no_file_are_told(tmp_path: Path) -> None:
    assert re.search(r"/absent cannot be read \(No such file or directory\)", refusal(f"file:{tmp_path}/absent"))
    assert f"{tmp_path} is not a regular file" in refusal(f"file:{tmp_path}")
    os.mkfifo(tmp_path / "fifo", 0o600)
    assert "is not a regular file" in refusal(f"file:{tmp_path}/fifo")


def test_pin_of_a_systemd_credential(file: Path) -> None:
    file.chmod(0o440)  # so they look, with systemd's ACL for the service's user
    assert read("credential:pin", file.parent) == PIN
    assert "LoadCredential=pin:/" in refusal("credential:pin")
    assert "/absent cannot be read" in refusal("credential:absent", file.parent)


def test_pin_that_is_typed_obeys_the_same_rules() -> None:
    assert read_pin("prompt", {}, lambda: PIN, setting="x") == PIN
    with pytest.raises(ConfigError, match="setting x: what was entered is empty"):
        read_pin("prompt", {}, lambda: "", setting="x")


@pytest.mark.parametrize(
    "source",
    ["", "739155", "file:", "file:pin", "file://host/pin", "file:/a\0", "//a", "credential:", "credential:../pin",
     "credential:..", "credential:a/b", "|/bin/pinomatic", "Prompt", "prompt "],
)  # fmt: skip
def test_other_sources_are_refused(source: str) -> None:
    with pytest.raises(PinError, match="file:/path/of/the/pin, credential:NAME or prompt"):
        check_pin_source(source)
    assert "not the PIN itself" in refusal(source)


def test_pins_go_through_a_pipe_as_one_line() -> None:
    pins = {"hsm-a": PIN, "hsm b": "2"}
    sent = encode_pins(pins)
    assert sent.count(b"\n") == 1
    assert receive_pins(io.BytesIO(sent)) == pins


@pytest.mark.parametrize(
    "sent", [b"", b"739155\n", b'{"a": 739155}', b'{"a": "739155"', b'["739155"]', b'{"a":"\xff"}']
)
def test_what_is_not_from_us_is_refused(sent: bytes) -> None:
    with pytest.raises(ConfigError, match=r"--pins-on-stdin.*JSON") as caught:
        receive_pins(io.BytesIO(sent))
    assert "739155" not in str(caught.value)


ASK = "from server.keys.pin import ask_on_terminal; print(repr(ask_on_terminal('hsm-a')))"


def test_terminal_is_asked_without_echo() -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", ASK], stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        assert os.read(ours, 100).endswith(b"PIN of token hsm-a: ")
        os.write(ours, b"1234\n")
        said, _ = process.communicate(timeout=30)
        assert said == b"'1234'\n"
        assert b"1234" not in os.read(ours, 100)
    os.close(ours)


@pytest.mark.parametrize("typed", [b"", b"1234\n"])
def test_without_a_terminal_nothing_is_asked(typed: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        input=typed,
        capture_output=True,
        timeout=30,
        check=False,
        start_new_session=True,
    )
    assert done.stderr.strip().endswith(b"use file:/path or credential:NAME")
    assert b"1234" not in done.stdout + done.stderr


def test_end_of_input_on_the_terminal_is_no_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(prompt: str) -> str:
        raise EOFError(prompt)

    monkeypatch.setattr("getpass.getpass", ended)
    with pytest.raises(PinError, match="terminal"):
        ask_on_terminal("hsm-a")
