from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certmill import RunningCertmill, certmill
from tests.support.tokens import ReplicaToken, make_token


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCertmill]:
    """One certmill for the tests that leave it whole."""
    with certmill(tmp_path_factory.mktemp("certmill") / "home", CERTMILL_LISTEN_BODY_DEADLINE_S="1") as server:
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory for a test that breaks things."""
    return tmp_path / "home"


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start processes without measuring their coverage: for tests that start hundreds, whose lines others reach."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> ReplicaToken:
    """A token that others are copies of."""
    return make_token(tmp_path_factory.mktemp("token") / "original")
