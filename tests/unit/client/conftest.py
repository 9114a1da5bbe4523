from collections.abc import Iterator
from pathlib import Path

import pytest

from client.api import CertmillClient
from tests.support.fake_api import FakeApi, fake_api


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeApi]:
    with fake_api(tmp_path) as running:
        yield running


class Patient(CertmillClient):
    """Keeps its pauses in mind instead of making them."""

    def __init__(self, api: FakeApi, timeout_s: float = 5) -> None:
        super().__init__(api.url, api.certificate, api.key, api.certificate, timeout_s=timeout_s)
        self.pauses: list[float] = []
        self.transport.sleep = self.pauses.append


@pytest.fixture
def patient(api: FakeApi) -> Iterator[Patient]:
    with Patient(api) as certmill:
        yield certmill
