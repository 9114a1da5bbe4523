"""Some of `make crash`: one step of each kind, one start, an fsync that kills and two that fail."""

import pytest

from loadtests.crash_site import EIO, Crash, CrashSite
from server.milestones import Step

pytestmark = pytest.mark.usefixtures("unmeasured")

CRASHES = [
    Crash(step=Step.CERTIFICATES_SIGNED, nth=3),
    Crash(step=Step.ISSUED_DURABLE, nth=2),
    Crash(step=Step.GOOD_WITHDRAWN, nth=2),
    Crash(step=Step.RECOVERY_BEFORE_COMMIT, nth=1, at_start=True),
    Crash(step=None, nth=3),
    Crash(step=None, nth=4, fault=EIO),
    Crash(step=None, nth=1, fault=EIO, file="certmill.sqlite"),  # in a checkpoint
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> CrashSite:
    site = CrashSite(tmp_path_factory.mktemp("crash"), {"CERTMILL_SIGNER_KIND": "software"})
    site.prepare()
    return site


@pytest.mark.parametrize("crash", CRASHES, ids=lambda crash: crash.name)
def test_a_crash_loses_nothing_doubles_nothing_and_leaves_no_ghost(site: CrashSite, crash: Crash) -> None:
    outcome = site.crash(crash)
    assert outcome.wrong == []
    assert outcome.acknowledged > 0
