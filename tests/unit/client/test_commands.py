"""`certmill request` and `certmill batch …` on bad days: one request, one certificate, no half a file."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from typer.testing import CliRunner, Result

from server.cli.commands import app
from server.config import CLIENT_VARIABLES, load_config
from server.errors import ConfigError
from tests.support.fake_api import LOST, FakeApi, Heard, Say
from tests.unit.client.test_batches import state, stream
from tests.unit.client.test_calls import BATCH, CERTIFICATE, PROBLEM, said

Certmill = Callable[..., Result]
CALM = said(PROBLEM, 403)
FULL = said(PROBLEM, 503, Retry_After="1000")
ASK = (
    "request",
    "--profile",
    "tls-server",
    "--subject",
    "CN=a.example",
    "--dns",
    "a.example",
    "--ip",
    "10.0.0.1",
    "-o",
)


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """The commands make everything private; the other tests of this process are to keep theirs."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def environ(api: FakeApi, tmp_path: Path) -> dict[str, str | None]:
    values = api.url, str(api.certificate), str(api.key), str(api.certificate)
    return {**dict(zip(CLIENT_VARIABLES, values, strict=True)), "CERTMILL_HOME": str(tmp_path / "home")}


@pytest.fixture
def certmill(environ: dict[str, str | None]) -> Certmill:
    return lambda *arguments, **other: CliRunner().invoke(
        app, [str(one) for one in arguments], env={**environ, **other}
    )


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def csr_of(heard: Heard) -> x509.CertificateSigningRequest:
    return x509.load_pem_x509_csr(json.loads(heard.body)["csr"].encode())


def test_a_key_a_request_and_a_certificate(api: FakeApi, certmill: Certmill, work: Path) -> None:
    api.says(said(CERTIFICATE, 201))
    done = certmill(*ASK, work / "www.a", "--email", "a@a.example", "--uri", "urn:a")
    assert done.exit_code == 0, done.output
    assert "serial 5f1c, until 2027-06-11" in done.stdout
    assert names(work) == ["www.a.key", "www.a.pem"]
    assert (work / "www.a.pem").read_text() == "LEAF\nCA\n"
    assert (work / "www.a.key").stat().st_mode & 0o777 == 0o600
    assert (work / "www.a.pem").stat().st_mode & 0o777 == 0o644
    csr = csr_of(api.heard[0])
    key = load_pem_private_key((work / "www.a.key").read_bytes(), None)
    assert csr.public_key() == key.public_key()
    assert csr.subject.rfc4514_string() == "CN=a.example"
    assert len(csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == 4


def test_a_rerun_repeats_the_request_that_may_have_been_heard(
    api: FakeApi, certmill: Certmill, work: Path
) -> None:
    api.says(FULL)
    assert certmill(*ASK, work / "www").exit_code == 75
    assert names(work) == ["www.pending"]
    assert (work / "www.pending").stat().st_mode & 0o777 == 0o600
    other = certmill("request", "--profile", "tls-client", "-o", work / "www")
    assert other.exit_code == 1
    assert "www.pending" in other.stderr
    api.says(CALM)  # refused now, but the first may have been heard: its key must not be lost
    assert certmill(*ASK, work / "www").exit_code == 1
    assert names(work) == ["www.pending"]
    api.says(said(CERTIFICATE, 201))
    assert certmill(*ASK, work / "www").exit_code == 0
    assert names(work) == ["www.key", "www.pem"]
    assert len({(one.body, one.headers["idempotency-key"]) for one in api.heard}) == 1


def test_a_crash_between_the_files_is_mended_by_a_rerun(api: FakeApi, certmill: Certmill, work: Path) -> None:
    api.says(FULL)
    certmill(*ASK, work / "www")
    kept = json.loads((work / "www.pending").read_bytes())
    (work / "www.key").write_text(kept["private_key"])
    api.says(said(CERTIFICATE, 201))
    assert certmill(*ASK, work / "www").exit_code == 0
    assert names(work) == ["www.key", "www.pem"]


def test_a_key_that_is_there_is_never_replaced_unasked(api: FakeApi, certmill: Certmill, work: Path) -> None:
    (work / "www.key").write_text("precious")
    done = certmill(*ASK, work / "www")
    assert done.exit_code == 1
    assert "--force" in done.stderr
    assert api.heard == []
    api.says(FULL, said(CERTIFICATE, 201))
    assert certmill(*ASK, work / "www", "--force").exit_code == 75
    assert (work / "www.key").read_text() == "precious"
    assert certmill(*ASK, work / "www").exit_code == 1  # finished without --force: still not
    assert (work / "www.key").read_text() == "precious"
    api.says(said(CERTIFICATE, 201))
    assert certmill(*ASK, work / "www", "--force").exit_code == 0
    assert names(work) == ["www.key", "www.pem"]


def test_a_refusal_leaves_nothing_and_tells_the_remedy(api: FakeApi, certmill: Certmill, work: Path) -> None:
    api.says(said(PROBLEM, 422))
    done = certmill(*ASK, work / "www", "--json")
    assert done.exit_code == 1
    assert "subject: CN is missing; give a CN (urn:request:7)" in done.stderr
    assert json.loads(done.stdout)["problem"]["remedy"] == "give a CN"
    assert names(work) == []


def test_what_was_over_a_limit_and_then_refused_leaves_nothing(
    api: FakeApi, certmill: Certmill, work: Path
) -> None:
    """A rate (429) turns away before anything can come of a request; the quota behind it refuses."""
    api.says(said(PROBLEM, 429, Retry_After="0"), said(PROBLEM, 403))
    assert certmill(*ASK, work / "www").exit_code == 1
    assert names(work) == []


def test_a_certificate_without_subject_is_told_by_its_names(api: FakeApi, certmill: Certmill, work: Path) -> None:
    api.says(said({**CERTIFICATE, "subject": "", "dns_names": ["a.example", "b.example"]}, 201))
    assert "www.pem: a.example, b.example, serial" in certmill(*ASK, work / "www").stdout


def test_a_request_from_elsewhere(api: FakeApi, certmill: Certmill, work: Path) -> None:
    api.says(said(CERTIFICATE, 201))
    certmill(*ASK, work / "www")
    csr = work / "other.csr"
    csr.write_text(json.loads(api.heard[0].body)["csr"])
    api.says(said(CERTIFICATE, 201))
    done = certmill(
        "request", "--profile", "device", "--csr", csr, "--dns", "b.example", "--validity-days", 9, "--json"
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["files"] == {"certificate": str(work / "other.pem")}
    sent = json.loads(api.heard[1].body)
    assert sent == {
        "profile": "device",
        "csr": csr.read_text(),
        "names": {"dns": ["b.example"]},
        "validity_days": 9,
    }
    assert names(work) == ["other.csr", "other.pem", "www.key", "www.pem"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-o", "www", "--subject", "CN"], "ATTRIBUTE=VALUE"),
        (["-o", "www", "--subject", "CN=a", "--subject", "CN=b"], "there twice"),
        (["-o", "www", "--subject", "shoeSize=44"], "no attribute shoeSize"),
        (["-o", "www", "--subject", "C=Laos"], "C:"),
        (["-o", "www", "--dns", "ລາວ.example"], "--dns"),
        (["-o", "www", "--ip", "10.0.0"], "--ip"),
        (["-o", "nowhere/www"], "--out: there is no directory nowhere"),
        (["--csr", "broken"], "no PKCS #10"),
        ([], "--out"),
    ],
)
def test_what_is_wrong_is_named(
    certmill: Certmill, work: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(work)
    (work / "broken").write_text("-----BEGIN")
    done = certmill("request", "--profile", "tls-server", *arguments)
    assert done.exit_code in {1, 2}
    assert told in done.stderr
    assert names(work) == ["broken"]


def test_where_the_api_is_must_be_known(api: FakeApi, certmill: Certmill, tmp_path: Path) -> None:
    nothing = dict.fromkeys(CLIENT_VARIABLES)
    done = certmill("batch", "list", **nothing)
    assert done.exit_code == 78
    assert "demo" in done.stderr
    assert CLIENT_VARIABLES[2] in certmill("batch", "list", **{CLIENT_VARIABLES[2]: None}).stderr
    done = certmill("batch", "list", **{CLIENT_VARIABLES[0]: "pki"})
    assert done.exit_code == 78
    assert "for example https" in done.stderr
    assert certmill("batch", "list", **{CLIENT_VARIABLES[3]: str(tmp_path / "nowhere")}).exit_code == 78
    demo = tmp_path / "home/clients/demo"
    demo.mkdir(parents=True)
    (tmp_path / "home/ca").mkdir()
    (demo / "cert.pem").write_bytes(api.certificate.read_bytes())
    (demo / "key.pem").write_bytes(api.key.read_bytes())
    (tmp_path / "home/ca/root.pem").write_bytes(api.certificate.read_bytes())
    api.says(said({"batches": []}))
    done = certmill("batch", "list", CERTMILL_LISTEN_API=f"0.0.0.0:{api.port}", **nothing)
    assert done.exit_code == 0, done.output


def test_a_batch_is_handed_in_once_and_followed(api: FakeApi, certmill: Certmill, work: Path) -> None:
    rows = work / "rows.csv"
    rows.write_text("reference,csr\n")
    api.says(FULL)
    assert certmill("batch", "submit", rows, "--profile", "device").exit_code == 75
    assert names(work) == ["rows.csv", "rows.csv.pending"]
    rows.write_text("reference,csr\nother\n")
    assert certmill("batch", "submit", rows, "--profile", "device").exit_code == 1
    rows.write_text("reference,csr\n")
    api.says(said(BATCH, 202), said(state("running", 1)), stream(state("running", 1), state("done", 2)))
    done = certmill("batch", "submit", rows, "--profile", "device", "--watch")
    assert done.exit_code == 0, done.output
    assert "batch b1 is running: 2 rows; 1 issued, 1 pending" in done.stderr
    assert "batch b1 is done: 2 rows; 2 issued" in done.stdout
    assert names(work) == ["rows.csv"]
    assert len({one.headers["idempotency-key"] for one in api.heard[:2]}) == 1


def test_a_batch_with_rows_that_failed_ends_with_1(api: FakeApi, certmill: Certmill) -> None:
    api.says(said(state("done", 1) | {"failed": 1, "pending": 0}))
    done = certmill("batch", "watch", "b1")
    assert done.exit_code == 1
    assert "what became of each row: certmill batch fetch b1" in done.stderr
    api.says(said(state("done", 1) | {"failed": 1, "pending": 0}))
    done = certmill("batch", "watch", "b1", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["failed"] == 1


def test_batches_are_shown_steered_and_fetched(api: FakeApi, certmill: Certmill, work: Path) -> None:
    api.says(said({"batches": [BATCH | {"dry_run": True}]}), said({"batches": [BATCH]}))
    assert "queued (dry run)" in certmill("batch", "list").stdout
    assert json.loads(certmill("batch", "list", "--json").stdout)["batches"][0]["id"] == "b1"
    for act in ("pause", "resume", "cancel"):
        api.says(said(BATCH))
        assert "batch b1 is queued" in certmill("batch", act, "b1").stdout
        assert api.heard[-1].path == f"/v1/batches/b1/{act}"
    api.says(Say(200, b"PK"), Say(200, b"{}"))
    assert certmill("batch", "fetch", "b1", "-o", work / "all.zip").exit_code == 0
    done = certmill("batch", "fetch", "b1", "--format", "ndjson", "-o", work / "all.ndjson", "--json")
    assert json.loads(done.stdout) == {"file": str(work / "all.ndjson"), "bytes": 2}
    assert (work / "all.zip").read_bytes() == b"PK"
    assert [one.path for one in api.heard][-2:] == [
        f"/v1/batches/b1/results?format={form}" for form in ("zip", "ndjson")
    ]


def test_formats_follow_the_files_name(api: FakeApi, certmill: Certmill, work: Path) -> None:
    (work / "rows").write_text("[]")
    assert "--format" in certmill("batch", "submit", work / "rows", "--profile", "device").stderr
    api.says(CALM, said(BATCH, 202))
    for expected in (1, 0):  # a refusal of what was never heard before is forgotten: another batch may follow
        done = certmill(
            "batch", "submit", work / "rows", "--profile", "device", "--format", "json", "--dry-run", "--json"
        )
        assert done.exit_code == expected
        assert names(work) == ["rows"]
    assert api.heard[1].headers["content-type"] == "application/json"
    assert "is no pending" in _with_rubbish(certmill, work)


def _with_rubbish(certmill: Certmill, work: Path) -> str:
    (work / "rows.csv").write_text("")
    (work / "rows.csv.pending").write_text("mine")
    return certmill("batch", "submit", work / "rows.csv", "--profile", "device").stderr


def test_a_lost_answer_is_told_while_it_is_repeated(api: FakeApi, certmill: Certmill) -> None:
    api.says(LOST, said(BATCH))
    done = certmill("batch", "pause", "b1")
    assert done.exit_code == 0
    assert "trying again in" in done.stderr


def test_a_bar_on_a_terminal(api: FakeApi, environ: dict[str, str | None]) -> None:
    api.says(said(state("running", 1)), stream(state("running", 1), state("done", 2)))
    ours, theirs = pty.openpty()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CERTMILL_")}
    done = subprocess.run(
        [sys.executable, "-m", "server", "batch", "watch", "b1"],
        env={**inherited, **{k: v for k, v in environ.items() if v}, "TERM": "xterm"}, stderr=theirs, stdout=subprocess.PIPE, timeout=30, check=False,
    )  # fmt: skip
    os.close(theirs)
    shown = os.read(ours, 2**16).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "2/2" in shown
    assert b"batch b1 is done" in done.stdout


def test_a_server_leaves_the_clients_variables_alone_and_refuses_others() -> None:
    load_config(dict.fromkeys(CLIENT_VARIABLES, "x"))
    with pytest.raises(ConfigError, match="CERTMILL_CLIENT_URI"):
        load_config({"CERTMILL_CLIENT_URI": "x"})
