"""Our structural check of a TBSCertificate, on the exact bytes that will be signed (BR 4.3.1.2).

It reads the bytes back as a relying party would and compares them with what the profile says. A finding is a bug
or a broken profile, so it stops the request before any key is asked. Cost: about 45 µs.
"""

import datetime as dt
import hashlib
from collections.abc import Iterator

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID, NameOID

from pkix.attributes import BY_OID
from pkix.certificate import ONE_SECOND, PreparedCertificate, alternative_names
from pkix.errors import LintError
from pkix.issuer import Issuer
from pkix.profile import KEY_USAGES, Profile
from pkix.profile_rules import Presence, key_kind
from pkix.unsigned import assemble, tlv

_MAX_SERIAL = 1 << 159
_MIN_SERIAL = 1 << 64
_MAX_BACKDATE = dt.timedelta(hours=48)
_FIRST_GENERALIZED_YEAR = 2050
_Expectation = tuple[x509.ObjectIdentifier, bool, x509.ExtensionType, str]


def lint_certificate(prepared: PreparedCertificate, issuer: Issuer, *, now: dt.datetime) -> None:
    """Raise `LintError`, naming the clause, unless the TBSCertificate is what its profile promises."""
    try:
        read = x509.load_der_x509_certificate(assemble(prepared.tbs, issuer.algorithm, b""))
        extensions = read.extensions
        read_back = read.tbs_certificate_bytes
    except (ValueError, x509.DuplicateExtension) as error:
        raise LintError(f"RFC 5280 §4.1: the TBSCertificate does not parse: {error}") from error
    _require(read_back == prepared.tbs, "RFC 5280 §4.1: the TBSCertificate is not in its canonical form")
    _lint_fields(read, prepared, issuer)
    _lint_key(read, prepared, issuer)
    _lint_validity(read, prepared, issuer, now)
    _lint_subject(read, prepared)
    _lint_extensions(read, extensions, prepared, issuer)


def _require(condition: bool, finding: str) -> None:
    if not condition:
        raise LintError(finding)


def _lint_fields(read: x509.Certificate, prepared: PreparedCertificate, issuer: Issuer) -> None:
    _require(read.version is x509.Version.v3, "RFC 5280 §4.1.2.1: version is not 3")
    _require(read.serial_number == prepared.serial, "RFC 5280 §4.1.2.2: another serial number")
    _require(_MIN_SERIAL <= read.serial_number < _MAX_SERIAL, "BR 7.1.2.7: serial number too short or long")
    # After the serial number: an Ed25519 subject key has the same identifier as an Ed25519 signature.
    serial = tlv(0x02, read.serial_number.to_bytes(read.serial_number.bit_length() // 8 + 1, "big"))
    _require(
        prepared.tbs.find(serial + issuer.algorithm.identifier_der) > 0,
        "BR 7.1.3.2: the signature field is not the issuer's AlgorithmIdentifier",
    )
    _require(
        read.issuer.public_bytes() == issuer.certificate.subject.public_bytes(),
        "BR 7.1.4.1: issuer is not the CA's subject byte for byte",
    )


def _lint_key(read: x509.Certificate, prepared: PreparedCertificate, issuer: Issuer) -> None:
    key = read.public_key()
    _require(key != issuer.public_key, "BR 6.1.1.3: the subject key is the key of the issuing CA")
    _require(prepared.profile.keys.allows(key), "BR 6.1.5: the profile does not allow this kind or size of key")
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    _require(
        hashlib.sha256(spki).digest() == prepared.spki_sha256 and prepared.tbs.find(spki) > 0,
        "RFC 5280 §4.1.2.7: not the key that was asked for",
    )


def _lint_validity(
    read: x509.Certificate, prepared: PreparedCertificate, issuer: Issuer, now: dt.datetime
) -> None:
    start, end = read.not_valid_before_utc, read.not_valid_after_utc
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


def _lint_subject(read: x509.Certificate, prepared: PreparedCertificate) -> None:
    """Check order, presence, form and string types: the last by encoding the subject here once more."""
    profile, found, encoded = prepared.profile, dict[str, list[str]](), b""
    for attribute in read.subject:
        kind, value = BY_OID.get(attribute.oid), attribute.value
        if kind is None or not isinstance(value, str) or kind.name not in profile.attributes:
            raise LintError(f"RFC 5280 §4.1.2.6: subject attribute {attribute.oid.dotted_string} is not allowed")
        found.setdefault(kind.name, []).append(value)
        encoded += tlv(0x31, tlv(0x30, kind.oid_der + tlv(kind.tag, value.encode())))
    times = tlv(0x30, _time(read.not_valid_before_utc) + _time(read.not_valid_after_utc))
    _require(
        prepared.tbs.find(times + tlv(0x30, encoded)) > 0,
        "RFC 5280 §4.1.2.4: a time or a subject attribute is not of its proper string type",
    )
    ordered = [name for name in profile.attributes if name in found]
    _require(list(found) == ordered, "BR 7.1.4.2: the subject is not in the order of its profile")
    for name, rule in profile.attributes.items():
        values = found.get(name, [])
        _require(
            len(values) <= rule.count and (bool(values) or rule.presence is Presence.OPTIONAL),
            f"RFC 5280 §4.1.2.6: subject attribute {name} is missing, or stands too often",
        )
        for value in values:
            fault = rule.fault(value)
            _require(fault is None, f"RFC 5280 Appendix A: {fault and fault[0]}")
            _require(rule.value in {None, value}, f"RFC 5280 §4.1.2.6: {name} is not what the profile fixes")
    _require(
        all(group & found.keys() for group in profile.any_subject),
        "RFC 5280 §4.1.2.6: the subject lacks an attribute of a group",
    )
    _require(read.subject == prepared.names.subject, "RFC 5280 §4.1.2.6: not the subject that was chosen")


def _time(moment: dt.datetime) -> bytes:
    """Encode a time as RFC 5280 §4.1.2.5 wants it: UTCTime through 2049, then GeneralizedTime."""
    if moment.year < _FIRST_GENERALIZED_YEAR:
        return tlv(0x17, moment.strftime("%y%m%d%H%M%SZ").encode())
    return tlv(0x18, moment.strftime("%Y%m%d%H%M%SZ").encode())


def _lint_extensions(
    read: x509.Certificate, extensions: x509.Extensions, prepared: PreparedCertificate, issuer: Issuer
) -> None:
    profile = prepared.profile
    present = {extension.oid: (extension.critical, extension.value) for extension in extensions}
    named = present.pop(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, None)
    _lint_alternative_names(read, named, prepared)
    usage = present.pop(ExtensionOID.KEY_USAGE, None)
    _require(
        usage is not None and usage[0] and _usages(usage[1]) == profile.key_usage[key_kind(read.public_key())],
        "BR 7.1.2.7.11: key usage",
    )
    for oid, critical, value, finding in _expected(read, profile, issuer):
        found = present.pop(oid, None)
        _require(found is not None and found[0] == critical and found[1] == value, finding)
    _require(not present, "BR 7.1.2.7.6: unexpected extensions")


def _usages(value: x509.ExtensionType) -> frozenset[str]:
    if not isinstance(value, x509.KeyUsage) or (
        value.key_agreement and (value.encipher_only or value.decipher_only)
    ):
        return frozenset()
    return frozenset(name for name, argument in KEY_USAGES.items() if getattr(value, argument))


def _expected(read: x509.Certificate, profile: Profile, issuer: Issuer) -> Iterator[_Expectation]:
    """Say which extensions the profile wants beside key usage and names: OID, criticality, value, finding."""
    aki = issuer.authority_key_identifier
    yield ExtensionOID.AUTHORITY_KEY_IDENTIFIER, False, aki, "BR 7.1.2.11.1: authority key identifier"
    if profile.subject_key_identifier:
        ski = x509.SubjectKeyIdentifier.from_public_key(read.public_key())
        yield ExtensionOID.SUBJECT_KEY_IDENTIFIER, False, ski, "RFC 5280 §4.2.1.2: subject key identifier"
    if profile.extended_key_usage:
        eku = x509.ExtendedKeyUsage(profile.extended_key_usage)
        yield ExtensionOID.EXTENDED_KEY_USAGE, False, eku, "BR 7.1.2.7.10: extended key usage"
    if profile.aia:
        aia = issuer.access[profile.aia]
        yield ExtensionOID.AUTHORITY_INFORMATION_ACCESS, False, aia, "BR 7.1.2.7.7: authority information access"
    if profile.cdp:
        cdp = issuer.crl_distribution_points
        yield ExtensionOID.CRL_DISTRIBUTION_POINTS, False, cdp, "BR 7.1.2.11.2: CRL distribution points"
    if profile.policies:
        policies = x509.CertificatePolicies(
            [x509.PolicyInformation(one.oid, [one.cps] if one.cps else None) for one in profile.policies]
        )
        yield ExtensionOID.CERTIFICATE_POLICIES, False, policies, "BR 7.1.2.7.9: certificate policies"
    if profile.path_length is not None:
        basic = x509.BasicConstraints(ca=True, path_length=profile.path_length)
        yield ExtensionOID.BASIC_CONSTRAINTS, True, basic, "RFC 5280 §4.2.1.9: basic constraints"
    if profile.ocsp_nocheck:
        yield ExtensionOID.OCSP_NO_CHECK, False, x509.OCSPNoCheck(), "RFC 6960 §4.2.2.2.1: ocsp-nocheck"


def _lint_alternative_names(
    read: x509.Certificate, found: tuple[bool, x509.ExtensionType] | None, prepared: PreparedCertificate
) -> None:
    profile, names = prepared.profile, prepared.names
    chosen = {"dns": names.dns_names, "ip": names.ip_addresses, "email": names.emails, "uri": names.uris}
    wanted = alternative_names(names)
    if not wanted:
        _require(found is None, "RFC 5280 §4.2.1.6: subject alternative names that nobody chose")
        _require(bool(read.subject.rdns), "RFC 5280 §4.1.2.6: neither subject nor alternative names")
    else:
        is_right = found is not None and found[1] == x509.SubjectAlternativeName(wanted)
        _require(is_right, "RFC 5280 §4.2.1.6: not the subject alternative names that were chosen")
        is_critical = found is not None and found[0]
        _require(is_critical == (not read.subject.rdns), "RFC 5280 §4.2.1.6: criticality")
    for kind, rule in profile.names.items():
        count = len(chosen[kind])
        _require(count <= (rule.count if rule.allowed else 0), f"RFC 5280 §4.2.1.6: too many {kind} names")
        _require(count > 0 or rule.presence is not Presence.REQUIRED, f"RFC 5280 §4.2.1.6: no {kind} name")
        if rule.pattern is not None:
            fits = all(rule.pattern.fullmatch(str(name)) for name in chosen[kind])
            _require(fits, f"RFC 5280 §4.2.1.6: a {kind} name of another form")
    _require(
        all(any(chosen[kind] for kind in group) for group in profile.any_names),
        "RFC 5280 §4.2.1.6: no name of a group",
    )
    if profile.common_name_is_a_name:
        values = {str(name.value).lower() for name in wanted}
        common = [str(a.value) for a in read.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        # ASCII alone has one lower case that everybody agrees on.
        _require(
            all(name.isascii() and name.lower() in values for name in common),
            "BR 7.1.4.3: common name not among the names",
        )


def check_released(prepared: PreparedCertificate, certificate_der: bytes) -> None:
    """Compare the signed certificate's TBS with the linted one, byte for byte (DESIGN step 6)."""
    read = x509.load_der_x509_certificate(certificate_der)
    same = read.tbs_certificate_bytes == prepared.tbs
    same = same and hashlib.sha256(prepared.tbs).digest() == prepared.tbs_sha256
    _require(same, "BR 4.3.1.2: what was signed is not what was linted")
