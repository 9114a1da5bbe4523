"""`certmill client …`: operators decide who may ask for what, while certmill serves."""

import json
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

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

    def asks_for(self, name: str, profile: str = "tls-server", *, organization: str = "") -> Reply:
        extra = (x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),) if organization else ()
        body: dict[str, object] = {"profile": profile, "csr": make_csr(name, extra=extra).decode()}
        return self.calls("POST", "/v1/certificates", body)

    def calls(self, method: str, path: str, body: dict[str, object] | None = None, **headers: str) -> Reply:
        context = ssl.create_default_context(cafile=str(self._server.home / "ca/root.pem"))
        context.load_cert_chain(self.certificate, self.key)
        return self._server.api(method, path, body, headers, context=context)


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
    assert listed["name"] in shown


def test_limits_say_which_of_them_refused_and_usage_tells_what_is_left(
    server: RunningCertmill, command: Callable[..., Done], tmp_path: Path
) -> None:
    post = Ministry(server, tmp_path)
    limits = ["--profile", "*", "--name", "post.gov", "--organization", "Post of Laos", "--quota", "2"]
    command("add", "post", "--certificate", str(post.certificate), *limits)
    soon(lambda: post.asks_for("post.gov", organization="POST of Laos").status == 201)
    refused = post.asks_for("post.gov", organization="Customs")
    assert (refused.status, refused.json["type"]) == (403, "/docs#not-permitted")
    assert "may not ask for O=Customs: its organizations do not hold it" in refused.json["detail"]
    assert post.asks_for("a.post.gov").status == 201
    full = post.asks_for("b.post.gov")
    assert (full.status, full.json["type"]) == (403, "/docs#quota-exhausted")
    assert (full.json["limit"], full.json["used"]) == (2, 2)
    assert full.json["resets_at"].endswith("-01-01T00:00:00Z")
    usage = post.calls("GET", "/v1/usage").json
    assert usage["limits"]["organizations"] == ["Post of Laos"]
    assert (usage["used"], usage["remaining"], usage["live"]) == (2, 0, 2)
    assert usage["by_profile"] == {"tls-server": 2}
    assert sum(usage["by_month"].values()) == 2
    assert usage["forecast"]["quota_exhausted_on"] is not None
    metrics = server.admin("/metrics").body.decode()
    assert 'certmill_client_refusals_total{client="post",limit="quota"} 1.0' in metrics
    assert 'certmill_client_refusals_total{client="post",limit="organizations"} 1.0' in metrics
    shown = json.loads(command("show", "post", "--json").stdout)
    assert (shown["yearly_quota"], shown["issued"], shown["usage"]["used"]) == (2, 2, 2)
    told = command("show", "post").stdout
    assert "2 of 2" in told
    assert "Post of Laos" in told
    command("limit", "post", "--quota", "unlimited", "--organization", "")
    assert post.asks_for("b.post.gov").status == 201  # the quota is read where it is counted, not remembered
    assert "there is no client 'nobody'" in command("show", "nobody", expect=1).stderr


def test_client_that_asks_too_often_is_told_when_to_come_again(
    server: RunningCertmill, command: Callable[..., Done], tmp_path: Path
) -> None:
    fast = Ministry(server, tmp_path)
    command("add", "fast", "--certificate", str(fast.certificate), "--profile", "*", "--name", "*", "--rate", "2")
    first, second, third = [fast.asks_for("fast.gov") for _ in range(3)]
    assert (first.status, second.status, third.status) == (201, 201, 429)
    assert first.headers["ratelimit-policy"] == '"requests";q=2;w=60'
    assert first.headers["ratelimit"].startswith('"requests";r=1;t=')
    assert third.json["type"] == "/docs#rate-limited"
    assert 1 <= int(third.headers["retry-after"]) <= 30
    assert third.headers["ratelimit"].startswith('"requests";r=0;')
    assert fast.calls("GET", "/v1/usage").status == 200  # reading is not counted


def test_certificate_is_renewed_once_by_its_holder(
    server: RunningCertmill, command: Callable[..., Done], tmp_path: Path
) -> None:
    holder = Ministry(server, tmp_path)
    command("add", "holder", "--certificate", str(holder.certificate), "--profile", "*", "--name", "holder.gov")
    old = holder.asks_for("holder.gov").json["serial"]
    info = holder.calls("GET", f"/v1/certificates/{old}/renewal-info")
    window = info.json["suggestedWindow"]
    assert window["start"] < window["end"]
    assert int(info.headers["retry-after"]) == 6 * 3600
    body: dict[str, object] = {"csr": make_csr(None).decode()}
    renewed = holder.calls("POST", f"/v1/certificates/{old}/renewal", body)
    assert renewed.status == 201
    assert renewed.json["dns_names"] == ["holder.gov"]
    assert renewed.json["subject"] == "CN=holder.gov"
    again = holder.calls("POST", f"/v1/certificates/{old}/renewal", body)
    assert (again.status, again.headers["idempotent-replayed"]) == (201, "true")
    assert again.json["serial"] == renewed.json["serial"]
    other = holder.calls("POST", f"/v1/certificates/{old}/renewal", {"csr": make_csr(None).decode()})
    assert (other.status, other.json["type"]) == (409, "/docs#renewal-refused")
    assert renewed.json["serial"] in other.json["detail"]
    assert server.api("POST", f"/v1/certificates/{old}/renewal", body).status == 404  # demo's it is not
    listed = {
        renewed_: [
            one["serial"]
            for one in holder.calls("GET", f"/v1/certificates?renewed={renewed_}").json["certificates"]
        ]
        for renewed_ in ("true", "false")
    }
    assert listed == {"true": [old], "false": [renewed.json["serial"]]}
    after = holder.calls("GET", "/v1/certificates?expires_after=2099-01-01T00:00:00Z").json["certificates"]
    assert after == []
    assert holder.calls("GET", "/v1/certificates?renewed=maybe").status == 400


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
        (["limit", "demo"], "nothing to change; give --profile, --name, --organization"),
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
