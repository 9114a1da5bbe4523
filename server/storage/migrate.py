"""Bring a database to the schema of this version (Alembic)."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from server.errors import StorageError


def upgrade(path: Path) -> None:
    """Create or upgrade the SQLite database at `path`; raises `StorageError`. Blocking."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.set_main_option("path_separator", "os")
    engine = create_engine(f"sqlite:///{path}")
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except SQLAlchemyError as error:
        raise StorageError(f"database {path} cannot be upgraded: {getattr(error, 'orig', error)}") from error
    finally:
        engine.dispose()
