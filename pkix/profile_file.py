"""The text of a profile (TOML) to a profile, and back to plain values that can be compared. No I/O."""

import datetime as dt
import re
import tomllib
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from cryptography import x509

from pkix.attributes import BY_NAME, normalised
from pkix.errors import ProfileError
from pkix.profile import EXTENDED_KEY_USAGES, Family, Lint, Linter, Policy, Profile
from pkix.profile_rules import MAX_NAMES, AttributeRule, KeyRule, NameRule, Presence, Source
from pkix.validity import Maximum

MAX_PROFILE_BYTES = 64 * 1024
_DEFAULT_LENGTH = 128
_EXAMPLES = {
    "dns": "www.example.la",
    "ip": "198.51.100.7",
    "email": "sample@example.la",
    "uri": "https://example.la/7",
}
_URI = re.compile(r"https?://[!-~]{1,200}")


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what a file holds: no unknown key."""


class _Validity(_Table, frozen=True, kw_only=True):
    days: int
    maximum: Maximum = Maximum.NONE
    margin_days: int = 0


class _Keys(_Table, frozen=True, kw_only=True):
    rsa_bits: tuple[int, int] | None = None
    ec: list[str] = []
    ed25519: bool = False


class _KeyUsage(_Table, frozen=True, kw_only=True):
    rsa: list[str] = []
    ec: list[str] = []
    ed25519: list[str] = []


class _Policy(_Table, frozen=True, kw_only=True):
    oid: str
    cps: str | None = None


class _Extensions(_Table, frozen=True, kw_only=True):
    extended_key_usage: list[str] = []
    policies: list[_Policy] = []
    path_length: int | None = None
    aia: tuple[Literal["ocsp", "issuers"], ...] = ("ocsp", "issuers")
    cdp: bool = True
    subject_key_identifier: bool = True
    ocsp_nocheck: bool = False
    crl_shards: int = 0


class _Attribute(_Table, frozen=True, kw_only=True, rename={"source": "from"}):
    attribute: str
    presence: Presence
    source: Source = Source.EITHER
    value: str | None = None
    pattern: str | None = None
    max_length: int | None = None
    count: int = 1
    example: str | None = None


class _NameKind(_Table, frozen=True, kw_only=True, rename={"source": "from"}):
    presence: Presence
    source: Source = Source.EITHER
    count: int = MAX_NAMES
    pattern: str | None = None
    wildcard: bool = False
    example: str | None = None


class _Names(_Table, frozen=True, kw_only=True):
    common_name_is_a_name: bool = False
    dns: _NameKind | None = None
    ip: _NameKind | None = None
    email: _NameKind | None = None
    uri: _NameKind | None = None


class _AnyOf(_Table, frozen=True, kw_only=True):
    subject: list[list[str]] = []
    names: list[list[str]] = []


class _File(_Table, frozen=True, kw_only=True):
    name: str
    version: int
    title: str
    family: Family
    lint: Lint
    linter: Linter
    internal: bool = False
    validity: _Validity
    keys: _Keys
    key_usage: _KeyUsage
    extensions: _Extensions
    subject: list[_Attribute] = []
    names: _Names = _Names()
    any_of: _AnyOf = _AnyOf()


def parse_profile(text: str) -> Profile:
    """Return the profile that the text describes; raises `ProfileError`, which names the first mistake."""
    if len(text) > MAX_PROFILE_BYTES:
        raise ProfileError("it is too long", key="file", remedy=f"use at most {MAX_PROFILE_BYTES} characters")
    try:
        raw = msgspec.convert(tomllib.loads(text), _File)
    except msgspec.ValidationError as error:
        raise _of_wrong_form(str(error)) from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, a number of 5,000 digits, 10,000 brackets
        raise ProfileError(f"not valid TOML: {error}", key="file", remedy="see https://toml.io") from None
    return Profile(
        name=raw.name,
        version=raw.version,
        title=raw.title,
        family=raw.family,
        lint=raw.lint,
        linter=raw.linter,
        internal=raw.internal,
        validity=_days(raw.validity.days, "days"),
        maximum=raw.validity.maximum,
        margin=_days(raw.validity.margin_days, "margin_days"),
        keys=KeyRule(rsa_bits=raw.keys.rsa_bits, ec=tuple(raw.keys.ec), ed25519=raw.keys.ed25519),
        key_usage={
            kind: frozenset(usages) for kind, usages in msgspec.structs.asdict(raw.key_usage).items() if usages
        },
        subject=tuple(_attribute(number, rule) for number, rule in enumerate(raw.subject)),
        any_subject=tuple(map(frozenset, raw.any_of.subject)),
        any_names=tuple(map(frozenset, raw.any_of.names)),
        common_name_is_a_name=raw.names.common_name_is_a_name,
        dns=_name_rule("dns", raw.names.dns),
        ip=_name_rule("ip", raw.names.ip),
        email=_name_rule("email", raw.names.email),
        uri=_name_rule("uri", raw.names.uri),
        **_extensions(raw.extensions),
    )


def _of_wrong_form(message: str) -> ProfileError:
    """Turn msgspec's words into key and remedy."""
    reason, _, path = message.partition(" - at `$")
    where = path.rstrip("`").lstrip(".")
    named = re.search(r"(?:unknown|required) field `([^`]*)`", reason)
    if named is None:
        return ProfileError(reason, key=where or "file", remedy="see docs/profiles.md for what may stand here")
    key = f"{where}.{named[1]}".lstrip(".")
    if "required" in reason:
        return ProfileError("it is missing", key=key, remedy="write it; docs/profiles.md says what")
    return ProfileError("there is no such key", key=key, remedy="correct it or leave it out; see docs/profiles.md")


def _days(days: int, key: str) -> dt.timedelta:
    try:
        return dt.timedelta(days=days)
    except OverflowError:
        raise ProfileError(f"{days} days", key=f"validity.{key}", remedy="write fewer") from None


def _extensions(raw: _Extensions) -> dict[str, Any]:
    if raw.path_length is not None and not 0 <= raw.path_length <= 10:  # noqa: PLR2004 - no chain is longer
        raise ProfileError(
            f"{raw.path_length} CAs below it",
            key="extensions.path_length",
            remedy="use 0 for a CA without CAs below",
        )
    usages = [
        EXTENDED_KEY_USAGES.get(name) or _oid(name, "extensions.extended_key_usage")
        for name in raw.extended_key_usage
    ]
    if len(set(usages)) != len(usages):
        raise ProfileError("one stands twice", key="extensions.extended_key_usage", remedy="leave one out")
    return {
        "extended_key_usage": tuple(usages),
        "policies": tuple(_policy(number, policy) for number, policy in enumerate(raw.policies)),
        "path_length": raw.path_length,
        "aia": frozenset(raw.aia),
        "cdp": raw.cdp,
        "subject_key_identifier": raw.subject_key_identifier,
        "ocsp_nocheck": raw.ocsp_nocheck,
        "crl_shards": raw.crl_shards,
    }


def _policy(number: int, raw: _Policy) -> Policy:
    key = f"extensions.policies[{number}]"
    if raw.cps is not None and not _URI.fullmatch(raw.cps):
        raise ProfileError(
            f"{raw.cps[:80]!r} is no http(s) URI", key=f"{key}.cps", remedy="write https://… in ASCII"
        )
    return Policy(oid=_oid(raw.oid, f"{key}.oid"), cps=raw.cps)


def _oid(text: str, key: str) -> x509.ObjectIdentifier:
    try:
        return x509.ObjectIdentifier(text)
    except ValueError:
        raise ProfileError(f"{text[:80]!r} is unknown", key=key, remedy="write its name or a dotted OID") from None


def _attribute(number: int, raw: _Attribute) -> AttributeRule:
    where = f"subject[{number}]"
    kind = BY_NAME.get(raw.attribute)
    if kind is None:
        raise ProfileError(
            f"no attribute {raw.attribute[:40]!r}", key=f"{where}.attribute", remedy=f"use {', '.join(BY_NAME)}"
        )
    value = None if raw.value is None else normalised(raw.value)
    max_length = raw.max_length if raw.max_length is not None else min(kind.bound, _DEFAULT_LENGTH)
    example = raw.example or value or kind.sample
    try:
        return AttributeRule(
            kind=kind,
            presence=raw.presence,
            source=raw.source,
            value=value,
            pattern=_pattern(raw.pattern),
            max_length=max_length,
            count=raw.count,
            example=normalised(example),
        )
    except ProfileError as error:
        raise _below(where, error) from None


def _name_rule(kind: str, raw: _NameKind | None) -> NameRule:
    if raw is None:
        return NameRule()
    try:
        return NameRule(
            presence=raw.presence,
            source=raw.source,
            count=raw.count,
            pattern=_pattern(raw.pattern),
            wildcard=raw.wildcard,
            example=raw.example or _EXAMPLES[kind],
        )
    except ProfileError as error:
        raise _below(f"names.{kind}", error) from None


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise ProfileError(
            f"no regular expression: {error}", key="pattern", remedy="see Python's re module"
        ) from None


def _below(where: str, error: ProfileError) -> ProfileError:
    return ProfileError(error.detail, key=f"{where}.{error.key}", remedy=error.remedy)


def plain(profile: Profile) -> dict[str, object]:
    """Return what the profile says as JSON values by key, every default filled in; the order of a set is none."""
    return dict(_plain(profile))


def _plain(p: Profile) -> Iterator[tuple[str, object]]:
    for key in ("name", "version", "title", "family", "lint", "linter", "internal"):
        yield key, getattr(p, key)
    yield "validity.days", p.validity // dt.timedelta(days=1)
    yield "validity.maximum", p.maximum.value
    yield "validity.margin_days", p.margin // dt.timedelta(days=1)
    yield "keys.rsa_bits", None if p.keys.rsa_bits is None else list(p.keys.rsa_bits)
    yield "keys.ec", sorted(p.keys.ec)
    yield "keys.ed25519", p.keys.ed25519
    for kind, usages in p.key_usage.items():
        yield f"key_usage.{kind}", sorted(usages)
    names = {oid: name for name, oid in EXTENDED_KEY_USAGES.items()}
    yield "extensions.extended_key_usage", [names.get(oid, oid.dotted_string) for oid in p.extended_key_usage]
    yield "extensions.policies", [f"{one.oid.dotted_string} {one.cps or ''}".strip() for one in p.policies]
    yield "extensions.aia", sorted(p.aia)
    for key in ("path_length", "cdp", "subject_key_identifier", "ocsp_nocheck", "crl_shards"):
        yield f"extensions.{key}", getattr(p, key)
    yield "subject", list(p.attributes)
    for name, rule in p.attributes.items():
        for key in ("presence", "from", "value", "pattern", "max_length", "count", "example"):
            yield f"subject.{name}.{key}", _value(rule, key)
    yield "names.common_name_is_a_name", p.common_name_is_a_name
    for name, name_rule in p.names.items():
        yield f"names.{name}.presence", name_rule.presence.value
        if name_rule.allowed:
            for key in ("from", "count", "pattern", "wildcard", "example"):
                yield f"names.{name}.{key}", _value(name_rule, key)
    yield "any_of.subject", [sorted(group) for group in p.any_subject]
    yield "any_of.names", [sorted(group) for group in p.any_names]


def _value(rule: AttributeRule | NameRule, key: str) -> object:
    value = getattr(rule, "source" if key == "from" else key)
    return value.pattern if isinstance(value, re.Pattern) else value
