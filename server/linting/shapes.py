"""Which shapes of certificates are known to be good: in memory, and in the database for the next start.

A shape is doubtful for good once any certificate of it has had a finding: its values matter, so every one of
them is linted. Both hold for one profile version, one linter and its version, and one table of exceptions.
"""

from sqlalchemy import delete, insert, select
from structlog.typing import FilteringBoundLogger

from pkix.shape import SHAPE_VERSION
from server.clock import Clock, epoch
from server.errors import StorageError
from server.linting.exceptions import Exceptions
from server.metrics import AuthorityMetrics
from server.storage.database import Database
from server.storage.schema import linted_shapes

MAX_SHAPES = 50_000
"""More are not remembered, and linted each time: a bound of memory (10 MB) and of the table."""
_DOUBTFUL = "!"

ShapeKey = tuple[str, str, bytes]
"""Linter, profile version, SHA-256 of the shape."""


class KnownShapes:
    """The shapes that were linted, by `version` of pkilint. `recall` before the first use."""

    def __init__(
        self,
        database: Database,
        exceptions: Exceptions,
        *,
        version: str,
        clock: Clock,
        metrics: AuthorityMetrics,
        logger: FilteringBoundLogger,
        limit: int = MAX_SHAPES,
    ) -> None:
        self._database = database
        self._suffix = f" {version} {exceptions.digest} {SHAPE_VERSION}"
        self._clock = clock
        self._logger = logger
        self._limit = limit
        self._good: set[ShapeKey] = set()
        self._doubtful: set[ShapeKey] = set()
        metrics.lint_shapes.labels("good").set_function(lambda: len(self._good))
        metrics.lint_shapes.labels("doubtful").set_function(lambda: len(self._doubtful))

    async def recall(self) -> None:
        """Read what earlier runs have linted with the same linter; raises `StorageError`."""
        s = linted_shapes.c
        query = select(s.linter, s.profile, s.shape_sha256).where(s.linter.contains(self._suffix, autoescape=True))
        async with self._database.read() as connection:
            for linter, profile, shape in await connection.execute(query.limit(2 * self._limit)):
                key = (linter.partition(" ")[0], profile, shape)
                (self._doubtful if linter.endswith(_DOUBTFUL) else self._good).add(key)
        self._good -= self._doubtful

    def is_good(self, key: ShapeKey) -> bool:
        """Say whether one of this shape was linted and none had a finding."""
        return key in self._good

    def is_doubtful(self, key: ShapeKey) -> bool:
        """Say whether one of this shape had a finding."""
        return key in self._doubtful

    async def remember(self, key: ShapeKey) -> None:
        """Take a shape for good, unless it is doubtful or there are too many. Raises nothing of the database."""
        if key not in self._doubtful and len(self._good) < self._limit:
            self._good.add(key)
            await self._write(key, "")

    async def doubt(self, key: ShapeKey) -> None:
        """Trust a shape no more: of its certificates every one is to be linted. Raises nothing of the database."""
        if key in self._doubtful:
            return
        self._good.discard(key)
        if len(self._doubtful) < self._limit:
            self._doubtful.add(key)
            await self._write(key, _DOUBTFUL)

    async def _write(self, key: ShapeKey, mark: str) -> None:
        s = linted_shapes.c
        linter, profile, shape = key
        name = linter + self._suffix
        row = {"profile": profile, "shape_sha256": shape, "linter": name + mark, "linted_at": epoch(self._clock())}
        names = (name, name + _DOUBTFUL)
        obsolete = (s.profile == profile) & (s.shape_sha256 == shape) & s.linter.in_(names)
        try:
            async with self._database.write() as connection:
                await connection.execute(delete(linted_shapes).where(obsolete))
                await connection.execute(insert(linted_shapes), row)
        except StorageError as error:  # memory knows it; after a restart it is linted again
            self._logger.warning("a linted shape is not in the database", error=str(error))
