import copy
import datetime as dt
import secrets
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtensionOID

from pkix.algorithms import SIGNATURE_ALGORITHMS
from pkix.certificate import (
    ONE_SECOND,
    PreparedCertificate,
    Validity,
    assemble_certificate,
    choose_validity,
    prepare_ca_certificate,
    prepare_certificate,
)
from pkix.csr import parse_csr
from pkix.errors import LintError, UnsupportedKey
from pkix.issuer import Issuer
from pkix.lint import check_released, lint_certificate
from pkix.names import SerialNumber, TbsDer, serial_hex
from pkix.profile import Profile
from pkix.subject import select_names
from pkix.unsigned import assemble, capture_tbs, tlv
from tests.support.ca import NOW, PrivateKey, TestCa, make_ca, make_csr
from tests.support.profiles import OCSP_RESPONDER, TLS_CLIENT, TLS_SERVER
from tests.unit.pkix.authorities import PrivateKey as AnyPrivateKey

SERIAL = SerialNumber((1 << 126) + 12345)


def prepare(
    ca: TestCa,
    profile: Profile = TLS_SERVER,
    *,
    key: PrivateKey | None = None,
    lifetime: dt.timedelta | None = None,
    common_name: str = "www.example.gov",
    names: tuple[x509.GeneralName, ...] = (),
) -> PreparedCertificate:
    request = parse_csr(make_csr(common_name, key=key, names=names))
    return prepare_certificate(
        issuer=ca.issuer,
        profile=profile,
        serial=SERIAL,
        validity=choose_validity(
            now=NOW,
            backdate=dt.timedelta(minutes=5),
            lifetime=lifetime or profile.validity,
            issuer=ca.issuer.certificate,
        ),
        public_key=request.public_key,
        spki_sha256=request.spki_sha256,
        names=select_names(request, profile),
    )


def test_the_signed_certificate_is_the_linted_one(ca: TestCa, rsa_ca: TestCa) -> None:
    for authority in (ca, rsa_ca):
        prepared = prepare(authority)
        lint_certificate(prepared, authority.issuer, now=NOW)
        der = assemble_certificate(prepared, authority.issuer, authority.sign(prepared.tbs))
        check_released(prepared, der)
        x509.load_der_x509_certificate(der).verify_directly_issued_by(authority.issuer.certificate)


def test_a_certificate_with_another_tbs_is_never_released(ca: TestCa) -> None:
    prepared = prepare(ca)
    other = replace(prepared, tbs=TbsDer(prepared.tbs.replace(b"www.example", b"www.exbmple")))
    der = assemble_certificate(other, ca.issuer, ca.sign(other.tbs))
    with pytest.raises(LintError, match="not what was linted"):
        check_released(prepared, der)
    with pytest.raises(LintError):
        check_released(replace(other, tbs_sha256=prepared.tbs_sha256), der)


def test_lifetime_is_counted_inclusively(ca: TestCa) -> None:
    read = load(ca, prepare(ca))
    assert read.not_valid_after_utc - read.not_valid_before_utc + ONE_SECOND == TLS_SERVER.validity
    assert read.not_valid_before_utc == NOW - dt.timedelta(minutes=5)


def test_one_second_too_long_is_a_finding(ca: TestCa) -> None:
    with pytest.raises(LintError, match=r"6\.3\.2"):
        lint_certificate(prepare(ca, lifetime=TLS_SERVER.validity + ONE_SECOND), ca.issuer, now=NOW)


def test_a_certificate_never_outlives_its_issuer() -> None:
    short = make_ca(days=30)
    assert load(short, prepare(short)).not_valid_after_utc == short.issuer.certificate.not_valid_after_utc


def test_an_expired_issuer_issues_nothing() -> None:
    with pytest.raises(LintError, match="issuing CA has expired"):
        prepare(make_ca(days=1, now=NOW - dt.timedelta(days=1)))


def test_extensions_of_each_profile(ca: TestCa, rsa_key: rsa.RSAPrivateKey) -> None:
    server = load(ca, prepare(ca, key=rsa_key)).extensions
    assert server.get_extension_for_class(x509.KeyUsage).value.key_encipherment
    client = load(ca, prepare(ca, TLS_CLIENT)).extensions
    assert ExtensionOID.SUBJECT_ALTERNATIVE_NAME not in {e.oid for e in client}
    responder = prepare(ca, OCSP_RESPONDER)
    lint_certificate(responder, ca.issuer, now=NOW)
    assert prepare(ca).dns_names == ("www.example.gov",)
    extensions = load(ca, responder).extensions
    assert ExtensionOID.OCSP_NO_CHECK in {e.oid for e in extensions}
    present = {e.oid for e in extensions}
    assert not present & {ExtensionOID.CRL_DISTRIBUTION_POINTS, ExtensionOID.AUTHORITY_INFORMATION_ACCESS}
    assert responder.tbs.find(bytes.fromhex("06092b0601050507300105" + "0402" + "0500")) > 0  # nocheck is 05 00


def test_an_empty_subject_makes_the_san_critical(ca: TestCa) -> None:
    request = parse_csr(make_csr(None, names=(x509.DNSName("a.gov"),)))
    prepared = replace(prepare(ca))
    prepared = prepare_certificate(
        issuer=ca.issuer,
        profile=TLS_SERVER,
        serial=SERIAL,
        validity=Validity(not_before=prepared.not_before, not_after=prepared.not_after),
        public_key=request.public_key,
        spki_sha256=request.spki_sha256,
        names=select_names(request, TLS_SERVER),
    )
    lint_certificate(prepared, ca.issuer, now=NOW)
    assert load(ca, prepared).extensions.get_extension_for_class(x509.SubjectAlternativeName).critical


def test_a_profile_is_named_with_its_version() -> None:
    assert replace(TLS_SERVER, version=7).identity == "tls-server@7"


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        ({"serial": SerialNumber(5)}, "another serial"),
        ({"tbs": TbsDer(b"\x30\x03\x02\x01\x05")}, "does not parse"),
        ({"profile": replace(TLS_SERVER, validity=dt.timedelta(days=1))}, "6.3.2"),
        ({"profile": TLS_CLIENT}, "too many dns names"),
        ({"profile": replace(TLS_SERVER, extended_key_usage=TLS_CLIENT.extended_key_usage)}, "extended key usage"),
    ],
)
def test_lint_names_the_clause(ca: TestCa, change: dict[str, object], clause: str) -> None:
    with pytest.raises(LintError, match=clause):
        lint_certificate(replace(prepare(ca), **change), ca.issuer, now=NOW)  # type: ignore[arg-type]


def test_lint_finds_wrong_times_issuers_and_keys(ca: TestCa) -> None:
    prepared = prepare(ca)
    with pytest.raises(LintError, match="48 hours"):
        lint_certificate(prepared, ca.issuer, now=NOW + dt.timedelta(hours=49))
    with pytest.raises(LintError, match="expired before"):
        lint_certificate(
            prepare(ca, lifetime=dt.timedelta(minutes=10)), ca.issuer, now=NOW + dt.timedelta(hours=1)
        )
    with pytest.raises(LintError, match="authority key identifier"):
        lint_certificate(prepared, make_ca().issuer, now=NOW)
    own_key = prepare(ca, key=ca.key)
    with pytest.raises(LintError, match="key of the issuing CA"):
        lint_certificate(own_key, ca.issuer, now=NOW)
    with pytest.raises(LintError, match="outlives its issuer"):
        lint_certificate(
            prepared, replace(ca.issuer, certificate=make_ca(ca.key, days=30).issuer.certificate), now=NOW
        )


def test_a_short_serial_is_a_finding(ca: TestCa) -> None:
    prepared = prepare(ca)
    tbs = prepared.tbs.replace(b"\x02\x10" + SERIAL.to_bytes(16, "big"), b"\x02\x10" + b"\x00" * 8 + b"\xff" * 8)
    with pytest.raises(LintError):
        lint_certificate(replace(prepared, tbs=TbsDer(tbs)), ca.issuer, now=NOW)


def test_a_subordinate_ca_has_no_responder_and_a_path_length(ca: TestCa) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    tbs = prepare_ca_certificate(
        subject=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Issuing")]),
        public_key=key.public_key(),
        serial=SERIAL,
        validity=Validity(not_before=NOW, not_after=NOW + dt.timedelta(days=100)),
        issuer=ca.issuer,
        path_length=0,
    )
    read = x509.load_der_x509_certificate(assemble(tbs, ca.issuer.algorithm, ca.sign(tbs)))
    read.verify_directly_issued_by(ca.issuer.certificate)
    assert read.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    access = read.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    assert [d.access_method for d in access] == [AuthorityInformationAccessOID.CA_ISSUERS]


class Peek:
    """A builder that keeps the key it is asked to sign with."""

    def sign(self, key: AnyPrivateKey, _algorithm: object, **_options: object) -> None:
        self.key = key


def test_recording_keys_refuse_everything_but_recording(key_of: dict[str, AnyPrivateKey]) -> None:
    for name, real in key_of.items():
        peek = Peek()
        capture_tbs(peek, real.public_key(), SIGNATURE_ALGORITHMS[name])  # type: ignore[arg-type]
        key = peek.key
        assert key.public_key() == real.public_key()
        assert copy.copy(key) is key
        assert copy.deepcopy(key) is key
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            assert not isinstance(real, ed25519.Ed25519PrivateKey)
            assert key.key_size == real.key_size
        if isinstance(key, ec.EllipticCurvePrivateKey):
            assert isinstance(real, ec.EllipticCurvePrivateKey)
            assert key.curve.name == real.curve.name
        with pytest.raises(TypeError, match="only records"):
            key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize("length", [0, 1, 127, 128, 255, 256, 65535, 65536])
def test_tlv_lengths_are_der(length: int) -> None:
    encoded = tlv(0x04, bytes(length))
    from cryptography.hazmat import asn1

    assert asn1.decode_der(bytes, encoded) == bytes(length)


def test_serials_are_written_as_whole_octets() -> None:
    assert serial_hex(0xABC) == "0abc"
    assert serial_hex(0xFF) == "ff"
    for _ in range(1000):
        serial = secrets.randbits(127)
        assert int(serial_hex(serial), 16) == serial


def test_an_issuer_with_an_unsupported_key_is_refused() -> None:
    key = ed448.Ed448PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(5).not_valid_before(NOW).not_valid_after(NOW)
    with pytest.raises(UnsupportedKey):
        Issuer.of(builder.sign(key, None), ocsp_url="http://a", ca_issuers_url="http://a", crl_url="http://a")


def load(ca: TestCa, prepared: PreparedCertificate) -> x509.Certificate:
    return x509.load_der_x509_certificate(assemble_certificate(prepared, ca.issuer, ca.sign(prepared.tbs)))
