"""The public port belongs to the workers of one home."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ocsp.errors import ListenError
from server import public_port
from server.config import Address
from server.home import Home, Lock, exclusive, held
from server.public_port import listen, require_free
from tests.support.ports import free_ports


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public_port, "_PATIENCE_S", 0.1)


@pytest.fixture
def address() -> Address:
    return Address("127.0.0.1", free_ports(1)[0])


@pytest.fixture
def workers() -> Iterator[ExitStack]:
    """Everything that the workers of a test hold; closing it ends them."""
    with ExitStack() as stack:
        yield stack


def made(directory: Path) -> Home:
    home = Home(directory)
    home.create()
    return home


def work(workers: ExitStack, home: Home, address: Address, number: int = 0) -> tuple[Lock, list[socket.socket]]:
    """Do what a worker does."""
    lock = workers.enter_context(exclusive(home, f"ocsp-{number}"))
    sockets = listen(home, address, backlog=10)
    for one in sockets:
        workers.enter_context(one)
    lock.write(str(address))
    return lock, sockets


def test_workers_of_a_home_share_its_port_and_no_other_home_gets_it(
    tmp_path: Path, address: Address, workers: ExitStack
) -> None:
    ours, theirs = made(tmp_path / "ours"), made(tmp_path / "theirs")
    work(workers, ours, address)
    work(workers, ours, address, 1)
    require_free(ours, address)
    for attempt in (lambda: listen(theirs, address, backlog=10), lambda: require_free(theirs, address)):
        with pytest.raises(
            ListenError, match=rf"setting listen\.public: cannot listen on {address}: Address already"
        ):
            attempt()
    workers.close()
    require_free(theirs, address)
    work(workers, theirs, address)
    with pytest.raises(ListenError):
        listen(ours, address, backlog=10)


def test_a_worker_that_has_not_said_so_yet_is_waited_for(
    tmp_path: Path, address: Address, workers: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = made(tmp_path)
    lock, _ = work(workers, home, address)
    lock.write(" " * len(str(address)))
    monkeypatch.setattr("server.public_port.time.sleep", lambda _: lock.write(str(address)))
    work(workers, home, address, 1)


def test_nobody_stays_beside_those_who_came_when_the_sibling_went(
    tmp_path: Path, address: Address, workers: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = made(tmp_path / "ours"), made(tmp_path / "theirs")
    work(workers, theirs, address)
    answers = iter([True, False])  # it was there when we looked, and is gone when we listen
    monkeypatch.setattr(public_port, "_sibling_listens", lambda *_: next(answers, False))
    with pytest.raises(ListenError):
        listen(ours, address, backlog=10)


def test_a_note_counts_only_while_its_lock_is_held(tmp_path: Path, address: Address) -> None:
    home = made(tmp_path)
    assert held(home.lock("ocsp-0")) is None
    with exclusive(home, "ocsp-0") as lock:
        assert held(home.lock("ocsp-0")) == ""
        lock.write("a note")
        assert held(home.lock("ocsp-0")) == "a note"
        lock.release()
        lock.write("too late")
        assert held(home.lock("ocsp-0")) is None
        assert not lock.acquire()
    with exclusive(home, "ocsp-0"):
        assert held(home.lock("ocsp-0")) == "", "the note of the one before is gone"


def test_every_address_of_a_name_is_listened_on(tmp_path: Path, workers: ExitStack) -> None:
    address = Address("localhost", free_ports(1)[0])
    _, sockets = work(workers, made(tmp_path), address)
    expected = {found[4][0] for found in socket.getaddrinfo("localhost", address.port, type=socket.SOCK_STREAM)}
    assert {one.getsockname()[0] for one in sockets} == expected


def test_both_families_may_be_named(tmp_path: Path, workers: ExitStack, address: Address) -> None:
    home = made(tmp_path)
    work(workers, home, address)
    work(workers, home, Address("::1", address.port), 1)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_is_not_ours_is_told_at_once(
    tmp_path: Path, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_port, "_PATIENCE_S", 60)
    with pytest.raises(ListenError, match=rf"setting listen\.public: cannot listen on {host}:80"):
        listen(made(tmp_path), Address(host, 8080), backlog=10)
