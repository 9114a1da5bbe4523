"""Tokens and keys: what signs, where it is, and how it is used.

`[signer]` holds for every token. `[[tokens]]` names tokens of HSMs by PKCS #11 URIs (RFC 7512); without any,
certmill keeps a token of its own. `[keys]` says which keys of a token are the hierarchy's.
"""

from typing import Annotated, Literal

from msgspec import Meta

from server.keys.pin import PinError, check_pin_source
from server.settings.section import Count, Section
from signer_pool.lane_config import KeyMatch
from signer_pool.pkcs11_uri import Pkcs11Uri, Pkcs11UriError

Lanes = Annotated[int, Meta(ge=1, le=64)]
_OF_TOKENS = {"token", "serial", "manufacturer", "model", "slot-id", "pin-source", "module-path"}
_OF_KEYS = {"object", "id", "type"}


class SignerSection(Section, frozen=True, kw_only=True):
    """How certmill signs: with which kind of token if it keeps its own, how many sessions, how long a queue."""

    kind: Literal["auto", "pkcs11", "software"] = "auto"
    lanes: Lanes = 1
    batch_deadline_s: Annotated[float, Meta(gt=0, le=300)] = 10.0
    queue_limit: Count = 20_000
    target_batch_ms: Annotated[float, Meta(gt=0, le=1000)] = 25.0
    keep_alive_s: Annotated[float, Meta(gt=0, le=3600)] = 60.0


class TokenSection(Section, frozen=True, kw_only=True):
    """A token of an HSM. `pin` says where the PIN is, see `server/keys/pin.py`; or the URI's pin-source does."""

    uri: str
    pin: str | None = None
    lanes: Lanes | None = None
    name: Annotated[str, Meta(min_length=1, max_length=64)] | None = None

    def __post_init__(self) -> None:
        address = _parse("uri", self.uri, _OF_TOKENS, "it does not help to find a token; remove it")
        if not address.token:
            raise ValueError("uri: attribute token is missing; write the token's label, pkcs11:token=…")
        if not (address.module_path or "").startswith("/"):
            raise ValueError(
                "uri: attribute module-path must be the absolute path of your HSM's PKCS #11 library: "
                "pkcs11:token=…?module-path=/opt/vendor/lib/libpkcs11.so"
            )
        if (self.pin is None) == (address.pin_source is None):
            raise ValueError(
                "pin: say once where the PIN is, here or as pin-source in the URI: "
                "file:/path, credential:NAME or prompt"
            )
        try:
            check_pin_source(self.pin_source)
        except PinError as error:
            raise ValueError(f"{'uri: attribute pin-source' if self.pin is None else 'pin'}: {error}") from None

    @property
    def address(self) -> Pkcs11Uri:
        """The URI, parsed: where the token is."""
        return Pkcs11Uri.parse(self.uri)

    @property
    def place(self) -> tuple[str | int | None, ...]:
        """What says which token it is: two that have the same place are one token."""
        at = self.address
        return at.module_path, at.token, at.serial, at.slot_id, at.manufacturer, at.model

    @property
    def token_name(self) -> str:
        """The short name of the token: in metrics, in logs, when its PIN is asked for."""
        return self.name or self.address.token or ""

    @property
    def pin_source(self) -> str:
        """Where the PIN is."""
        return self.pin if self.pin is not None else self.address.pin_source or ""


class KeysSection(Section, frozen=True, kw_only=True):
    """Which keys of a token are the hierarchy's: URIs with `object` (CKA_LABEL), `id` (CKA_ID) or both."""

    root: str = "pkcs11:object=root"
    issuing: str = "pkcs11:object=issuing"
    ocsp: str = "pkcs11:object=ocsp"

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            key = _parse(name, getattr(self, name), _OF_KEYS, "[keys] is the same for all tokens; remove it")
            if not key.object and not key.id:
                raise ValueError(f"{name}: say which key is meant: pkcs11:object=… (its label) or pkcs11:id=…")
            if key.type not in {None, "private"}:
                raise ValueError(f"{name}: attribute type: it must be private; remove it")
        self._check_different()

    def _check_different(self) -> None:
        seen: dict[KeyMatch, str] = {}
        for name in self.__struct_fields__:
            match = self._match(name)
            other = seen.setdefault(match, name)
            if other == name:
                continue
            is_default = match == KeyMatch(label=name)  # then it is the other one that somebody wrote
            wrong, right = (other, name) if is_default else (name, other)
            raise ValueError(f"{wrong}: this is the key of keys.{right}; each needs a key of its own")

    def matches(self) -> dict[str, KeyMatch]:
        """Return which key of a token goes by each name, where it is not simply the key of that label."""
        found = {name: self._match(name) for name in self.__struct_fields__}
        return {name: match for name, match in found.items() if match != KeyMatch(label=name)}

    def _match(self, name: str) -> KeyMatch:
        key = Pkcs11Uri.parse(getattr(self, name))
        return KeyMatch(label=key.object or None, id=key.id or None)


def _parse(setting: str, text: str, allowed: set[str], remedy: str) -> Pkcs11Uri:
    try:
        uri = Pkcs11Uri.parse(text)
    except Pkcs11UriError as error:
        raise ValueError(f"{setting}: {error}") from None
    for name in uri.attributes:
        if name not in allowed:
            raise ValueError(f"{setting}: attribute {name}: {remedy}")
    return uri
