"""Statements that the two databases say differently."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ARRAY, Table, bindparam, func, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import ColumnElement

SHARED_DIALECT = "postgresql"


def insert_for(connection: AsyncConnection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """Return INSERT with `on_conflict_do_update` and `on_conflict_do_nothing`, as this database says it."""
    return postgresql.insert(table) if connection.dialect.name == SHARED_DIALECT else sqlite.insert(table)


async def update_each(
    connection: AsyncConnection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    match: Sequence[str],
    where: ColumnElement[bool],
    values: Mapping[str, Any],
) -> int:
    """Change the row that each of `rows` names by its `match` columns, if `where` holds; return how many were.

    The other columns of `rows` are set, and `values` on all. (asyncpg does not count what a batch of statements
    has changed; so there it is one statement, over arrays.)
    """
    assigned = [name for name in rows[0] if name not in match]
    if connection.dialect.name == SHARED_DIALECT:
        source = func.unnest(
            *(bindparam(f"the_{n}", [row[n] for row in rows], type_=ARRAY(table.c[n].type)) for n in rows[0])
        ).table_valued(*(f"the_{n}" for n in rows[0]))
        given = source.render_derived().c
        statement = update(table).where(*(table.c[n] == given[f"the_{n}"] for n in match), where)
        statement = statement.values({**values, **{n: given[f"the_{n}"] for n in assigned}})
        return (await connection.execute(statement)).rowcount
    statement = update(table).where(*(table.c[n] == bindparam(f"the_{n}") for n in match), where)
    statement = statement.values({**values, **{n: bindparam(f"the_{n}") for n in assigned}})
    return (await connection.execute(statement, [{f"the_{n}": row[n] for n in row} for row in rows])).rowcount
