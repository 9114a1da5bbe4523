"""What every service of the authority stands on."""

from dataclasses import dataclass

from structlog.typing import FilteringBoundLogger

from server.clock import Clock
from server.metrics import AuthorityMetrics
from server.storage.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Database, clock, metrics and logger, handed over together instead of being globals."""

    database: Database
    clock: Clock
    metrics: AuthorityMetrics
    logger: FilteringBoundLogger
