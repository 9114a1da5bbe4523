"""What a profile says about one subject attribute, one kind of name, and the key: rules that cannot be invalid."""

import enum
import re
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from pkix.attributes import AttributeType, fault_of
from pkix.errors import ProfileError

MAX_NAMES = 100
KEY_KINDS = ("rsa", "ec", "ed25519")
CURVES = {"P-256": "secp256r1", "P-384": "secp384r1", "P-521": "secp521r1"}
_SHORTEST_RSA, _LONGEST_RSA = 2048, 8192


class Presence(enum.StrEnum):
    """Whether something is in a certificate. FIXED: it always is, with one value."""

    REQUIRED = "required"
    OPTIONAL = "optional"
    FORBIDDEN = "forbidden"
    FIXED = "fixed"


class Source(enum.StrEnum):
    """Where the request says it: in the JSON beside the CSR (client), in the CSR, or in either."""

    CLIENT = "client"
    CSR = "csr"
    EITHER = "either"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeRule:
    """One attribute of the subject: up to `count` values of up to `max_length` characters.

    `pattern` must match the whole value. `value` is that of a fixed attribute, `example` one that may stand there.
    """

    kind: AttributeType
    presence: Presence
    source: Source = Source.EITHER
    value: str | None = None
    pattern: re.Pattern[str] | None = None
    max_length: int
    count: int = 1
    example: str

    def __post_init__(self) -> None:
        name = self.kind.name
        if self.presence is Presence.FORBIDDEN:
            raise ProfileError(f"{name} is forbidden already", key="presence", remedy="leave its [[subject]] out")
        if not 1 <= self.max_length <= self.kind.bound:
            raise ProfileError(
                f"{self.max_length} is outside of what {name} may have",
                key="max_length",
                remedy=f"use 1 to {self.kind.bound}",
            )
        if (self.value is not None) != (self.presence is Presence.FIXED):
            raise ProfileError(
                "a fixed attribute has a value, and no other has one",
                key="value" if self.value is not None else "presence",
                remedy='write presence = "fixed" and value = "…", or neither',
            )
        if self.count != 1 and (self.kind.name not in {"OU", "DC", "street"} or self.presence is Presence.FIXED):
            raise ProfileError(
                f"{name} stands once",
                key="count",
                remedy="leave count out; only OU, DC and street may be repeated",
            )
        for key, text in (("value", self.value), ("example", self.example)):
            fault = None if text is None else self.fault(text)
            if text is not None and fault is not None:
                remedy = f"write another {key}, or another pattern" if fault[1].endswith(text) else fault[1]
                raise ProfileError(f"{text!r} would be refused: {fault[0]}", key=key, remedy=remedy)

    def fault(self, value: str) -> tuple[str, str] | None:
        """Return what is wrong with a value, and what would be right; None for nothing."""
        fault = fault_of(self.kind, value, self.max_length)
        if fault is None and self.pattern is not None and not self.pattern.fullmatch(value):
            return (
                f"subject attribute {self.kind.name} does not have the form that the profile wants",
                f"write it as in this example: {self.example}",
            )
        return fault


@dataclass(frozen=True, slots=True, kw_only=True)
class NameRule:
    """One kind of subject alternative name: up to `count` of them. `pattern` must match each one whole."""

    presence: Presence = Presence.FORBIDDEN
    source: Source = Source.EITHER
    count: int = MAX_NAMES
    pattern: re.Pattern[str] | None = None
    wildcard: bool = False
    example: str = ""

    def __post_init__(self) -> None:
        if self.presence is Presence.FIXED:
            raise ProfileError(
                "a name cannot be fixed", key="presence", remedy="use required, optional or forbidden"
            )
        if not 1 <= self.count <= MAX_NAMES:
            raise ProfileError(f"{self.count} names", key="count", remedy=f"use 1 to {MAX_NAMES}")
        if self.pattern is not None and not self.pattern.fullmatch(self.example):
            raise ProfileError(
                f"it refuses {self.example!r}", key="pattern", remedy="give an example that it takes"
            )

    @property
    def allowed(self) -> bool:
        """Whether a certificate may have such a name."""
        return self.presence is not Presence.FORBIDDEN


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRule:
    """The subject keys that a profile takes. `rsa_bits`: shortest and longest; `ec`: curves by NIST's names."""

    rsa_bits: tuple[int, int] | None = None
    ec: tuple[str, ...] = ()
    ed25519: bool = False

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ProfileError("no key is allowed", key="keys", remedy="write rsa_bits = [2048, 4096], ec or both")
        for curve in self.ec:
            if curve not in CURVES:
                raise ProfileError(f"no curve {curve!r}", key="keys.ec", remedy=f"use {', '.join(CURVES)}")
        if self.rsa_bits is not None:
            shortest, longest = self.rsa_bits
            if not _SHORTEST_RSA <= shortest <= longest <= _LONGEST_RSA:
                raise ProfileError(
                    f"{shortest} to {longest} bits",
                    key="keys.rsa_bits",
                    remedy=f"write the shortest and the longest, within {_SHORTEST_RSA} and {_LONGEST_RSA}",
                )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of key that are allowed, of `KEY_KINDS`."""
        present = {"rsa": self.rsa_bits is not None, "ec": bool(self.ec), "ed25519": self.ed25519}
        return tuple(kind for kind in KEY_KINDS if present[kind])

    def allows(self, public_key: object) -> bool:
        """Say whether the profile takes this key."""
        if isinstance(public_key, rsa.RSAPublicKey):
            return self.rsa_bits is not None and self.rsa_bits[0] <= public_key.key_size <= self.rsa_bits[1]
        if isinstance(public_key, ec.EllipticCurvePublicKey):
            return any(CURVES[curve] == public_key.curve.name for curve in self.ec)
        return self.ed25519 and isinstance(public_key, ed25519.Ed25519PublicKey)

    def __str__(self) -> str:
        allowed = [f"RSA of {self.rsa_bits[0]} to {self.rsa_bits[1]} bits"] if self.rsa_bits else []
        allowed += [f"ECDSA {' or '.join(self.ec)}"] if self.ec else []
        return " or ".join(allowed + (["Ed25519"] if self.ed25519 else []))


def key_kind(public_key: object) -> str:
    """Return which of `KEY_KINDS` a key is."""
    if isinstance(public_key, rsa.RSAPublicKey):
        return "rsa"
    return "ec" if isinstance(public_key, ec.EllipticCurvePublicKey) else "ed25519"
