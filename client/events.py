"""Server-sent events (HTML Living Standard §9.2.6), as far as certmill sends them: bytes in, data out."""

from collections.abc import Iterable, Iterator

CONTENT_TYPE = "text/event-stream"
_LONGEST_BYTES = 1024 * 1024


def event_data(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Give the data of each event, however it is cut into pieces; one that no empty line ends is dropped.

    Raises ValueError for a line that is longer than a megabyte.
    """
    rest, data = b"", list[bytes]()
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > _LONGEST_BYTES:
            raise ValueError("an event is longer than a megabyte")
        for line in lines:
            field, _, value = line.removesuffix(b"\r").partition(b":")
            if field == b"data":
                data.append(value.removeprefix(b" "))
            elif not field and not value and data:
                yield b"\n".join(data)
                data = []
