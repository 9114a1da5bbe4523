"""Which names of a request go into a certificate, or a clear refusal. The profile says which, and from where.

A name that the request gives in a place that the profile does not look at, or in two places that differ, is a
refusal: nothing that was asked for is dropped silently.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from cryptography import x509
from cryptography.x509.oid import NameOID

from pkix.asked import AskedNames
from pkix.attributes import BY_NAME, BY_OID, normalised
from pkix.csr import CertificationRequest, IpAddress, bounds_in_characters
from pkix.errors import KeyRejected, ProfileViolation
from pkix.general_names import dns_name, email_address, ip_address, require_global, uri
from pkix.profile import Profile
from pkix.profile_rules import MAX_NAMES, AttributeRule, Presence, Source

_NOTHING = AskedNames()
_KINDS = {"dns": "DNS names", "ip": "IP addresses", "email": "e-mail addresses", "uri": "URIs"}
_NAMED = {"dns": "host", "ip": "IP address", "email": "e-mail address", "uri": "URI"}
_PLACES = {
    Source.CSR: "in the CSR",
    Source.CLIENT: "in the JSON of the request",
    Source.EITHER: "in the CSR or the JSON of the request",
}
Name = str | IpAddress
_N = TypeVar("_N", bound=Name)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateNames:
    """The names of one certificate: checked, normalised, without repetition."""

    subject: x509.Name
    dns_names: tuple[str, ...]
    ip_addresses: tuple[IpAddress, ...]
    emails: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Given:
    """What a request says in its two places."""

    csr: Sequence[Name]
    client: Sequence[Name]


def check_key(request: CertificationRequest, profile: Profile) -> None:
    """Raise `KeyRejected` unless the profile takes the key of the request."""
    if not profile.keys.allows(request.public_key):
        raise KeyRejected(
            f"profile {profile.name} does not take this kind or size of key",
            field="csr",
            remedy=f"make a new key: {profile.keys}",
        )


def select_names(
    request: CertificationRequest, profile: Profile, asked: AskedNames | None = None
) -> CertificateNames:
    """Take from CSR and JSON what the profile gives; raises `ProfileViolation` for anything else in them."""
    asked = asked or _NOTHING
    subject = _select_subject(request, profile, asked)
    if request.other_names:
        _refuse(
            "the CSR asks for names other than DNS names, IP addresses, e-mail addresses and URIs",
            remedy="leave them out of subjectAltName",
        )
    public = profile.family == "public"
    chosen: dict[str, tuple[Name, ...]] = {"dns": (), "ip": (), "email": (), "uri": ()}
    if request.dns_names or asked.dns_names:
        chosen["dns"] = _choose("dns", profile, _dns_names(request, asked, public=public))
    if request.ip_addresses or asked.ip_addresses:
        chosen["ip"] = _choose("ip", profile, _ip_addresses(request, asked, public=public))
    if request.emails or asked.emails:
        chosen["email"] = _choose("email", profile, _emails(request, asked))
    if request.uris or asked.uris:
        chosen["uri"] = _choose("uri", profile, _uris(request, asked))
    if profile.common_name_is_a_name:
        _join_common_name(subject.get("CN", []), chosen, profile, *_places_of_common_name(request, asked, profile))
    _require_names(chosen, profile)
    return CertificateNames(
        subject=_name(subject),
        dns_names=tuple(map(str, chosen["dns"])),
        ip_addresses=tuple(ip for ip in chosen["ip"] if not isinstance(ip, str)),
        emails=tuple(map(str, chosen["email"])),
        uris=tuple(map(str, chosen["uri"])),
    )


def _select_subject(request: CertificationRequest, profile: Profile, asked: AskedNames) -> dict[str, list[str]]:
    csr = _of_csr(request.subject)
    client: dict[str, list[str]] = {}
    for name, value in asked.subject:
        client.setdefault(name, []).append(normalised(value))
    for place, field in ((csr, "csr"), (client, "subject")):
        for name in place:
            if name not in profile.attributes:
                known = "" if name in BY_NAME else f"; names are case-sensitive: {', '.join(BY_NAME)}"
                _refuse(
                    f"subject attribute {name[:40]} is not allowed by profile {profile.name}",
                    field=field if field == "csr" else f"subject.{name[:40]}",
                    remedy=f"use only {', '.join(profile.attributes) or 'an empty subject'}{known}",
                )
    subject: dict[str, list[str]] = {}
    for rule in profile.subject:
        name = rule.kind.name
        values = _attribute_values(rule, csr.get(name, []), client.get(name, []), profile)
        if values:
            subject[name] = values
    for group in profile.any_subject:
        if not group & subject.keys():
            _refuse(
                f"profile {profile.name} needs {' or '.join(sorted(group))} in the subject",
                field="subject",
                remedy="give one of them",
            )
    return subject


def _of_csr(asked: x509.Name) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for attribute in asked:
        kind, value = BY_OID.get(attribute.oid), attribute.value
        if kind is None or not isinstance(value, str):
            _refuse(
                f"subject attribute {attribute.oid.dotted_string} is not allowed",
                remedy=f"use only {', '.join(BY_NAME)} in the subject",
            )
        found.setdefault(kind.name, []).append(normalised(value))
    return found


def _attribute_values(rule: AttributeRule, csr: list[str], client: list[str], profile: Profile) -> list[str]:
    name = rule.kind.name
    if not csr and not client:
        if rule.presence is Presence.REQUIRED:
            _refuse(
                f"profile {profile.name} needs {name} in the subject",
                field="csr" if rule.source is Source.CSR else f"subject.{name}",
                remedy=f"give it {_PLACES[rule.source]}, for example {name}={rule.example}",
            )
        return [] if rule.value is None else [rule.value]
    if rule.value is not None:
        if any(values and values != [rule.value] for values in (csr, client)):
            _refuse(
                f"subject attribute {name} is not {rule.value!r}, as profile {profile.name} wants it",
                field="csr" if csr and csr != [rule.value] else f"subject.{name}",
                remedy=f"leave {name} out, or write {name}={rule.value}",
            )
        return [rule.value]
    values = list(_from_place(f"subject attribute {name}", rule.source, csr, client, f"subject.{name}"))
    field = f"subject.{name}" if client else "csr"
    if len(values) > rule.count:
        up_to = f"; {name} up to {rule.count} times" if rule.count > 1 else ""
        _refuse(
            f"subject attribute {name} stands {len(values)} times",
            field=field,
            remedy=f"use each attribute once{up_to}",
        )
    for value in values:
        fault = rule.fault(value)
        if fault is not None:
            _refuse(fault[0], field=field, remedy=fault[1])
    return values


def _from_place(what: str, source: Source, csr: Sequence[_N], client: Sequence[_N], field: str) -> Sequence[_N]:
    """Return what stands in the place that `source` names. What stands in both must be the same."""
    if csr and client:
        if set(csr) != set(client) or len(csr) != len(client):
            _refuse(
                f"{what}: the CSR and the JSON of the request say different things",
                field=field,
                remedy="give it in one place, or the same in both",
            )
        return client
    if (source is Source.CSR and client) or (source is Source.CLIENT and csr):
        wrong = "the CSR" if csr else "the JSON of the request"
        _refuse(
            f"{what}: this profile does not take it from {wrong}",
            field="csr" if csr else field,
            remedy=f"give it {_PLACES[source]}",
        )
    return csr or client


def _choose(kind: str, profile: Profile, given: _Given) -> tuple[Name, ...]:
    rule, field = profile.names[kind], f"names.{kind}" if given.client else "csr"
    if not rule.allowed:
        _refuse(
            f"profile {profile.name} has no {_KINDS[kind]}, but the request asks for some",
            field=field,
            remedy=f"leave {_KINDS[kind]} out of subjectAltName and names, or use another profile",
        )
    names = _from_place(_KINDS[kind], rule.source, given.csr, given.client, f"names.{kind}")
    for name in names:
        if kind == "dns" and not rule.wildcard and str(name).startswith("*."):
            _refuse(f"profile {profile.name} has no wildcards", field=field, remedy="name each host")
        if rule.pattern is not None and not rule.pattern.fullmatch(str(name)):
            _refuse(
                f"{str(name)[:80]!r} does not have the form that profile {profile.name} wants",
                field=field,
                remedy=f"write it as in this example: {rule.example}",
            )
    return tuple(names)


def _dns_names(request: CertificationRequest, asked: AskedNames, *, public: bool) -> _Given:
    return _Given(
        _unique(dns_name(name, "csr", public=public) for name in request.dns_names),
        _unique(dns_name(name, "names.dns", public=public) for name in asked.dns_names),
    )


def _ip_addresses(request: CertificationRequest, asked: AskedNames, *, public: bool) -> _Given:
    client = _unique(ip_address(text, "names.ip") for text in asked.ip_addresses)
    if public:
        for field, addresses in (("csr", request.ip_addresses), ("names.ip", client)):
            for address in addresses:
                require_global(address, field)
    return _Given(_unique(request.ip_addresses), client)


def _emails(request: CertificationRequest, asked: AskedNames) -> _Given:
    return _Given(
        _unique(email_address(text, "csr") for text in request.emails),
        _unique(email_address(text, "names.email") for text in asked.emails),
    )


def _uris(request: CertificationRequest, asked: AskedNames) -> _Given:
    return _Given(
        _unique(uri(text, "csr") for text in request.uris), _unique(uri(text, "names.uri") for text in asked.uris)
    )


def _unique(names: Iterable[_N]) -> tuple[_N, ...]:
    return tuple(dict.fromkeys(names))


def _join_common_name(
    common_names: list[str], chosen: dict[str, tuple[Name, ...]], profile: Profile, in_csr: bool, in_json: bool
) -> None:
    """Let the common name stand for names that are not there; else it must be one of them (BR 7.1.4.3)."""
    if not any(chosen.values()):
        # `openssl req -subj /CN=host` carries no SAN: the common name is then the one name asked for.
        for common_name in common_names:
            kind, name = _as_name(common_name, profile)
            given = _Given((name,) if in_csr else (), (name,) if in_json else ())
            chosen[kind] = _choose(kind, profile, given)
    known = {str(name).lower() for names in chosen.values() for name in names}
    # Only ASCII: U+212A, the Kelvin sign, is a k in lower case, yet another name to who reads it.
    if any(not name.isascii() or name.lower() not in known for name in common_names):
        _refuse(
            "the common name is not one of the subject alternative names",
            remedy="add the common name to subjectAltName, or leave it out",
        )


def _places_of_common_name(
    request: CertificationRequest, asked: AskedNames, profile: Profile
) -> tuple[bool, bool]:
    """Say whether the common name stands in the CSR and in the JSON; a fixed one is from wherever it may be."""
    rule = profile.attributes.get("CN")
    if rule is not None and rule.value is not None:
        return True, True
    in_csr = bool(request.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
    return in_csr, any(name == "CN" for name, _ in asked.subject)


def _as_name(common_name: str, profile: Profile) -> tuple[str, Name]:
    public = profile.family == "public"
    kind: str
    name: Name
    if profile.email.allowed and "@" in common_name:
        kind, name = "email", email_address(common_name, "csr")
    else:
        try:
            address = ipaddress.ip_address(common_name)
        except ValueError:
            kind, name = "dns", dns_name(common_name, "csr", public=public)
        else:
            # A zone may hold any text, which a CN would then show.
            if "%" in common_name or str(address) != common_name.lower():
                _refuse(
                    f"{common_name[:80]!r} is not written as IP addresses are",
                    remedy=f"write {str(address).partition('%')[0]} (RFC 5952)",
                )
            kind, name = "ip", require_global(address, "csr") if public else address
    return kind, name


def _require_names(chosen: dict[str, tuple[Name, ...]], profile: Profile) -> None:
    for kind, rule in profile.names.items():
        if rule.presence is Presence.REQUIRED and not chosen[kind]:
            _refuse_missing([kind], profile)
        if len(chosen[kind]) > rule.count:
            _refuse_many(rule.count)
    for group in profile.any_names:
        if not any(chosen[kind] for kind in group):
            _refuse_missing(sorted(group), profile)
    if sum(map(len, chosen.values())) > MAX_NAMES:
        _refuse_many(MAX_NAMES)


def _refuse_many(count: int) -> NoReturn:
    _refuse(f"more than {count} names", remedy="split the names over several certificates")


def _refuse_missing(kinds: Sequence[str], profile: Profile) -> NoReturn:
    rule = profile.names[kinds[0]]
    _refuse(
        f"the request names no {' or '.join(_NAMED[kind] for kind in kinds)}",
        field="csr" if rule.source is Source.CSR else f"names.{kinds[0]}",
        remedy=f"give it {_PLACES[rule.source]} (subjectAltName, names.{kinds[0]}), for example {rule.example}",
    )


def _name(subject: dict[str, list[str]]) -> x509.Name:
    if all(value.isascii() for values in subject.values() for value in values):
        return x509.Name(_attributes(subject))  # as many octets as characters: nothing to be warned of
    with bounds_in_characters():
        return x509.Name(_attributes(subject))


def _attributes(subject: dict[str, list[str]]) -> list[x509.NameAttribute[str]]:
    return [
        x509.NameAttribute(BY_NAME[name].oid, value, _validate=False)
        for name, values in subject.items()
        for value in values
    ]


def _refuse(detail: str, *, remedy: str, field: str = "csr") -> NoReturn:
    raise ProfileViolation(detail, field=field, remedy=remedy)
