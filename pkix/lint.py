"""Our structural check of a TBSCertificate, on the exact bytes that will be signed (BR 4.3.1.2).

It reads the bytes back as a relying party would and compares them with what the profile says. A finding is a bug
or a broken profile, so it stops the request before any key is asked. Cost: about 45 µs.
"""

import datetime as dt
import functools
import hashlib
from collections.abc import Iterator, Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtensionOID, NameOID

from pkix.attributes import BY_OID
from pkix.certificate import ONE_SECOND, PreparedCertificate
from pkix.errors import LintError
from pkix.issuer import Issuer
from pkix.profile import KEY_USAGES, Profile
from pkix.profile_rules import NameRule, Presence, key_kind
from pkix.unsigned import assemble, tlv

_MAX_SERIAL = 1 << 159
_MIN_SERIAL = 1 << 64
_MAX_BACKDATE = dt.timedelta(hours=48)
_FIRST_GENERALIZED_YEAR = 2050
_VERSION_3 = bytes.fromhex("a003020102")
_FIELDS = (
    "RFC 5280 §4.1.2.1: version is not 3",
    "RFC 5280 §4.1.2.2: another serial number",
    "BR 7.1.3.2: the signature field is not the issuer's AlgorithmIdentifier",
    "BR 7.1.4.1: issuer is not the CA's subject byte for byte",
    "RFC 5280 §4.1.2.5: another validity, or times of another type",
    "RFC 5280 §4.1.2.6: another subject, or strings of another type",
)
_NAME_TYPES: dict[str, type[x509.GeneralName]] = {
    "dns": x509.DNSName,
    "ip": x509.IPAddress,
    "email": x509.RFC822Name,
    "uri": x509.UniformResourceIdentifier,
}
_CLAUSES = {
    ExtensionOID.BASIC_CONSTRAINTS: "RFC 5280 §4.2.1.9: basic constraints",
    ExtensionOID.EXTENDED_KEY_USAGE: "BR 7.1.2.7.10: extended key usage",
    ExtensionOID.CERTIFICATE_POLICIES: "BR 7.1.2.7.9: certificate policies",
    ExtensionOID.OCSP_NO_CHECK: "RFC 6960 §4.2.2.2.1: ocsp-nocheck",
}
_USAGES = tuple(KEY_USAGES.items())
_Expectation = tuple[x509.ObjectIdentifier, bool, x509.ExtensionType, str]


def lint_certificate(prepared: PreparedCertificate, issuer: Issuer, *, now: dt.datetime) -> None:
    """Raise `LintError`, naming the clause, unless the TBSCertificate is what its profile promises."""
    try:
        read = x509.load_der_x509_certificate(assemble(prepared.tbs, issuer.algorithm, b""))
        extensions = read.extensions
        read_back = read.tbs_certificate_bytes
        key = read.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion) as error:
        raise LintError(f"RFC 5280 §4.1: the TBSCertificate does not parse: {error}") from error
    _require(read_back == prepared.tbs, "RFC 5280 §4.1: the TBSCertificate is not in its canonical form")
    spki = lint_fields(prepared, issuer)
    _require(spki != issuer.spki_der, "BR 6.1.1.3: the subject key is the key of the issuing CA")
    _require(prepared.profile.keys.allows(key), "BR 6.1.5: the profile does not allow this kind or size of key")
    _lint_validity(prepared, issuer, now)
    _lint_extensions(extensions, prepared, issuer, kind=key_kind(key), spki=spki)


def _require(condition: bool, finding: str) -> None:
    if not condition:
        raise LintError(finding)


def lint_fields(prepared: PreparedCertificate, issuer: Issuer) -> memoryview:
    """Compare the fields byte by byte, up to the extensions; return SubjectPublicKeyInfo. Raises `LintError`.

    Each is encoded here once more, so that also every string has its proper type. Cost: about 5 µs.
    """
    serial = tlv(0x02, prepared.serial.to_bytes(prepared.serial.bit_length() // 8 + 1, "big"))
    times = tlv(0x30, _time(prepared.not_before) + _time(prepared.not_after))
    fields = (_VERSION_3, serial, issuer.algorithm.identifier_der, issuer.name_der, times, _lint_subject(prepared))
    tbs, at, expected = prepared.tbs, _content(prepared.tbs, 0), b"".join(fields)
    if not tbs.startswith(expected, at):
        wrong = next(n for n in range(len(fields)) if not tbs.startswith(b"".join(fields[: n + 1]), at))
        raise LintError(_FIELDS[wrong])
    at += len(expected)
    _require(_MIN_SERIAL <= prepared.serial < _MAX_SERIAL, "BR 7.1.2.7: serial number too short or long")
    spki = memoryview(tbs)[at : _end(tbs, at)]
    _require(
        hashlib.sha256(spki).digest() == prepared.spki_sha256, "RFC 5280 §4.1.2.7: not the key that was asked for"
    )
    return spki


def _content(der: bytes | memoryview, at: int) -> int:
    """Return where the content of the element at this place begins."""
    length = der[at + 1]
    return at + 2 + (length & 0x7F if length & 0x80 else 0)


def _end(der: bytes | memoryview, at: int) -> int:
    """Return where the element at this place ends."""
    content = _content(der, at)
    length = der[at + 1]
    return content + (int.from_bytes(der[at + 2 : content], "big") if length & 0x80 else length)


@functools.lru_cache(maxsize=64)
def _time(moment: dt.datetime) -> bytes:
    """Encode a time as RFC 5280 §4.1.2.5 wants it: UTCTime through 2049, then GeneralizedTime."""
    if moment.year < _FIRST_GENERALIZED_YEAR:
        return tlv(0x17, moment.strftime("%y%m%d%H%M%SZ").encode())
    return tlv(0x18, moment.strftime("%Y%m%d%H%M%SZ").encode())


def _lint_validity(prepared: PreparedCertificate, issuer: Issuer, now: dt.datetime) -> None:
    start, end = prepared.not_before, prepared.not_after
    _require(start <= end, "RFC 5280 §4.1.2.5: notAfter lies before notBefore")
    _require(
        end - start + ONE_SECOND <= prepared.profile.longest(max(start, now)),
        "BR 6.3.2: the certificate lives longer than its profile allows",
    )
    _require(abs(now - start) <= _MAX_BACKDATE, "BR 7.1.2.7: notBefore is not within 48 hours of now")
    _require(end >= now, "RFC 5280 §4.1.2.5: the certificate has expired before it is issued")
    _require(
        end <= issuer.certificate.not_valid_after_utc,
        "BR 6.3.2: the certificate outlives its issuer",
    )


def _lint_subject(prepared: PreparedCertificate) -> bytes:
    """Check order, presence and form of the attributes that were chosen; return the subject, encoded."""
    profile, encoded, found, last = prepared.profile, b"", dict[str, int](), -1
    for attribute in prepared.names.subject:
        kind, value = BY_OID.get(attribute.oid), attribute.value
        rule = None if kind is None else profile.attributes.get(kind.name)
        if kind is None or rule is None or not isinstance(value, str):
            raise LintError(f"RFC 5280 §4.1.2.6: subject attribute {attribute.oid.dotted_string} is not allowed")
        fault, place = rule.fault(value), profile.subject.index(rule)
        _require(fault is None, f"RFC 5280 Appendix A: {fault and fault[0]}")
        _require(rule.value in {None, value}, f"RFC 5280 §4.1.2.6: {kind.name} is not what the profile fixes")
        _require(place >= last, "BR 7.1.4.2: the subject is not in the order of its profile")
        found[kind.name] = found.get(kind.name, 0) + 1
        _require(found[kind.name] <= rule.count, f"RFC 5280 §4.1.2.6: {kind.name} stands too often")
        encoded += tlv(0x31, tlv(0x30, kind.oid_der + tlv(kind.tag, value.encode())))
        last = place
    _require(profile.always <= found.keys(), "RFC 5280 §4.1.2.6: the subject lacks a required attribute")
    _require(
        all(group & found.keys() for group in profile.any_subject),
        "RFC 5280 §4.1.2.6: the subject lacks an attribute of a group",
    )
    return tlv(0x30, encoded)


def _lint_extensions(
    extensions: x509.Extensions, prepared: PreparedCertificate, issuer: Issuer, *, kind: str, spki: memoryview
) -> None:
    profile = prepared.profile
    present = {extension.oid: (extension.critical, extension.value) for extension in extensions}
    _lint_alternative_names(present.pop(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, None), prepared)
    usage = present.pop(ExtensionOID.KEY_USAGE, None)
    _require(
        usage is not None and usage[0] and _usages(usage[1]) == profile.key_usage[kind], "BR 7.1.2.7.11: key usage"
    )
    if profile.subject_key_identifier:
        bits = _end(spki, _content(spki, 0))  # after AlgorithmIdentifier
        digest = hashlib.sha1(spki[_content(spki, bits) + 1 :], usedforsecurity=False).digest()
        ski = present.pop(ExtensionOID.SUBJECT_KEY_IDENTIFIER, None)
        is_right = ski is not None and not ski[0] and getattr(ski[1], "digest", b"") == digest
        _require(is_right, "RFC 5280 §4.2.1.2: subject key identifier")
    for oid, critical, value, finding in _expected(profile, issuer):
        found = present.pop(oid, None)
        _require(found is not None and found[0] == critical and found[1] == value, finding)
    _require(not present, "BR 7.1.2.7.6: unexpected extensions")


def _usages(value: x509.ExtensionType) -> frozenset[str]:
    if not isinstance(value, x509.KeyUsage) or (
        value.key_agreement and (value.encipher_only or value.decipher_only)
    ):
        return frozenset()
    return frozenset(name for name, argument in _USAGES if getattr(value, argument))


def _expected(profile: Profile, issuer: Issuer) -> Iterator[_Expectation]:
    """Say which extensions the profile wants beside those of key and names: OID, criticality, value, finding."""
    aki = issuer.authority_key_identifier
    yield ExtensionOID.AUTHORITY_KEY_IDENTIFIER, False, aki, "BR 7.1.2.11.1: authority key identifier"
    if profile.aia:
        aia = issuer.access[profile.aia]
        yield ExtensionOID.AUTHORITY_INFORMATION_ACCESS, False, aia, "BR 7.1.2.7.7: authority information access"
    if profile.cdp:
        cdp = issuer.crl_distribution_points
        yield ExtensionOID.CRL_DISTRIBUTION_POINTS, False, cdp, "BR 7.1.2.11.2: CRL distribution points"
    for value, critical in profile.shared:
        yield value.oid, critical, value, _CLAUSES[value.oid]


def _lint_alternative_names(found: tuple[bool, x509.ExtensionType] | None, prepared: PreparedCertificate) -> None:
    profile, names = prepared.profile, prepared.names
    chosen: dict[str, Sequence[object]] = {
        "dns": names.dns_names,
        "ip": names.ip_addresses,
        "email": names.emails,
        "uri": names.uris,
    }
    if not any(chosen.values()):
        _require(found is None, "RFC 5280 §4.2.1.6: subject alternative names that nobody chose")
        _require(bool(names.subject.rdns), "RFC 5280 §4.1.2.6: neither subject nor alternative names")
    else:
        critical, value = found or (False, None)
        wanted = [(_NAME_TYPES[kind], name) for kind, some in chosen.items() for name in some]
        read = [(type(n), n.value) for n in value] if isinstance(value, x509.SubjectAlternativeName) else []
        _require(read == wanted, "RFC 5280 §4.2.1.6: not the subject alternative names that were chosen")
        _require(critical == (not names.subject.rdns), "RFC 5280 §4.2.1.6: criticality")
    for kind, rule in profile.names.items():
        _lint_names(kind, rule, chosen[kind])
    _require(
        all(any(chosen[kind] for kind in group) for group in profile.any_names),
        "RFC 5280 §4.2.1.6: no name of a group",
    )
    if profile.common_name_is_a_name:
        values = {str(name).lower() for some in chosen.values() for name in some}
        common = [str(a.value) for a in names.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        # ASCII alone has one lower case that everybody agrees on.
        _require(
            all(name.isascii() and name.lower() in values for name in common),
            "BR 7.1.4.3: common name not among the names",
        )


def _lint_names(kind: str, rule: NameRule, names: Sequence[object]) -> None:
    if not names:
        _require(rule.presence is not Presence.REQUIRED, f"RFC 5280 §4.2.1.6: no {kind} name")
        return
    _require(rule.allowed and len(names) <= rule.count, f"RFC 5280 §4.2.1.6: too many {kind} names")
    for name in names:
        fits = rule.pattern is None or rule.pattern.fullmatch(str(name)) is not None
        fits = fits and (rule.wildcard or kind != "dns" or not str(name).startswith("*."))
        _require(fits, f"RFC 5280 §4.2.1.6: a {kind} name of another form")


def check_released(prepared: PreparedCertificate, certificate_der: bytes) -> None:
    """Compare the signed certificate's TBS with the linted one, byte for byte (DESIGN step 6)."""
    read = x509.load_der_x509_certificate(certificate_der)
    same = read.tbs_certificate_bytes == prepared.tbs
    same = same and hashlib.sha256(prepared.tbs).digest() == prepared.tbs_sha256
    _require(same, "BR 4.3.1.2: what was signed is not what was linted")
