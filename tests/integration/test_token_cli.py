"""`certmill token …`: what is in the tokens and what is wrong with them, in words that say what to do."""

import json
import os
import pty
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from server.supervisor import EXIT_CONFIG
from tests.support.certmill import RunningCertmill
from tests.support.faulty_module import Faults, build
from tests.support.token_site import (
    BENCHMARK_SCHEMA,
    CHECK_SCHEMA,
    KEYS,
    LIST_SCHEMA,
    Key,
    Site,
    contents,
    environ,
    failed,
    parsed,
    run,
)
from tests.unit.signer_pool.lanes import MODULE, PIN


@pytest.fixture(scope="module")
def faulty() -> Path:
    return build()


@pytest.fixture(scope="module")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the token that certmill has made for itself."""
    home = tmp_path_factory.mktemp("own") / "home"
    run(environ(home), "init")
    return home


@pytest.mark.parametrize("command", ["list", "check", "benchmark"])
@pytest.mark.parametrize("kind", ["auto", "software"])
def test_home_that_was_never_initialised_is_one_line_and_stays_away(
    tmp_path: Path, command: str, kind: str
) -> None:
    home = tmp_path / "home"
    done = run(environ(home, signer_kind=kind), "token", command, expect=EXIT_CONFIG)
    assert done.stderr == f"certmill: {home} was never initialised: run `certmill init` first\n"
    assert done.stdout == ""
    assert not home.exists()


def test_wrong_setting_is_one_line(tmp_path: Path) -> None:
    done = run(environ(tmp_path, signer_lanes="many"), "token", "list", expect=EXIT_CONFIG)
    assert done.stderr.startswith("certmill: setting signer.lanes: ")
    assert done.stderr.count("\n") == 1


def test_own_token_is_looked_at_and_nothing_of_the_home_changes(own_home: Path) -> None:
    before, names = contents(own_home), sorted(own_home.rglob("*"))
    env = environ(own_home, signer_lanes="2")
    (token,) = parsed(run(env, "token", "list", "--json"), LIST_SCHEMA)["tokens"]
    assert (token["name"], token["module"], token["lanes"], token["problem"]) == ("certmill", MODULE, 2, None)
    assert token["manufacturer"] == "SoftHSM project"
    assert [(key["name"], key["kind"], key["needed"]) for key in token["keys"]] == [
        ("root", "ec-p384", True),
        ("issuing", "ec-p256", True),
        ("ocsp", "ec-p256", True),
    ]
    assert {"ecdsa-with-SHA256", "sha256WithRSAEncryption"} <= set(token["algorithms"])
    report = parsed(run(env, "token", "check", "--json"), CHECK_SCHEMA)
    assert (report["ok"], report["initialised"]) == (True, True)
    measured = run(env, "token", "benchmark", "--seconds", "0.05", "--batch", "4", "--json")
    results = parsed(measured, BENCHMARK_SCHEMA)["results"]
    assert [result["key"] for result in results] == ["issuing", "ocsp"]
    assert [rate["lanes"] for rate in results[0]["rates"]] == [1, 2]
    assert contents(own_home) == before
    assert sorted(own_home.rglob("*")) == names


def test_software_keys_are_a_token_too(tmp_path: Path) -> None:
    env = environ(tmp_path, signer_kind="software")
    run(env, "init")
    before = contents(tmp_path)
    (token,) = parsed(run(env, "token", "list", "--json"), LIST_SCHEMA)["tokens"]
    assert (token["name"], token["slot"], token["missing_keys"]) == ("software", None, [])
    assert "ed25519" in token["algorithms"]
    assert "software keys" in run(env, "token", "list").stdout
    run(env, "token", "check")
    assert contents(tmp_path) == before
    (tmp_path / "secrets/pin").write_text("0" * 16)
    assert "wrong passphrase" in run(env, "token", "check", expect=1).stdout


def test_pin_of_the_home_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "software-keys").mkdir()
    (tmp_path / "secrets/pin").mkdir(parents=True)
    done = run(environ(tmp_path, signer_kind="software"), "token", "list", expect=EXIT_CONFIG)
    assert f"{tmp_path}/secrets/pin cannot be read" in done.stderr


@pytest.mark.parametrize("kind", ["auto", "software"])
def test_tokens_that_the_settings_no_longer_name_are_asked_for(site: Site, kind: str) -> None:
    env = environ(site.home, signer_kind=kind)
    before = contents(site.home)
    for arguments in (("token", "list"), ("token", "check"), ("token", "benchmark"), ("init",), ("serve",)):
        done = run(env, *arguments, expect=EXIT_CONFIG)
        (told,) = (line for line in done.stderr.splitlines() if not line.startswith("{"))
        assert told.startswith(
            "certmill: setting tokens: this home's CA has its keys in tokens that are named under"
        )
        assert f"none is named; name them in {site.home}/certmill.toml (docs/hsm.md)" in told
        assert done.stdout == ""
    made = contents(site.home).keys() - before.keys()
    assert {path.removeprefix(f"{site.home}/").partition("/")[0] for path in made} <= {"run", "responses"}


def test_tokens_are_asked_for_by_the_database_alone_and_nothing_is_written(site: Site) -> None:
    (site.home / "ca/root.pem").unlink()
    before = contents(site.home)
    done = run(environ(site.home), "token", "check", expect=EXIT_CONFIG)
    assert "none is named; name them in" in done.stderr
    assert contents(site.home) == before


def test_list_compares_the_keys_of_two_tokens(site: Site) -> None:
    site.alter("b", Key().row("ocsp"), Key().row("vpn"), destroy=("ocsp", "issuing"))
    a, b = parsed(site.token("list", "--json"), LIST_SCHEMA)["tokens"]
    relations = {
        key["name"]: (key["same_on"], key["lacking_on"], key["differs_on"], key["needed"]) for key in a["keys"]
    }
    assert relations == {
        "root": (["b"], [], [], True),
        "issuing": ([], ["b"], [], True),
        "ocsp": ([], [], ["b"], True),
    }
    assert a["keys"][0]["spki_sha256"] == site.keys["root"].sha256
    assert [key["name"] for key in b["keys"]] == ["root", "ocsp", "vpn"]
    assert (a["missing_keys"], b["missing_keys"]) == ([], ["issuing"])
    assert b["keys"][2]["needed"] is False
    shown = site.token("list").stdout
    for line in ("│ root    │ ec-p256 │", "│ same on b ", "│ lacking on b ", "│ differs on b ", "│ missing │"):
        assert line in shown
    assert site.keys["root"].sha256[:16] in shown


def test_whole_site_is_well(site: Site) -> None:
    done = site.token("check")
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * (1 + 3 + 3 + 3)  # opens, signs, same on both, certificates of all three
    assert all(line.startswith("ok ") for line in lines)
    assert sum("is the same key as on b" in line for line in lines) == 3
    assert sum("signs with ecdsa-with-SHA256" in line for line in lines) == 6
    assert sum("is the key of the issuing CA certificate" in line for line in lines) == 2
    assert sum("is the key of the OCSP responder's certificate" in line for line in lines) == 2


def test_key_that_one_token_lacks_is_to_be_copied(site: Site) -> None:
    site.alter("b", destroy=("issuing",))
    checks = site.checks()
    assert failed(checks) == {("b", "issuing", "sign"): "key"}
    assert "copy it from a" in checks["b", "issuing", "sign"]["text"]
    done = site.token("check", expect=1)
    (line,) = (line for line in done.stdout.splitlines() if not line.startswith("ok "))
    assert line.startswith("FAIL  b issuing missing: no private key pkcs11:object=issuing ")


def test_key_that_all_tokens_lack(site: Site, tmp_path: Path) -> None:
    for token in ("a", "b"):
        site.alter(token, destroy=("issuing",))
    checks = site.checks()
    assert failed(checks) == {(token, "issuing", "sign"): "key" for token in ("a", "b")}
    assert "connect the token that this certmill was initialised with" in checks["a", "issuing", "sign"]["text"]
    told = run(site.environ(), "init", expect=EXIT_CONFIG).stderr
    assert "setting keys.issuing: no token holds the key pkcs11:object=issuing, which the database" in told
    assert "; the tokens have 'ocsp', 'root'; connect" in told
    assert "`certmill token check` tells" in told
    # Another home over the same tokens was never initialised: there may be a key to make, but none to look for.
    elsewhere = {"CERTMILL_HOME": str(tmp_path / "elsewhere")}
    done = site.token("check", expect=1, env=elsewhere)
    assert "let `certmill init` make it" in done.stdout
    assert f"{tmp_path}/elsewhere was never initialised: run `certmill init` first" in done.stderr
    assert not (tmp_path / "elsewhere").exists()


def test_another_key_on_one_token_is_told_twice(site: Site) -> None:
    site.alter("b", Key().row("issuing"), destroy=("issuing",))
    checks = site.checks()
    assert failed(checks) == {
        ("a", "issuing", "tokens"): "mismatch",
        ("b", "issuing", "tokens"): "mismatch",
        ("b", "issuing", "certificate"): "mismatch",  # so it is b's that is wrong
    }
    assert "another key than on b" in checks["a", "issuing", "tokens"]["text"]


def test_keys_are_found_as_the_settings_say(site: Site) -> None:
    other = Key()
    site.alter("a", other.row("gov-2026"))
    listed = site.token("list", "--json", TOKENS=site.uri("a"), KEYS_OCSP="pkcs11:object=gov-2026")
    (token,) = json.loads(listed.stdout)["tokens"]
    assert {key["name"]: key["spki_sha256"] for key in token["keys"]}["ocsp"] == other.sha256
    checks = site.checks(TOKENS=site.uri("a"), KEYS_OCSP="pkcs11:object=gov-2031")
    assert "no private key pkcs11:object=gov-2031 " in checks["a", "ocsp", "sign"]["text"]


def test_two_keys_of_one_name_are_told(site: Site) -> None:
    site.alter("a", Key().row("issuing"))
    checks = site.checks(TOKENS=site.uri("a"))
    assert failed(checks) == {("a", "issuing", "sign"): "key"}
    assert "several private keys are called 'issuing'" in checks["a", "issuing", "sign"]["text"]
    assert "\nnote  a " in site.token("list", TOKENS=site.uri("a")).stdout


@pytest.mark.parametrize("command", ["list", "check", "benchmark"])
def test_wrong_pin_is_told_and_tried_once(site: Site, faulty: Path, command: str) -> None:
    site.write_pin("b", "wrong-5521")
    faults = Faults(site.directory)
    tokens = f"{site.uri('b', faulty)} {site.uri('a')}"
    arguments = ("--seconds", "0.01", "--batch", "1", "--lanes", "2") if command == "benchmark" else ()
    done = site.token(command, *arguments, "--json", expect=1, env=faults.env, TOKENS=tokens)
    report = json.loads(done.stdout)
    if command == "list":
        b, a = report["tokens"]
        assert b["problem"]["kind"] == "pin"
        assert a["problem"] is None
        assert [key["lacking_on"] for key in a["keys"]] == [[], [], []]  # nobody knows
    elif command == "check":
        told = {(one["token"], one["problem"]) for one in report["checks"]}
        assert told == {("b", "pin"), ("a", None)}
    else:
        assert [(one["token"], one["problem"]) for one in report["problems"]] == [("b", "pin")]
        assert {one["token"] for one in report["results"]} == {"a"}
    assert "the PIN was refused (CKR_PIN_INCORRECT); it is not tried again" in done.stdout
    assert "wrong-5521" not in done.stdout + done.stderr
    assert faults.calls("C_Login") == 1


def test_token_that_cannot_be_opened_is_a_row_with_the_reason(site: Site) -> None:
    (site.directory / "pin-b").chmod(0o644)
    uris = {
        "module": "pkcs11:token=m?module-path=/no/hsm.so&pin-source=prompt",
        "lib": site.uri("a", "/lib/x86_64-linux-gnu/libc.so.6"),
        "pin-source": site.uri("b"),
        "token": site.uri("c", source=f"file:{site.directory}/pin-a"),
    }
    done = site.token("list", "--json", expect=1, TOKENS=" ".join(uris.values()))
    told = {token["name"]: token["problem"] for token in parsed(done, LIST_SCHEMA)["tokens"]}
    assert "module-path /no/hsm.so is not there" in told["m"]["text"]
    assert f"setting tokens[2].pin (token 'b'): {site.directory}/pin-b is open to others" in told["b"]["text"]
    assert "no such token; is it connected?" in told["c"]["text"]
    assert "/lib/x86_64-linux-gnu/libc.so.6" in told["a"]["text"]
    kinds = {name: problem["kind"] for name, problem in told.items()}
    assert kinds == {"m": "module", "a": "module", "b": "pin-source", "c": "token"}
    shown = site.token("list", expect=1, TOKENS=" ".join(uris.values())).stdout
    assert all(problem["text"] in shown for problem in told.values())


def test_missing_mechanism_is_told(site: Site) -> None:
    site.configure("slots.mechanisms = CKM_SHA256_RSA_PKCS")
    checks = site.checks(TOKENS=site.uri("a"))
    assert failed(checks) == {("a", name, "sign"): "mechanism" for name in KEYS}
    assert "lacks the mechanism CKM_ECDSA that the ec-p256 key 'root' needs" in checks["a", "root", "sign"]["text"]


@pytest.mark.parametrize(
    ("fault", "problem", "text"),
    [
        ({"flip": True}, "signature", "its signature does not verify"),
        ({"rv": 0x70}, "mechanism", "CKR_MECHANISM_INVALID: This token lacks the mechanism"),
        ({"rv": 0x101, "times": 0}, "lane", "CKR_USER_NOT_LOGGED_IN"),
        ({"rv": 0xA4}, "pin", "CKR_PIN_LOCKED"),
        ({"crash": True}, "lane", "no answer: its process died"),
    ],
)
def test_signature_that_does_not_come_is_told(
    site: Site, faulty: Path, fault: dict[str, Any], problem: str, text: str
) -> None:
    faults = Faults(site.directory)
    faults.arm("C_Sign", **fault)
    checks = site.checks(env=faults.env, TOKENS=site.uri("a", faulty))
    assert checks["a", "root", "sign"]["problem"] == problem
    assert text in checks["a", "root", "sign"]["text"]
    assert checks["a", "root", "certificate"]["ok"]
    others = {checks["a", name, "sign"]["text"] for name in KEYS if name != "root"}
    session_goes_on = problem == "signature"
    assert (
        any("not tried: the session ended when the key 'root'" in told for told in others) is not session_goes_on
    )


@pytest.mark.alone
def test_benchmark_measures_what_was_asked_for(site: Site, faulty: Path) -> None:
    faults = Faults(site.directory)
    faults.sign_latency_us(2000)
    arguments = (
        "--lanes",
        "3",
        "--batch",
        "8",
        "--batch",
        "2",
        "--seconds",
        "0.2",
        "--key",
        "root",
        "--key",
        "none",
    )
    done = site.token("benchmark", *arguments, "--json", expect=1, env=faults.env, TOKENS=site.uri("a", faulty))
    report = parsed(done, BENCHMARK_SCHEMA)
    assert "shares them with this benchmark" in done.stderr
    assert report["serving"] is False
    assert [(one["key"], one["problem"]) for one in report["problems"]] == [("none", "key")]
    assert "it has: issuing, ocsp, root" in report["problems"][0]["text"]
    (result,) = report["results"]
    assert 2 < result["p50_ms"] <= result["p99_ms"]
    rates = {(rate["lanes"], rate["batch"]): rate["signs_per_s"] for rate in result["rates"]}
    assert list(rates) == [(lanes, batch) for lanes in (1, 2, 3) for batch in (2, 8)]
    assert 50 < rates[1, 8] < 500  # no more than the latency allows
    assert rates[3, 8] > 1.5 * rates[1, 8]
    shown = site.token("benchmark", *arguments, expect=1, env=faults.env, TOKENS=site.uri("a", faulty)).stdout
    assert "│ token │ key  │ lanes │ batch 2 │ batch 8 │" in shown.replace("┃", "│")
    assert " ms │" in shown
    assert "\nFAIL  a none missing: " in shown


def test_benchmark_tells_what_a_lane_died_of_and_keeps_what_was_measured(site: Site, faulty: Path) -> None:
    faults = Faults(site.directory)
    faults.sign_latency_us(500)
    # Up to 403 signatures until batches of 1 are measured, 1000 to begin with the others, and 2000 at least of those.
    faults.arm("C_Sign", nth=1500, crash=True)
    tokens = f"{site.uri('a', faulty)} {site.uri('b')}"
    arguments = ("--seconds", "0.1", "--batch", "1", "--batch", "1000", "--lanes", "1", "--key", "ocsp", "--json")
    report = parsed(site.token("benchmark", *arguments, expect=1, env=faults.env, TOKENS=tokens), BENCHMARK_SCHEMA)
    assert [(one["token"], one["key"], one["problem"]) for one in report["problems"]] == [("a", "ocsp", "lane")]
    assert "its process died" in report["problems"][0]["text"]
    batches = {one["token"]: [rate["batch"] for rate in one["rates"]] for one in report["results"]}
    assert batches == {"a": [1], "b": [1, 1000]}


def test_benchmark_says_which_lane_cannot_be_opened(site: Site, faulty: Path) -> None:
    faults = Faults(site.directory)
    faults.arm("C_Login", nth=2, rv=0x030)
    arguments = ("--seconds", "0.01", "--batch", "1", "--lanes", "2", "--json")
    tokens = f"{site.uri('a', faulty)} {site.uri('b', '/no/hsm.so')}"
    done = site.token("benchmark", *arguments, expect=1, env=faults.env, TOKENS=tokens)
    report = parsed(done, BENCHMARK_SCHEMA)
    second, missing = (one["text"] for one in report["problems"])
    assert second.startswith("lane 2 cannot be opened: ")
    assert "module-path /no/hsm.so is not there" in missing
    assert [rate["lanes"] for one in report["results"] for rate in one["rates"]] == [1, 1]


def test_damaged_database_is_one_line(site: Site) -> None:
    (site.home / "certmill.sqlite").write_bytes(b"this is no database" * 100)
    done = site.token("check", expect=1)
    assert done.stderr.startswith(f"certmill: database {site.home}/certmill.sqlite: ")
    assert done.stderr.count("\n") == 1


def test_database_of_a_certmill_that_was_killed_is_read_and_left_as_it_is(site: Site, tmp_path: Path) -> None:
    database, aside = site.home / "certmill.sqlite", tmp_path / "aside"
    connection = sqlite3.connect(database)
    connection.execute("UPDATE issuers SET key_label = iif(key_label = 'root', 'issuing', 'root')")
    connection.commit()
    shutil.copytree(site.home, aside)  # a commit that is in the -wal alone
    connection.close()
    shutil.rmtree(site.home)
    aside.rename(site.home)
    files = [database, database.with_name("certmill.sqlite-wal")]
    before = [path.read_bytes() for path in files]
    assert before[1]
    checks = site.checks(TOKENS=site.uri("a"))
    assert failed(checks) == {("a", key, "certificate"): "mismatch" for key in ("root", "issuing")}
    assert [path.read_bytes() for path in files] == before


def test_database_without_tables_knows_no_certificate(site: Site) -> None:
    (site.home / "certmill.sqlite").write_bytes(b"")
    checks = site.checks(expect=0, TOKENS=site.uri("a"))
    assert {check for _, _, check in checks} == {"open", "sign"}


def test_names_from_a_token_cannot_meddle_with_the_terminal(site: Site) -> None:
    site.alter("a", Key().row("\x1b]0;title\x07[red]clé"))
    environment = {"FORCE_COLOR": "1", "PYTHONIOENCODING": "ascii"}
    shown = site.token("list", TOKENS=site.uri("a"), env=environment).stdout
    assert "?]0;title?[red]cl\\xe9" in shown


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)


def on_terminal(terminal: tuple[int, int], env: Mapping[str, str], *arguments: str, typed: str = "") -> str:
    """Run a command whose every stream is the terminal; return what is seen."""
    ours, theirs = terminal
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "token", *arguments],
        env={**env, "TERM": "xterm"}, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # EIO: everybody has closed it
            break
        seen += piece
        if typed and b"PIN of token" in seen:
            os.write(ours, typed.encode())
            typed = ""
    assert process.wait(30) == 0, seen
    return seen.decode()


def test_people_get_colours_progress_and_are_asked_for_the_pin_once(site: Site, terminal: tuple[int, int]) -> None:
    env = site.environ(TOKENS=site.uri("a", source="prompt"))
    arguments = ("benchmark", "--seconds", "0.3", "--batch", "1", "--lanes", "2", "--key", "ocsp")
    seen = on_terminal(terminal, env, *arguments, typed=f"{PIN}\n")
    assert seen.count("PIN of token a: ") == 1
    assert PIN not in seen
    assert "\x1b[" in seen
    assert "3/3" in seen
    assert "signatures a second" in seen


def test_prompt_without_a_terminal_is_told(site: Site) -> None:
    checks = site.checks(TOKENS=site.uri("a", source="prompt"))
    assert failed(checks) == {("a", None, "open"): "pin-source"}
    assert "there is no terminal to ask on" in checks["a", None, "open"]["text"]


def test_ctrl_c_ends_a_benchmark_and_its_lanes(site: Site) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "token", "benchmark", "--seconds", "60"],
        env=site.environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (lanes := children.read_text().split()):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in out + err
    assert not any(Path(f"/proc/{pid}").exists() for pid in lanes)


def test_commands_work_while_certmill_serves(own_home: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(own_home, home)
    running = RunningCertmill(home)
    running.start()
    try:
        env = running.environ
        (token,) = parsed(run(env, "token", "list", "--json"), LIST_SCHEMA)["tokens"]
        assert [key["name"] for key in token["keys"]] == list(KEYS)
        assert parsed(run(env, "token", "check", "--json"), CHECK_SCHEMA)["initialised"] is True
        done = run(env, "token", "benchmark", "--seconds", "0.2", "--json")
        assert parsed(done, BENCHMARK_SCHEMA)["serving"] is True
        assert "certmill serves from this home" in done.stderr
        assert running.admin("/readyz").json == {"ready": True, "reasons": []}
        metrics = running.admin("/metrics").body.decode()
        assert "certmill_signer_lane_restarts_total{" not in metrics
    finally:
        assert running.stop() == 0
