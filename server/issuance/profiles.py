"""The profiles that certificates are issued under, by name and by version."""

from pkix.profile import BUILT_IN, OFFERED, Profile
from server.errors import InvalidRequest


class ProfileRegistry:
    """The active version of each profile, and every version that was ever activated."""

    @property
    def offered(self) -> tuple[Profile, ...]:
        """What a client may ask for, by name."""
        return OFFERED

    def named(self, name: str | None) -> Profile:
        """Return the active version of a profile that clients may ask for; raises `InvalidRequest`."""
        offered = [profile.name for profile in self.offered]
        if name not in offered:
            raise InvalidRequest(
                "a profile must be named" if not name else f"there is no profile {name[:64]!r}",
                field="profile",
                remedy=f"use one of: {', '.join(offered)}",
            )
        return BUILT_IN[name]

    def version(self, identity: str) -> Profile:
        """Return a version that was activated at any time ("name@version"); raises `InvalidRequest`."""
        found = next((profile for profile in BUILT_IN.values() if profile.identity == identity), None)
        if found is None:
            raise InvalidRequest(
                f"there is no profile version {identity[:80]!r}",
                field="profile",
                remedy="see: certmill profile list",
            )
        return found
