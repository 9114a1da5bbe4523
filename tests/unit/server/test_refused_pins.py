"""What is remembered of PINs that were refused."""

import stat
from pathlib import Path

import pytest

from server.keys import refused_pins
from server.keys.refused_pins import RefusedPins
from signer_pool.lane_config import LaneConfig, Pkcs11LaneConfig, SoftwareLaneConfig
from tests.unit.signer_pool.lanes import MODULE, MemoryLogger

WRONG = "pin-0000-wrong"


def lanes(**pins: str) -> list[LaneConfig]:
    """Two lanes for each token."""
    return [
        Pkcs11LaneConfig(module_path=MODULE, token_label=name, pin=pin) for name, pin in pins.items() for _ in "12"
    ]


def memory(path: Path, logger: MemoryLogger | None = None, **pins: str) -> RefusedPins:
    return RefusedPins(path, lanes(**pins), logger or MemoryLogger())  # type: ignore[arg-type]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "refused-pins.json"


def test_a_refused_pin_is_known_to_the_next_process(file: Path) -> None:
    logger = MemoryLogger()
    first = memory(file, logger, a=WRONG, b="2")
    assert first.recall() == {}
    assert not file.exists()
    first.remember("a", "token 'a': PIN refused")
    ((level, line, details),) = logger.lines
    assert (level, details["token"], details["cause"]) == ("error", "a", "token 'a': PIN refused")
    assert f"delete {file} to try this PIN again" in line
    for _ in range(3):
        told = memory(file, a=WRONG, b="2").recall()
        assert set(told) == {"a"}
        assert told["a"].startswith("token 'a': PIN refused; it was refused at an earlier start: ")
        assert f"delete {file} to try the same PIN again" in told["a"]


def test_the_file_is_private_and_holds_no_pin(file: Path) -> None:
    for _ in range(2):
        memory(file, a=WRONG).remember("a", "no")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert WRONG not in file.read_text()


def test_the_same_pin_of_two_tokens_does_not_look_the_same(file: Path) -> None:
    both = memory(file, a=WRONG, b=WRONG)
    both.remember("a", "no")
    both.remember("b", "no")
    one, other = file.read_text().split('"b":')
    assert one.split('"scrypt":')[1][:20] != other.split('"scrypt":')[1][:20]
    assert set(both.recall()) == {"a", "b"}


def test_another_pin_is_a_new_one_and_the_old_is_forgotten(file: Path) -> None:
    both = memory(file, a=WRONG, b=WRONG)
    both.remember("a", "no")
    both.remember("b", "no")
    assert set(memory(file, a="corrected", b=WRONG).recall()) == {"b"}
    assert set(memory(file, a=WRONG, b=WRONG).recall()) == {"b"}


def test_a_token_that_is_not_named_now_is_not_forgotten(file: Path) -> None:
    memory(file, a=WRONG).remember("a", "no")
    assert memory(file, b="2").recall() == {}
    assert set(memory(file, a=WRONG, b="2").recall()) == {"a"}


def test_what_a_person_deletes_stays_deleted(file: Path) -> None:
    both = memory(file, a=WRONG, b=WRONG)
    both.remember("a", "no")
    file.unlink()
    both.remember("b", "no")
    assert set(memory(file, a=WRONG, b=WRONG).recall()) == {"b"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b'{"a": {"reason": "no"}}', b"\xff\xfe"])
def test_a_damaged_file_is_removed_and_told(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    logger = MemoryLogger()
    again = memory(file, logger, a=WRONG)
    assert again.recall() == {}
    assert not file.exists()
    assert [level for level, *_ in logger.lines] == ["warning"]
    again.remember("a", "no")
    assert set(memory(file, a=WRONG).recall()) == {"a"}


def test_what_can_be_neither_read_nor_written_is_told(file: Path) -> None:
    file.mkdir()
    logger = MemoryLogger()
    blind = memory(file, logger, a=WRONG)
    assert blind.recall() == {}
    blind.remember("a", "no")
    assert {line for level, line, _ in logger.lines if level == "error"} == {
        "file cannot be removed",
        "refused PINs cannot be remembered: a restart would try them again; see to the disk",
    }


def test_passphrases_of_software_keys_are_remembered_too(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refused_pins, "_SCRYPT_N", 2)
    lane = SoftwareLaneConfig(directory="/nowhere", passphrase=WRONG)
    RefusedPins(file, [lane], MemoryLogger()).remember("software", "no")  # type: ignore[arg-type]
    assert set(RefusedPins(file, [lane], MemoryLogger()).recall()) == {"software"}  # type: ignore[arg-type]
