"""Our structural check of a TBSCertificate, on the exact bytes that will be signed (BR 4.3.1.2).

It reads the bytes back as a relying party would and compares them with what was meant. A finding is a bug or
a broken profile, so it stops the request before any key is asked. Cost: about 40 µs.
"""

import datetime as dt
import hashlib

from cryptography import x509
from cryptography.x509.oid import ExtensionOID, NameOID

from pkix.certificate import ONE_SECOND, PreparedCertificate
from pkix.errors import LintError
from pkix.issuer import Issuer
from pkix.unsigned import assemble, tlv

_MAX_SERIAL = 1 << 159
_MIN_SERIAL = 1 << 64
_MAX_BACKDATE = dt.timedelta(hours=48)

_ALWAYS = {
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
}
_STATUS = {ExtensionOID.AUTHORITY_INFORMATION_ACCESS, ExtensionOID.CRL_DISTRIBUTION_POINTS}


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
    _lint_validity(read, prepared, issuer, now)
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
    _require(read.public_key() != issuer.public_key, "BR 6.1.1.3: the subject key is the key of the issuing CA")


def _lint_validity(
    read: x509.Certificate, prepared: PreparedCertificate, issuer: Issuer, now: dt.datetime
) -> None:
    start, end = read.not_valid_before_utc, read.not_valid_after_utc
    _require(start <= end, "RFC 5280 §4.1.2.5: notAfter lies before notBefore")
    _require(
        end - start + ONE_SECOND <= prepared.profile.validity,
        "BR 6.3.2: the certificate lives longer than its profile allows",
    )
    _require(abs(now - start) <= _MAX_BACKDATE, "BR 7.1.2.7: notBefore is not within 48 hours of now")
    _require(end >= now, "RFC 5280 §4.1.2.5: the certificate has expired before it is issued")
    _require(
        end <= issuer.certificate.not_valid_after_utc,
        "BR 6.3.2: the certificate outlives its issuer",
    )


def _lint_extensions(
    read: x509.Certificate, extensions: x509.Extensions, prepared: PreparedCertificate, issuer: Issuer
) -> None:
    profile = prepared.profile
    expected = _ALWAYS | ({ExtensionOID.OCSP_NO_CHECK} if profile.ocsp_nocheck else _STATUS)
    if profile.subject_alternative_name:
        expected = expected | {ExtensionOID.SUBJECT_ALTERNATIVE_NAME}
    _require({e.oid for e in extensions} == expected, "BR 7.1.2.7.6: missing or unexpected extensions")
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    _require(
        usage.critical and usage.value.digital_signature and not usage.value.key_cert_sign,
        "BR 7.1.2.7.11: key usage",
    )
    _require(
        list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [profile.extended_key_usage],
        "BR 7.1.2.7.10: extended key usage",
    )
    _require(
        extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value == issuer.authority_key_identifier,
        "BR 7.1.2.11.1: authority key identifier",
    )
    _lint_alternative_names(read, extensions, prepared)


def _lint_alternative_names(
    read: x509.Certificate, extensions: x509.Extensions, prepared: PreparedCertificate
) -> None:
    if not prepared.profile.subject_alternative_name:
        return
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    values = {str(n.value).lower() for n in names.value}
    _require(bool(values), "RFC 5280 §4.2.1.6: empty subject alternative name")
    _require(names.critical == (not read.subject.rdns), "RFC 5280 §4.2.1.6: criticality")
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
