"""Sections that map names of the operator's choice to numbers: [plan], [weights]."""

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta

PLAN = {"2026": 2000, "2027": 5000, "2028": 10_000}
_Certificates = Annotated[int, Meta(ge=0, le=100_000_000)]
_Weight = Annotated[int, Meta(ge=1, le=1000)]


def complete_plan(table: object) -> dict[str, int]:
    """Return how many certificates are planned for each year: the default with the years of `table` over it.

    Raises ValueError that begins with the setting; so does `read_weights`.
    """
    years = _numbers("plan", table, _Certificates)
    for year in years:
        if not re.fullmatch("20[0-9]{2}", year):
            raise ValueError(f"plan.{year}: this is no year; write for example 2027 = 5000")
    return dict(sorted((PLAN | years).items()))


def read_weights(table: object) -> dict[str, int]:
    """Return how many requests a client has in each of its turns, by the client's name."""
    return _numbers("weights", table, _Weight)


def _numbers(section: str, table: object, kind: Any) -> dict[str, int]:  # noqa: ANN401 - an annotated type
    if not isinstance(table, dict):
        raise ValueError(f"{section}: must be a [section], not a value")  # noqa: TRY004 - the operator's error
    found: dict[str, int] = {}
    for name, number in table.items():
        try:
            found[str(name)] = msgspec.convert(number, kind, strict=False)
        except msgspec.ValidationError as error:
            raise ValueError(f"{section}.{name}: {error}") from None
    return found
