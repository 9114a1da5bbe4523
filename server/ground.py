"""What every service of the authority stands on."""

from dataclasses import dataclass

from structlog.typing import FilteringBoundLogger

from server.clock import Clock
from server.metrics import AuthorityMetrics
from server.milestones import Milestones, unwatched
from server.storage.database import Database
from server.storage.presence import ALONE, Leadership


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Database, clock, metrics and logger, handed over together instead of being globals.

    `authority`: our id among those on the database; `leadership`: whether the work that one does for all is ours.
    `reached` is told of each numbered step as it is passed (see `server.milestones`).
    """

    database: Database
    clock: Clock
    metrics: AuthorityMetrics
    logger: FilteringBoundLogger
    authority: str = ""
    leadership: Leadership = ALONE
    reached: Milestones = unwatched
