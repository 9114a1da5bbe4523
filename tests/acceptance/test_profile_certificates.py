"""Each built-in profile's certificates pass their linter, and openssl, Java and NSS open and verify them.

`deploy/bootstrap java nss` installs what is needed. Without it these tests fail: they are never skipped.
"""

import re
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from server.clock import utc_now
from server.issuance.profile_files import built_in_files
from server.issuance.samples import Sample, SampleCa, sample_ca, sample_certificate
from server.linting.exceptions import documented_exceptions
from server.linting.findings import Severity
from server.linting.linters import lint, lint_now

PROFILES = {file.profile.name: file.profile for file in built_in_files()}
HERE = Path(__file__).parent
REMEDY = "not installed: deploy/bootstrap java nss"


@pytest.fixture(scope="module")
def ca() -> SampleCa:
    return sample_ca(utc_now())


@pytest.fixture(scope="module")
def samples(ca: SampleCa) -> dict[str, Sample]:
    """The least and the most that each profile may hold."""
    return {
        f"{name}-{'full' if full else 'least'}": sample_certificate(profile, full=full, ca=ca)
        for name, profile in PROFILES.items()
        for full in (False, True)
    }


@pytest.fixture(scope="module")
def files(samples: dict[str, Sample], ca: SampleCa, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The CA's certificate and all others, as DER; the same as PEM beside them."""
    directory = tmp_path_factory.mktemp("certificates")
    ders = {"ca": ca.issuer.certificate_der} | {name: ca.sign(sample.prepared) for name, sample in samples.items()}
    for name, der in ders.items():
        (directory / f"{name}.der").write_bytes(der)
        pem = x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
        (directory / f"{name}.pem").write_bytes(pem)
    return [directory / f"{name}.der" for name in ders]


@pytest.mark.parametrize("full", [False, True], ids=["least", "full"])
@pytest.mark.parametrize("name", PROFILES)
def test_it_passes_its_linter(samples: dict[str, Sample], ca: SampleCa, name: str, full: bool) -> None:
    profile = PROFILES[name]
    assert profile.linter != "none"
    der = ca.sign(samples[f"{name}-{'full' if full else 'least'}"].prepared)
    found = lint_now(der, profile.linter, profile=name, exceptions=documented_exceptions())
    assert [str(finding) for finding in found] == []


def test_the_linters_see_what_is_wrong(samples: dict[str, Sample], ca: SampleCa) -> None:
    """None of the tests above is green because nothing was looked at."""
    der = ca.sign(samples["tls-client-least"].prepared)
    for linter in ("cabf-tls", "cabf-smime", "etsi"):
        assert any(finding.severity <= Severity.ERROR for finding in lint(der, linter)), linter


def test_a_responder_is_one_by_the_baseline_requirements_too(samples: dict[str, Sample], ca: SampleCa) -> None:
    der = ca.sign(samples["ocsp-responder-full"].prepared)
    assert [str(finding) for finding in lint(der, "cabf-tls")] == []


def test_openssl_opens_and_verifies_all(files: list[Path]) -> None:
    pems = [path.with_suffix(".pem") for path in files]
    output = run("openssl", "verify", "-x509_strict", "-purpose", "any", "-CAfile", *map(str, pems))
    assert output.count(": OK") == len(files) - 1
    text = "".join(path.read_text() for path in pems)
    (bundle := pems[0].with_name("all.crt")).write_text(text)
    read = run("openssl", "storeutl", "-noout", "-text", "-certs", str(bundle))
    assert read.count("Version: 3 (0x2)") == len(files)


def test_java_opens_and_verifies_all(files: list[Path]) -> None:
    output = run("java", "-Xshare:auto", str(HERE / "OpenCertificates.java"), *map(str, files))
    assert [line.split()[0] for line in output.splitlines()] == [path.name for path in files[1:]]


def test_nss_opens_and_verifies_all(files: list[Path]) -> None:
    directory = files[0].parent / "nss"
    directory.mkdir()
    database = f"sql:{directory}"
    run("certutil", "-N", "-d", database, "--empty-password")
    lines = [f"-A -n {path.stem} -t {'CT,C,C' if path.stem == 'ca' else ',,'} -i {path}" for path in files]
    lines += [f"-L -n {path.stem}" for path in files]
    (batch := directory / "batch").write_text("\n".join(lines) + "\n")
    output = run("certutil", "-B", "-d", database, "-i", str(batch))
    read = set(re.findall(r"Serial Number:\s+([0-9a-f:]+)", output))
    assert read >= {serial_number(path) for path in files[1:]}
    for name, usage in (("tls-server-public-least", "V"), ("tls-client-least", "C"), ("smime-public-full", "R")):
        assert "valid" in run("certutil", "-V", "-e", "-u", usage, "-n", name, "-d", database)


def serial_number(path: Path) -> str:
    """Return the octets of the INTEGER, as certutil shows them: with a zero before a first one of 0x80 and more."""
    number = x509.load_der_x509_certificate(path.read_bytes()).serial_number
    return number.to_bytes(number.bit_length() // 8 + 1, "big").hex(":")


def run(*command: str) -> str:
    """Run one of the three programs to its good end and return what it says."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    except FileNotFoundError:
        pytest.fail(f"{command[0]} is {REMEDY}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout
