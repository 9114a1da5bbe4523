"""The audit log. An entry is written in the transaction of the act it records: no entry, no act."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from server.storage.schema import audit_log


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """Who did what to which object, at the request with which id. `detail` is JSON, never a secret."""

    actor: str
    action: str
    object: str
    request_id: str
    detail: dict[str, Any] = field(default_factory=dict)


async def append(connection: AsyncConnection, at: int, entries: Sequence[AuditEntry]) -> None:
    """Write the entries in the caller's transaction; `at` in seconds since 1970."""
    if not entries:
        return
    rows = [
        {
            "at": at,
            "actor": entry.actor,
            "action": entry.action,
            "object": entry.object,
            "request_id": entry.request_id,
            "detail": entry.detail,
        }
        for entry in entries
    ]
    await connection.execute(insert(audit_log), rows)
