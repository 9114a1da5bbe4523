"""`certmill client …`: operators decide who may ask for what, while certmill serves."""

import json
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from server.supervisor import EXIT_CONFIG
from tests.support.authority import Table
from tests.support.ca import make_csr
from tests.support.certmill import Reply, RunningCertmill, certmill
from tests.support.token_site import Done, environ, run


class Ministry:
    """A client with a key of its own and a certificate that the demo client asked for."""

    def __init__(self, server: RunningCertmill, directory: Path) -> None:
        self._server = server
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = directory / "tax.pem"
        self.key = directory / "tax.key"
        self.key.write_bytes(self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        reply = server.api(
            "POST", "/v1/certificates", {"profile": "tls-client", "csr": make_csr("tax", key=self._key).decode()}
        )
        assert reply.status == 201
        self.certificate.write_text(reply.json["certificate"])

    def asks_for(self, name: str, profile: str = "tls-server") -> Reply:
        context = ssl.create_default_context(cafile=str(self._server.home / "ca/root.pem"))
        context.load_cert_chain(self.certificate, self.key)
        body: dict[str, object] = {"profile": profile, "csr": make_csr(name).decode()}
        return self._server.api("POST", "/v1/certificates", body, context=context)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCertmill]:
    with certmill(tmp_path_factory.mktemp("clients") / "home") as running:
        yield running


@pytest.fixture
def command(server: RunningCertmill) -> Callable[..., Done]:
    def client(*arguments: str, expect: int = 0) -> Done:
        return run(server.environ, "client", *arguments, expect=expect)

    return client


def soon(condition: Callable[[], bool]) -> None:
    """Wait for what takes effect within a second."""
    deadline = time.monotonic() + 3
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_client_is_added_limited_disabled_and_enabled(
    server: RunningCertmill, command: Callable[..., Done], tmp_path: Path
) -> None:
    tax = Ministry(server, tmp_path)
    assert tax.asks_for("www.tax.example.gov").status == 403
    command(
        "add", "tax", "--certificate", str(tax.certificate), "--profile", "tls-server", "--name", "tax.example.gov"
    )
    soon(lambda: tax.asks_for("www.tax.example.gov").status == 201)
    assert tax.asks_for("www.customs.example.gov").json["type"] == "/docs#not-permitted"
    assert tax.asks_for("www.tax.example.gov", "tls-client").json["type"] == "/docs#not-permitted"
    command("limit", "tax", "--name", "customs.example.gov", "--name", "192.0.2.7")
    soon(lambda: tax.asks_for("www.customs.example.gov").status == 201)
    assert tax.asks_for("www.tax.example.gov").status == 403
    command("disable", "tax")
    soon(lambda: tax.asks_for("www.customs.example.gov").json.get("type") == "/docs#not-authenticated")
    (listed,) = [one for one in json.loads(command("list", "--json").stdout)["clients"] if one["name"] == "tax"]
    assert listed["disabled"] is True
    assert (listed["profiles"], listed["names"]) == (["tls-server"], ["192.0.2.7", "customs.example.gov"])
    assert listed["live_certificates"] >= 2
    command("enable", "tax")
    soon(lambda: tax.asks_for("www.customs.example.gov").status == 201)
    shown = command("list").stdout
    assert "customs.example.gov" in shown
    assert listed["spki_sha256"][:16] in shown


def test_client_is_known_by_its_key_whatever_file_holds_it(command: Callable[..., Done], tmp_path: Path) -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    csr, public = tmp_path / "a.csr", tmp_path / "a.pub"
    csr.write_bytes(make_csr("a", key=keys[0]))
    public.write_bytes(keys[0].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    command("add", "a", "--certificate", str(csr))
    told = command("add", "b", "--certificate", str(public), expect=1)
    assert told.stderr.startswith("certmill: --certificate: this key is that of the client a;")
    command("pin", "a", "--certificate", str(public))
    public.write_bytes(keys[1].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    command("pin", "a", "--certificate", str(public))
    command("add", "b", "--certificate", str(csr), "--profile", "*", "--name", "*")
    command("pin", "a", "--certificate", str(csr), expect=1)


def test_every_act_is_in_the_audit_log(
    server: RunningCertmill, command: Callable[..., Done], tmp_path: Path
) -> None:
    csr = tmp_path / "audited.csr"
    csr.write_bytes(make_csr("audited"))
    command("add", "audited", "--certificate", str(csr), "--profile", "tls-client")
    command("limit", "audited", "--profile", "tls-server")
    command("disable", "audited")
    command("enable", "audited")
    command("pin", "audited", "--certificate", str(csr))
    query = "select actor, action, detail from audit_log where object = 'audited' order by id"
    rows = [[str(value) for value in row] for row in Table(server.home).rows(query)]
    assert [row[1] for row in rows] == [
        "client.added",
        "client.limited",
        "client.disabled",
        "client.enabled",
        "client.pinned",
    ]
    assert {row[0].partition(":")[0] for row in rows} == {"operator"}
    assert json.loads(rows[1][2]) == {"profiles": ["tls-server"]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["add", "Tax", "--certificate", "{csr}"], "NAME: 'Tax' cannot be a client's name; use 1 to 64"),
        (["add", "certmill", "--certificate", "{csr}"], "certmill itself is taken"),
        (["add", "demo", "--certificate", "{csr}"], "there is a client demo already; change it by"),
        (
            ["add", "x", "--certificate", "{csr}", "--profile", "nothing"],
            "--profile: there is no profile 'nothing'; use *",
        ),
        (["add", "x", "--certificate", "{csr}", "--name", "UPPER.gov"], "--name: 'UPPER.gov' is no name"),
        (["add", "x", "--certificate", "{csr}", "--name", "a..b"], "--name: 'a..b' is no name"),
        (["add", "x", "--certificate", "/nonexistent"], "/nonexistent cannot be read (No such file"),
        (["add", "x", "--certificate", "{key}"], "holds no certificate, CSR or public key"),
        (["limit", "nobody", "--profile", "*"], "there is no client 'nobody'; see: certmill client list"),
        (["limit", "demo"], "nothing to change; give --profile, --name or both"),
        (["disable", "nobody"], "there is no client 'nobody'"),
        (["pin", "nobody", "--certificate", "{csr}"], "there is no client 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    command: Callable[..., Done], tmp_path: Path, arguments: list[str], words: str
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    files = {"csr": tmp_path / "x.csr", "key": tmp_path / "x.key"}
    files["csr"].write_bytes(make_csr("x", key=key))
    files["key"].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    done = command(*(argument.format(**files) for argument in arguments), expect=1)
    assert done.stderr.startswith("certmill: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert done.stdout == ""


def test_home_that_was_never_initialised_is_left_alone(tmp_path: Path) -> None:
    done = run(environ(tmp_path / "home"), "client", "list", expect=EXIT_CONFIG)
    assert "was never initialised" in done.stderr
    assert not (tmp_path / "home").exists()
