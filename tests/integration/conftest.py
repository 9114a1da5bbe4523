from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certmill import RunningCertmill, certmill
from tests.support.token_site import Site
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


@pytest.fixture(scope="session")
def first_site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Two tokens with the same three keys, and CA certificates for them; others are copies of it."""
    return Site.make(tmp_path_factory.mktemp("site") / "original")


@pytest.fixture
def site(first_site: Site, tmp_path: Path) -> Site:
    """A host with two tokens for a test that breaks things."""
    return first_site.copy(tmp_path / "site")
