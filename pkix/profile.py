"""Certificate profiles: what a certificate of one kind contains and what a request for it may say.

A profile is frozen and versioned; a request is bound to one version from its first check to its signature. It is
read from a file (`profile_file.py`), and cannot be made invalid.
"""

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from pkix.errors import ProfileError
from pkix.profile_rules import AttributeRule, KeyRule, NameRule, Presence
from pkix.validity import Maximum, longest_lifetime

Family = Literal["private", "public"]
Lint = Literal["every", "shape"]
Linter = Literal["none", "pkix", "cabf-tls", "cabf-smime", "etsi"]
KEY_USAGES = {
    "digitalSignature": "digital_signature",
    "contentCommitment": "content_commitment",
    "keyEncipherment": "key_encipherment",
    "dataEncipherment": "data_encipherment",
    "keyAgreement": "key_agreement",
    "keyCertSign": "key_cert_sign",
    "cRLSign": "crl_sign",
}
EXTENDED_KEY_USAGES = {
    "serverAuth": ExtendedKeyUsageOID.SERVER_AUTH,
    "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH,
    "emailProtection": ExtendedKeyUsageOID.EMAIL_PROTECTION,
    "documentSigning": x509.ObjectIdentifier("1.3.6.1.5.5.7.3.36"),  # RFC 9336
    "codeSigning": ExtendedKeyUsageOID.CODE_SIGNING,
    "timeStamping": ExtendedKeyUsageOID.TIME_STAMPING,
    "OCSPSigning": ExtendedKeyUsageOID.OCSP_SIGNING,
}
NAME_KINDS = ("dns", "ip", "email", "uri")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
_LAST_VERSION = 1_000_000
_LONGEST = dt.timedelta(days=366 * 30)
# RFC 8813 §3 and RFC 8017: an EC key encrypts nothing, an RSA key agrees on nothing, Ed25519 only signs.
_NEVER = {
    "rsa": {"keyAgreement"},
    "ec": {"keyEncipherment", "dataEncipherment"},
    "ed25519": {"keyEncipherment", "dataEncipherment", "keyAgreement"},
}
_OF_CAS = {"keyCertSign", "cRLSign"}
_PUBLIC_LINTERS: dict[x509.ObjectIdentifier, Linter] = {
    ExtendedKeyUsageOID.SERVER_AUTH: "cabf-tls",
    ExtendedKeyUsageOID.EMAIL_PROTECTION: "cabf-smime",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A certificate policy, and where its practice statement can be read."""

    oid: x509.ObjectIdentifier
    cps: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One version of one kind of certificate; raises `ProfileError` instead of being made wrong.

    `validity` is the longest lifetime, counted inclusively (BR 6.3.2); `maximum` less `margin` may shorten it by
    date. `internal` profiles are for certmill's own certificates: no client may ask for them. `key_usage` is by
    kind of key. Of each group in `any_subject` and `any_names` one must be there. `common_name_is_a_name`: the
    common name is one of the alternative names, and stands for them where there are none. `path_length` makes it a
    CA. `ocsp_nocheck` is id-pkix-ocsp-nocheck (RFC 6960 §4.2.2.2.1). `aia` names access methods: ocsp, issuers.
    `lint` and `linter` say how the rules of others are checked. `crl_shards`: 0 is one CRL for all.
    """

    name: str
    version: int
    title: str
    family: Family
    lint: Lint
    linter: Linter
    internal: bool = False
    validity: dt.timedelta
    maximum: Maximum = Maximum.NONE
    margin: dt.timedelta = dt.timedelta(0)
    keys: KeyRule
    key_usage: Mapping[str, frozenset[str]]
    extended_key_usage: tuple[x509.ObjectIdentifier, ...] = ()
    policies: tuple[Policy, ...] = ()
    path_length: int | None = None
    aia: frozenset[str] = frozenset({"ocsp", "issuers"})
    cdp: bool = True
    subject_key_identifier: bool = True
    ocsp_nocheck: bool = False
    crl_shards: int = 0
    subject: tuple[AttributeRule, ...] = ()
    any_subject: tuple[frozenset[str], ...] = ()
    dns: NameRule = field(default_factory=NameRule)
    ip: NameRule = field(default_factory=NameRule)
    email: NameRule = field(default_factory=NameRule)
    uri: NameRule = field(default_factory=NameRule)
    any_names: tuple[frozenset[str], ...] = ()
    common_name_is_a_name: bool = False
    # What all of its certificates share, made once: building it again would cost as much as reading the request.
    shared: tuple[tuple[x509.ExtensionType, bool], ...] = field(init=False, repr=False, compare=False)
    constant: Mapping[str, tuple[tuple[x509.ExtensionType, bool], ...]] = field(
        init=False, repr=False, compare=False
    )
    attributes: Mapping[str, AttributeRule] = field(init=False, repr=False, compare=False)
    always: frozenset[str] = field(init=False, repr=False, compare=False)
    names: Mapping[str, NameRule] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "attributes", {rule.kind.name: rule for rule in self.subject})
        always = frozenset(rule.kind.name for rule in self.subject if rule.presence is not Presence.OPTIONAL)
        object.__setattr__(self, "always", always)
        object.__setattr__(self, "names", {kind: getattr(self, kind) for kind in NAME_KINDS})
        _check_identity(self)
        _check_key_usage(self)
        _check_extensions(self)
        _check_names(self)
        object.__setattr__(self, "shared", _shared(self))
        object.__setattr__(
            self, "constant", {kind: (_key_usage(self, kind), *self.shared) for kind in self.keys.kinds}
        )

    @property
    def identity(self) -> str:
        """Name and version as one text, as it stands in the database and the audit log."""
        return f"{self.name}@{self.version}"

    def longest(self, at: dt.datetime) -> dt.timedelta:
        """Return the longest lifetime of a certificate that begins or is issued `at`, both ends included."""
        return min(self.validity, longest_lifetime(self.maximum, at) - self.margin)


def _check(condition: bool, key: str, detail: str, remedy: str) -> None:
    if not condition:
        raise ProfileError(detail, key=key, remedy=remedy)


def _check_identity(p: Profile) -> None:
    _check(bool(_NAME.fullmatch(p.name)), "name", f"{p.name[:64]!r} is no name", "use 1 to 64 of a-z, 0-9 and -")
    _check(1 <= p.version <= _LAST_VERSION, "version", f"{p.version} is no version", "count from 1")
    _check(
        bool(p.title.strip()) and p.title.isprintable(),
        "title",
        "it says nothing",
        "say what it is for, in a line",
    )
    _check(
        dt.timedelta(minutes=1) <= p.validity <= _LONGEST,
        "validity.days",
        f"{p.validity.days} days are too few or too many",
        "write days = 1 to 10980",
    )
    _check(
        dt.timedelta(0) <= p.margin <= dt.timedelta(days=30),
        "validity.margin_days",
        "more than the shortest maximum leaves",
        "use 0 to 30",
    )
    public = p.family == "public"
    _check(
        not public or (p.lint == "every" and p.linter != "none"),
        "lint",
        "the rules of public trust want every certificate linted (BR 4.3.1.2)",
        'write lint = "every" and a linter',
    )
    for usage, linter in _PUBLIC_LINTERS.items():
        _check(
            not public or usage not in p.extended_key_usage or p.linter == linter,
            "linter",
            f"{p.linter} does not know the rules of public trust for this extended key usage (BR 4.3.1.2)",
            f'write linter = "{linter}"',
        )
    _check(
        not public or ExtendedKeyUsageOID.SERVER_AUTH not in p.extended_key_usage or p.maximum is Maximum.CABF_TLS,
        "validity.maximum",
        "publicly trusted TLS servers have a longest lifetime by date (BR 6.3.2)",
        'write maximum = "cabf-tls"',
    )


def _check_key_usage(p: Profile) -> None:
    for kind in p.keys.kinds:
        key, usages = f"key_usage.{kind}", p.key_usage.get(kind, frozenset())
        _check(bool(usages), key, f"{kind} keys are allowed, but not what for", 'write ["digitalSignature"]')
        for usage in sorted(usages):
            _check(usage in KEY_USAGES, key, f"no key usage {usage!r}", f"use {', '.join(KEY_USAGES)}")
            _check(usage not in _NEVER[kind], key, f"{usage} does not go with {kind} keys", "leave it out")
        _check(
            (p.path_length is not None) == ("keyCertSign" in usages)
            and (p.path_length is not None or not usages & _OF_CAS),
            key,
            "CAs, and no others, sign certificates and CRLs (RFC 5280 §4.2.1.9)",
            "write keyCertSign and cRLSign with path_length, or none of the three",
        )
    unused = sorted(set(p.key_usage) - set(p.keys.kinds))
    _check(
        not unused, f"key_usage.{''.join(unused[:1])}", "such keys are not allowed", "leave it out, or allow them"
    )


def _check_extensions(p: Profile) -> None:
    is_ca = p.path_length is not None
    _check(p.internal or not is_ca, "internal", "a CA is not for clients", "write internal = true")
    _check(
        p.internal or not p.keys.ed25519,
        "keys.ed25519",
        "requests with Ed25519 keys are not taken",
        "leave it out",
    )
    _check(
        is_ca or bool(p.extended_key_usage),
        "extensions.extended_key_usage",
        "a certificate that is good for everything is good for nothing",
        f"use one or more of {', '.join(EXTENDED_KEY_USAGES)}, or an OID",
    )
    _check(
        ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in p.extended_key_usage,
        "extensions.extended_key_usage",
        "anyExtendedKeyUsage is not allowed (BR 7.1.2.7.10)",
        "name what the key is for",
    )
    _check(
        ExtendedKeyUsageOID.TIME_STAMPING not in p.extended_key_usage or len(p.extended_key_usage) == 1,
        "extensions.extended_key_usage",
        "timeStamping stands alone (RFC 3161 §2.3)",
        "leave the others out, or timeStamping",
    )
    _check(
        len({one.oid for one in p.policies}) == len(p.policies),
        "extensions.policies",
        "a policy stands twice (RFC 5280 §4.2.1.4)",
        "leave one out",
    )
    _check(
        p.subject_key_identifier or not is_ca,
        "extensions.subject_key_identifier",
        "what a CA signs refers to it (RFC 5280 §4.2.1.2)",
        "leave it out, or write true",
    )
    _check(p.aia <= {"ocsp", "issuers"}, "extensions.aia", "no such access method", 'use "ocsp", "issuers" or []')
    ocsp_signing = ExtendedKeyUsageOID.OCSP_SIGNING in p.extended_key_usage
    _check(
        p.internal or not ocsp_signing,
        "extensions.extended_key_usage",
        "OCSPSigning would let its holder answer for this CA",
        "leave it out, or write internal = true",
    )
    _check(
        ocsp_signing or not p.ocsp_nocheck,
        "extensions.ocsp_nocheck",
        "it belongs to OCSP responders alone (RFC 6960 §4.2.2.2.1)",
        "leave it out",
    )
    _check(
        p.crl_shards in {0, 1},
        "extensions.crl_shards",
        "this version of certmill writes one CRL for each CA",
        "use 0 (or 1) until it can write more",
    )


def _check_names(p: Profile) -> None:
    _check(
        len(p.attributes) == len(p.subject), "subject", "an attribute stands twice", "use count for several values"
    )
    for key, groups, allowed in (
        ("any_of.subject", p.any_subject, set(p.attributes)),
        ("any_of.names", p.any_names, {kind for kind, rule in p.names.items() if rule.allowed}),
    ):
        for group in groups:
            strange = ", ".join(sorted(group - allowed))
            _check(
                bool(group) and not strange,
                key,
                f"{strange or 'nothing'} is not allowed",
                "allow it, or leave it out",
            )
    needed = (
        p.any_subject
        or p.any_names
        or any(rule.presence is not Presence.OPTIONAL for rule in p.subject)
        or any(rule.presence is Presence.REQUIRED for rule in p.names.values())
    )
    _check(bool(needed), "subject", "a certificate could be without any name", "make something required")
    _check(
        not p.common_name_is_a_name or (p.dns.allowed or p.ip.allowed or p.email.allowed),
        "names.common_name_is_a_name",
        "there are no names that it could be one of",
        "allow dns, ip or email names",
    )
    for kind, rule in p.names.items():
        _check(
            kind == "dns" or not rule.wildcard, f"names.{kind}.wildcard", "only DNS names have it", "leave it out"
        )


def _key_usage(p: Profile, kind: str) -> tuple[x509.ExtensionType, bool]:
    usages = {argument: name in p.key_usage[kind] for name, argument in KEY_USAGES.items()}
    return x509.KeyUsage(**usages, encipher_only=False, decipher_only=False), True


def _shared(p: Profile) -> tuple[tuple[x509.ExtensionType, bool], ...]:
    """Make the extensions that are the same in all certificates of a profile, each with its criticality."""
    extensions: list[tuple[x509.ExtensionType, bool]] = []
    if p.path_length is not None:
        extensions.append((x509.BasicConstraints(ca=True, path_length=p.path_length), True))
    if p.extended_key_usage:
        is_critical = ExtendedKeyUsageOID.TIME_STAMPING in p.extended_key_usage  # RFC 3161 §2.3
        extensions.append((x509.ExtendedKeyUsage(p.extended_key_usage), is_critical))
    if p.policies:
        policies = [x509.PolicyInformation(one.oid, [one.cps] if one.cps else None) for one in p.policies]
        extensions.append((x509.CertificatePolicies(policies), False))
    if p.ocsp_nocheck:
        extensions.append((x509.OCSPNoCheck(), False))
    return tuple(extensions)
