"""What is decided about single orders inside the transaction that records their intents.

A check reads, and may write, in that transaction, so that what it finds still holds when the intent is durable. It
refuses orders by their place in the batch; the others go on.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from server.issuance.order import PreparedOrder

Check = Callable[[AsyncConnection, Sequence[PreparedOrder], int], Awaitable[Mapping[int, Exception]]]
"""Returns refusals by index, errors that the caller can mend. The number is now, in seconds since 1970."""


async def refusals(
    connection: AsyncConnection, checks: Sequence[Check], batch: Sequence[PreparedOrder], now: int
) -> dict[int, Exception]:
    """Ask the checks in turn, each about the orders that none before it refused.

    A check that counts what it lets pass stands last: then nothing is counted that another refuses.
    """
    refused: dict[int, Exception] = {}
    for check in checks:
        left = [index for index in range(len(batch)) if index not in refused]
        if not left:
            break
        found = await check(connection, [batch[index] for index in left], now)
        refused.update({left[place]: refusal for place, refusal in found.items()})
    return refused
