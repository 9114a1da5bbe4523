"""The linter's processes: what cannot be linted in time is refused, and nothing is signed for it."""

from collections.abc import Awaitable, Callable
from typing import Self

from structlog.typing import FilteringBoundLogger

from server.config import LintSection
from server.errors import LintUnavailable
from server.linting.findings import Finding
from server.linting.frames import Lint, Linted
from server.linting.worker import MODULE
from server.metrics import AuthorityMetrics
from server.workers.pool import PAUSES_S, PoolMetrics, PoolSettings, WorkerPool
from server.workers.process import WorkerProcess


async def start_linter() -> WorkerProcess:
    """Start a linter's process."""
    return await WorkerProcess.start(MODULE)


class LintPool(WorkerPool[WorkerProcess, Lint, list[Finding]]):
    """Keeps the linter's processes."""

    @classmethod
    def of(
        cls,
        settings: LintSection,
        *,
        metrics: AuthorityMetrics,
        logger: FilteringBoundLogger,
        start: Callable[[], Awaitable[WorkerProcess]] = start_linter,
        pauses_s: tuple[float, ...] = PAUSES_S,
    ) -> Self:
        """Make the pool that the settings want."""

        async def ask(process: WorkerProcess, request: Lint) -> list[Finding]:
            with metrics.lint_seconds.labels(request.linter).time():
                return (await process.ask(request, Linted)).findings

        return cls(
            "the linter",
            PoolSettings(
                processes=settings.workers,
                deadline_s=settings.deadline_s,
                start_deadline_s=settings.start_deadline_s,
                queue_limit=settings.queue_limit,
                pauses_s=pauses_s,
            ),
            start=start,
            ask=ask,
            refusal=LintUnavailable,
            metrics=PoolMetrics(
                ready=metrics.lint_workers, restarts=metrics.lint_worker_restarts, waiting=metrics.lint_queue_depth
            ),
            logger=logger,
        )

    async def lint(self, certificate_der: bytes, linter: str, *, bulk: bool = False) -> list[Finding]:
        """Return what pkilint finds of WARNING or worse; raises `LintUnavailable`. Bulk waits for the others."""
        return await self.request(Lint(linter, certificate_der), bulk=bulk)
