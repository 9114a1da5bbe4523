"""Hostile input for `make fuzz`: requests for certificates and batches, broken in every way that comes to mind.

Deterministic but for the keys: the same seed gives cases of the same making. Three depths: bytes of a good request
mutated blindly; a certification request whose *content* is mutated and which is then signed again with its key, so
that it gets past the proof of possession; and good forms filled with values that nobody should send.
"""

import base64
import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from pkix.csr import bounds_in_characters
from pkix.unsigned import tlv

JSON, PKCS10, NDJSON, CSV = "application/json", "application/pkcs10", "application/x-ndjson", "text/csv"
# fmt: off
_TOKENS = (
    b"\x00", b"\xff" * 8, b"\x30\x80", b"\x30\x84\xff\xff\xff\xff", b"\x02\x01\x00", b"\x05\x00",
    b"\x06\x03\x55\x04\x03", b'"', b"\\", b"\\u0000", b"\\ud800",
    b"{", b"[" * 200, b"]", b"null", b"1e999", b"-1", b"99999999999999999999",
    b"\r\n", b"\n", b",", b";", b"\t", b'""', b"\xef\xbb\xbf", b"\xff\xfe", "ກຂ".encode(), "\u202e".encode(),
    b"=cmd|' /C calc'!A0", b"@SUM(1)", b"A" * 5000,
)
_TEXTS = (
    "", " ", "\x00", "\u200b", "\u202egnp", "ກ" * 22, "ກ" * 65, "a" * 64, "a" * 65, "a" * 4000, "*", "*.", "*.gov",
    "localhost", "127.0.0.1", "::1", "256.1.1.1", "0x7f.1", "fe80::1%eth0", "a..b", "-a.gov", "a_.gov",
    "xn--", "xn--a",
    "K.gov", "ﬁ.gov", "é.gov", "e\u0301.gov", "www.example.gov.", "http://x", "a@b.gov", "a@b@c", "=1+1",
    "+1", "@x",
    "../../etc/passwd", "%00", "'; DROP TABLE certificates; --", "${jndi:ldap://x}", "\ud7ff", "😀" * 16,
    "LA", "la", "L",
)
_ATTRIBUTES = (
    "CN", "O", "OU", "C", "L", "ST", "serialNumber", "title", "GN", "SN", "organizationIdentifier", "emailAddress",
    "2.5.4.3", "1.2.3", "", "cn", "\x00",
)
_VALUES: tuple[object, ...] = (None, True, 0, -1, 2**63, 1.5, [], {}, [[[[]]]], {"a": {"a": 1}}, "x" * 70000)
# fmt: on


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One hostile request to POST: where, as what, and the body."""

    path: str
    content_type: str
    body: bytes
    kind: str


class Cases:
    """An endless supply. `profiles` are names that the server offers."""

    def __init__(self, seed: int, profiles: tuple[str, ...]) -> None:
        self._random = random.Random(seed)
        self._profiles = profiles
        self._keys = [ec.generate_private_key(curve) for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP256K1())]
        self._rsa = [rsa.generate_private_key(65537, 2048), rsa.generate_private_key(3, 2048)]
        self._good = [*map(_csr, self._keys), *map(_csr, self._rsa)]
        self._makers: tuple[Callable[[], Case], ...] = (
            self._mutated_csr, self._resigned_csr, self._resigned_csr, self._strange_names, self._mutated_json,
            self._strange_json, self._mutated_rows, self._strange_csv,
        )  # fmt: skip

    def next(self) -> Case:
        """Make the next case."""
        return self._random.choice(self._makers)()

    def mutate(self, data: bytes) -> bytes:
        """Change a few places of `data`."""
        changed = bytearray(data)
        for _ in range(self._random.choice((1, 1, 1, 2, 3, 8))):
            self._mutate_once(changed)
        return bytes(changed)

    def _mutate_once(self, data: bytearray) -> None:
        draw, at = self._random, self._random.randrange(len(data) + 1)
        to = min(len(data), at + draw.choice((1, 1, 2, 4, 16, 200)))
        match draw.randrange(7):
            case 0:
                for place in range(at, min(at + 1, len(data))):
                    data[place] ^= 1 << draw.randrange(8)
            case 1:
                for place in range(at, to):
                    data[place] = draw.randrange(256)
            case 2:
                del data[at:to]
            case 3:
                data[at:at] = draw.choice(_TOKENS)
            case 4:
                data[at:at] = data[at:to]
            case 5:
                del data[at:]
            case _:
                for place in range(at, min(at + 1, len(data))):
                    data[place] = draw.choice((0, 1, 0x7F, 0x80, 0x81, 0x82, 0xFE, 0xFF))

    def _profile(self) -> str:
        return self._random.choice(
            (*self._profiles, "tls-server", "tls-server", "no-such", "", "tls-server@1", "../x")
        )

    def _pkcs10(self, kind: str, der: bytes) -> Case:
        if self._random.random() < 0.2:
            body = (
                b"-----BEGIN CERTIFICATE REQUEST-----\n"
                + base64.encodebytes(der)
                + b"-----END CERTIFICATE REQUEST-----\n"
            )
        else:
            body = der
        return Case(
            path=f"/v1/certificates?profile={self._plain_profile()}", content_type=PKCS10, body=body, kind=kind
        )

    def _plain_profile(self) -> str:
        return self._random.choice(self._profiles)

    def _mutated_csr(self) -> Case:
        return self._pkcs10("mutated CSR", self.mutate(self._random.choice(self._good)))

    def _resigned_csr(self) -> Case:
        """Mutate the content of a request and sign it again."""
        number = self._random.randrange(len(self._keys))
        info = x509.load_der_x509_csr(self._good[number]).tbs_certrequest_bytes
        mutated = self.mutate(info)
        signature = self._keys[number].sign(mutated, ec.ECDSA(hashes.SHA256()))
        algorithm = bytes.fromhex("300a06082a8648ce3d040302")
        return self._pkcs10("re-signed CSR", tlv(0x30, mutated + algorithm + tlv(0x03, b"\x00" + signature)))

    def _strange_names(self) -> Case:
        draw = self._random
        names: list[x509.GeneralName] = []
        for text in draw.sample(_TEXTS, draw.randrange(4)):
            kind = draw.choice((x509.DNSName, x509.RFC822Name, x509.UniformResourceIdentifier))
            names.append(kind._init_without_validation(text))
        if draw.random() < 0.1:
            names.append(x509.RegisteredID(x509.ObjectIdentifier("1.2.3.4")))
        if draw.random() < 0.1:
            names *= 150
        with bounds_in_characters():
            pairs = [(draw.choice(_OIDS), draw.choice(_TEXTS) or "x") for _ in range(draw.randrange(5))]
            subject = x509.Name([x509.NameAttribute(oid, text, _validate=False) for oid, text in pairs])
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=draw.random() < 0.5)
        if draw.random() < 0.2:
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        try:
            der = builder.sign(draw.choice(self._keys), hashes.SHA256()).public_bytes(Encoding.DER)
        except (ValueError, UnicodeError):  # not even this library writes it
            return self._mutated_csr()
        return self._pkcs10("strange names", der)

    def _request(self) -> dict[str, object]:
        csr = x509.load_der_x509_csr(self._random.choice(self._good)).public_bytes(Encoding.PEM).decode()
        return {"profile": self._profile(), "csr": csr}

    def _mutated_json(self) -> Case:
        body = self.mutate(json.dumps(self._request()).encode())
        return Case(path="/v1/certificates", content_type=JSON, body=body, kind="mutated JSON")

    def _strange_json(self) -> Case:
        draw, request = self._random, self._request()
        request["subject"] = {draw.choice(_ATTRIBUTES): self._value() for _ in range(draw.randrange(4))}
        request["names"] = {
            draw.choice(("dns", "ip", "email", "uri", "x")): draw.choice(
                (self._value(), [self._value(), self._value()])
            )
            for _ in range(draw.randrange(3))
        }
        if draw.random() < 0.3:
            request[draw.choice(("validity_days", "profile", "csr", "subject", "names", "extra"))] = self._value()
        body = json.dumps(request, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
        return Case(path="/v1/certificates", content_type=JSON, body=body, kind="strange JSON")

    def _value(self) -> object:
        return self._random.choice(_TEXTS if self._random.random() < 0.5 else _VALUES)

    def _row(self) -> dict[str, object]:
        der = self._random.choice(self._good)
        return {"reference": self._random.choice(_TEXTS), "csr": base64.b64encode(der).decode()}

    def _mutated_rows(self) -> Case:
        rows = [self._row() for _ in range(self._random.randrange(1, 4))]
        content_type = self._random.choice((NDJSON, JSON))
        text = json.dumps(rows) if content_type == JSON else "".join(json.dumps(row) + "\n" for row in rows)
        return self._batch("mutated rows", content_type, self.mutate(text.encode()))

    def _strange_csv(self) -> Case:
        draw = self._random
        separator = draw.choice((",", ";", "\t", "|"))
        columns = draw.sample(
            ("reference", "csr", "profile", "validity_days", "dns", "ip", "email", "CN", "O", "x"), 5
        )
        rows = [columns]
        rows += [
            [str(self._row()["csr"]) if column == "csr" else self._cell() for column in columns]
            for _ in range(draw.randrange(4))
        ]
        body = "\r\n".join(separator.join(row) for row in rows).encode("utf-8", "surrogatepass")
        return self._batch("strange CSV", CSV, self.mutate(body) if draw.random() < 0.5 else body)

    def _cell(self) -> str:
        text = self._random.choice(_TEXTS)
        return '"' + text.replace('"', '""') + '"' if self._random.random() < 0.5 else text

    def _batch(self, kind: str, content_type: str, body: bytes) -> Case:
        path = f"/v1/batches?profile={self._plain_profile()}&dry_run=true"
        return Case(path=path, content_type=content_type, body=body, kind=kind)


def _csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    name = "www.example.gov"
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )


_OID = x509.NameOID
_OIDS = (
    *(_OID.COMMON_NAME, _OID.ORGANIZATION_NAME, _OID.COUNTRY_NAME, _OID.SERIAL_NUMBER, _OID.EMAIL_ADDRESS),
    *(_OID.ORGANIZATION_IDENTIFIER, _OID.TITLE, _OID.DOMAIN_COMPONENT, x509.ObjectIdentifier("1.2.3.4.5")),
)
