"""The calls for batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from client.calls import JSON, Calls, File, decoded, new_key, path
from client.errors import CertmillProblem, CertmillProtocolError, CertmillUnreachable
from client.events import CONTENT_TYPE, event_data
from client.files import whole_file
from client.messages import Batch, BatchAct, BatchList, ResultFormat
from client.transport import Request

TYPES = {"ndjson": "application/x-ndjson", "json": JSON, "csv": "text/csv"}
_DOWNLOADS = 3


class BatchCalls(Calls):
    """Hand in a batch, follow it, fetch what came of it."""

    def submit_batch(
        self,
        rows: bytes | BinaryIO,
        format: str,
        profile: str,
        *,
        dry_run: bool = False,
        validity_days: int | None = None,
        idempotency_key: str | None = None,
        deadline_s: float = 600.0,
    ) -> Batch:
        """Hand in a batch (`format`: a key of `TYPES`) and return at once; `watch` tells how it goes on.

        `rows` is sent in pieces; a file must be seekable, so that it can be sent again.
        """
        query = {"dry_run": "true" if dry_run else None, "validity_days": validity_days}
        key = idempotency_key or new_key()
        headers = {"Accept": JSON, "Content-Type": TYPES[format], "Idempotency-Key": key}
        url = path("batches", profile=profile, **query)
        request = Request(method="POST", path=url, headers=headers, body=rows)
        return decoded(self.transport.call(request, deadline_s=deadline_s), Batch)

    def batch(self, batch_id: str) -> Batch:
        """Return how far a batch is."""
        return self._get(path("batches", batch_id), Batch)

    def batches(self) -> Iterator[Batch]:
        """Give the batches of this client, newest first, page by page."""
        page = self._get(path("batches"), BatchList)
        yield from page.batches
        while page.next_cursor:
            page = self._get(path("batches", cursor=page.next_cursor), BatchList)
            yield from page.batches

    def steer_batch(self, batch_id: str, act: BatchAct) -> Batch:
        """Pause, resume or cancel a batch."""
        return self._post(path("batches", batch_id, act), {}, Batch)

    def watch(self, batch_id: str, *, poll_s: float = 2.0) -> Iterator[Batch]:
        """Follow a batch until it has ended, however long that takes; gives it each time it has changed.

        Server-sent events tell changes at once. Where they do not come through (a proxy, a restart of certmill),
        it asks every `poll_s`. Raises what `batch` raises.
        """
        last, streams = self.batch(batch_id), True
        yield last
        while not last.ended:
            try:
                for now in self._events(batch_id) if streams else ():
                    if now != last:
                        yield (last := now)
            except CertmillProblem as error:
                streams = error.temporary
            except CertmillProtocolError:
                streams = False
            except CertmillUnreachable:
                pass  # it broke off: ask, then listen again
            if not last.ended:
                self.transport.sleep(poll_s)
                if (now := self.batch(batch_id)) != last:
                    yield (last := now)

    def results(self, batch_id: str, format: ResultFormat, file: File) -> None:
        """Fetch the results into a file, which is there whole or not at all; raises OSError."""
        url = path("batches", batch_id, "results", format=format)
        request = Request(method="GET", path=url, headers={"Accept": "*/*"})
        for left in reversed(range(_DOWNLOADS)):
            try:
                with (
                    whole_file(Path(file)) as out,
                    self.transport.stream(request, deadline_s=self.deadline_s) as (_, pieces),
                ):
                    out.writelines(pieces)
            except CertmillUnreachable:
                if not left:
                    raise
            else:
                return

    def _events(self, batch_id: str) -> Iterator[Batch]:
        url = path("batches", batch_id, "events")
        request = Request(method="GET", path=url, headers={"Accept": CONTENT_TYPE})
        with self.transport.stream(request, deadline_s=0) as (content_type, pieces):
            if not content_type.startswith(CONTENT_TYPE):
                raise CertmillProtocolError(f"no events but {content_type or 'nothing'}")
            try:
                for data in event_data(pieces):
                    yield decoded(data, Batch)
            except ValueError as error:
                raise CertmillProtocolError(str(error)) from None
