"""A CSR in, a certificate out, its status answered: with openssl as the client."""

import re
import secrets
import subprocess
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pkix.names import serial_hex
from tests.support.ca import make_csr
from tests.support.certmill import RunningCertmill


@pytest.fixture
def certificate(running: RunningCertmill, tmp_path: Path) -> Path:
    """A fresh certificate in a file."""
    reply = running.issue(make_csr(f"{secrets.token_hex(4)}.example.gov"))
    assert reply.status == 201, reply.body
    path = tmp_path / "certificate.pem"
    path.write_text(reply.json["certificate"])
    return path


def serial_of(certificate: Path) -> str:
    return serial_hex(x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number)


def test_json_in_json_out(running: RunningCertmill) -> None:
    reply = running.issue(make_csr("a.example.gov"))
    assert reply.status == 201
    body = reply.json
    assert reply.headers["location"] == f"/v1/certificates/{body['serial']}"
    assert body["dns_names"] == ["a.example.gov"]
    assert body["profile"] == "tls-server@2"
    leaf = x509.load_pem_x509_certificate(body["certificate"].encode())
    issuing = x509.load_pem_x509_certificate(body["chain"][0].encode())
    leaf.verify_directly_issued_by(issuing)
    assert running.api("GET", reply.headers["location"]).json == body


def test_pkcs10_in_pem_chain_out_verifies_with_openssl(running: RunningCertmill, tmp_path: Path) -> None:
    for encoding in (Encoding.PEM, Encoding.DER):
        reply = running.api(
            "POST",
            "/v1/certificates?profile=tls-server",
            make_csr("b.example.gov", encoding=encoding),
            {"Content-Type": "application/pkcs10"},
        )
        assert reply.status == 201
        assert reply.headers["content-type"].startswith("application/pem-certificate-chain")
        chain = tmp_path / "chain.pem"
        chain.write_bytes(reply.body)
        verified = openssl("verify", "-CAfile", running.home / "ca/root.pem", "-untrusted", chain, chain)
        assert verified.endswith("OK\n")


@pytest.mark.parametrize("digest", ["-sha1", "-sha256"])
@pytest.mark.parametrize("nonce", ["-nonce", "-no_nonce"])
def test_openssl_says_good_then_revoked(
    running: RunningCertmill, certificate: Path, digest: str, nonce: str
) -> None:
    said = running.openssl_ocsp(certificate, digest, nonce)
    assert "Response verify OK" in said
    assert f"{certificate}: good" in said
    reply = running.revoke(serial_of(certificate), "keyCompromise")
    assert reply.status == 200
    assert reply.json["ocsp"] == "revoked"
    said = running.openssl_ocsp(certificate, digest, nonce)  # no waiting: the call has returned
    assert "Response verify OK" in said
    assert f"{certificate}: revoked" in said
    assert "Reason: keyCompromise" in said


@pytest.mark.parametrize("digest", ["-sha1", "-sha256"])
def test_a_serial_never_issued_is_unauthorized(running: RunningCertmill, certificate: Path, digest: str) -> None:
    near = int(serial_of(certificate), 16)
    issuing = running.home / "ca/issuing.pem"
    for serial in (near - 1, near + 1, secrets.randbits(127)):
        done = subprocess.run(
            ["openssl", "ocsp", "-issuer", issuing, digest, "-serial", str(serial), "-CAfile", issuing,
             "-url", f"http://127.0.0.1:{running.public_port}/ocsp"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "unauthorized (6)" in done.stdout + done.stderr


def test_the_crl_agrees(running: RunningCertmill, certificate: Path, tmp_path: Path) -> None:
    assert running.revoke(serial_of(certificate), "superseded").status == 200
    crl = tmp_path / "issuing.crl"
    deadline = time.monotonic() + 15
    serial = int(serial_of(certificate), 16)
    while True:
        reply = running.public("GET", "/crl/issuing.crl")
        assert reply.status == 200
        assert reply.headers["content-type"] == "application/pkix-crl"
        crl.write_bytes(reply.body)
        if x509.load_der_x509_crl(reply.body).get_revoked_certificate_by_serial_number(serial):
            break
        assert time.monotonic() < deadline, "the CRL does not list the certificate"
        time.sleep(0.05)
    pem = tmp_path / "crl.pem"
    openssl("crl", "-inform", "DER", "-in", crl, "-out", pem)
    said = openssl(
        "verify", "-crl_check", "-CAfile", running.home / "ca/chain.pem", "-CRLfile", pem, certificate, ok=False
    )
    assert "certificate revoked" in said
    other = tmp_path / "other.pem"
    other.write_text(running.issue(make_csr("c.example.gov")).json["certificate"])
    openssl("verify", "-crl_check", "-CAfile", running.home / "ca/chain.pem", "-CRLfile", pem, other)


def test_the_whole_chain_has_crls(running: RunningCertmill, certificate: Path, tmp_path: Path) -> None:
    crls = tmp_path / "crls.pem"
    crls.write_bytes(
        b"".join(
            x509.load_der_x509_crl(running.public("GET", f"/crl/{name}.crl").body).public_bytes(Encoding.PEM)
            for name in ("root", "issuing")
        )
    )
    chain = running.home / "ca/chain.pem"
    openssl("verify", "-crl_check_all", "-CAfile", chain, "-CRLfile", crls, certificate)


def test_crl_numbers_only_grow(running: RunningCertmill, certificate: Path) -> None:
    def number() -> int:
        crl = x509.load_der_x509_crl(running.public("GET", "/crl/issuing.crl").body)
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number

    before = number()
    running.revoke(serial_of(certificate))
    deadline = time.monotonic() + 15
    while number() == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert number() > before


def test_the_three_printed_lines_work_as_printed(running: RunningCertmill, tmp_path: Path) -> None:
    lines = [line for line in running.log.read_text().splitlines() if re.match(r"(openssl|curl) ", line)]
    issue, check, revoke = lines[:3]
    assert f"-url http://127.0.0.1:{running.public_port}/ocsp " in check
    refused = run(issue.replace("profile=tls-server", "profile=none"), tmp_path, code=22)
    assert "error: 4" in refused
    assert "profile" in (tmp_path / "www.pem").read_text()
    run(issue, tmp_path)
    assert "www.pem: good" in run(check, tmp_path)
    assert '"reason":"superseded"' in run(revoke, tmp_path)
    assert "www.pem: revoked" in run(check, tmp_path)


def run(line: str, directory: Path, *, code: int = 0) -> str:
    done = subprocess.run(line, shell=True, cwd=directory, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def openssl(*arguments: str | Path, ok: bool = True) -> str:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout + done.stderr
