"""How long a connection may take for what: nobody holds one for ever."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Bounds of one connection, in seconds.

    idle_s: between two requests. request_s: from the first octet of a request to its last, and for taking an
    answer on the fast path. body_s: for one body on the slow path. After the hand-over: handed_over_s without
    any sign of life, answer_s for making and taking one answer.
    """

    idle_s: int = 75
    request_s: int = 10
    body_s: float = 5.0
    handed_over_s: int = 600
    answer_s: int = 3600
