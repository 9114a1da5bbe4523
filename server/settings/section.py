"""What every section of the settings is made of."""

from typing import Annotated

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=1, le=1_000_000)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the sections: immutable, no unknown key.

    A ValueError from `__post_init__` begins with the key that is wrong and a colon.
    """
