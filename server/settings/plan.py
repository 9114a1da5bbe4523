"""How many certificates are planned for each year: what the signer's capacity is compared with."""

import re
from typing import Annotated

import msgspec
from msgspec import Meta

PLAN = {"2026": 2000, "2027": 5000, "2028": 10_000}
_Certificates = Annotated[int, Meta(ge=0, le=100_000_000)]


def complete_plan(table: object) -> dict[str, int]:
    """Return the plan with the years of `table` put over it; raises ValueError that begins with the setting."""
    if not isinstance(table, dict):
        raise ValueError("plan: must be a [section], not a value")  # noqa: TRY004 - of the operator, not of the code
    plan = dict(PLAN)
    for year, certificates in table.items():
        if not re.fullmatch("20[0-9]{2}", str(year)):
            raise ValueError(f"plan.{year}: this is no year; write for example 2027 = 5000")
        try:
            plan[str(year)] = msgspec.convert(certificates, _Certificates, strict=False)
        except msgspec.ValidationError as error:
            raise ValueError(f"plan.{year}: {error}") from None
    return dict(sorted(plan.items()))
