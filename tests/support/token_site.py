"""A host with two SoftHSM tokens that hold the same keys, and `certmill token …` run on it; what `--json` prints.

site = Site.make(directory)
site.alter("b", destroy=("issuing",))
site.token("check", expect=1)
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from signer_pool.token_init import initialise_token
from tests.support.certmill import RunningCertmill
from tests.unit.signer_pool.lanes import MODULE, PIN, SO_PIN

KEYS = ("root", "issuing", "ocsp")
Done = subprocess.CompletedProcess[str]

# Of keys that are made of software every token can have a copy.
_ALTER = """
import json, sys, pkcs11
from pkcs11 import Attribute as A
from pkcs11.util import ec
task = json.load(sys.stdin)
token = pkcs11.lib(task["module"]).get_token(token_label=task["token"])
with token.open(rw=True, user_pin=task["pin"]) as session:
    for label in task["destroy"]:
        for found in list(session.get_objects({A.LABEL: label})):
            found.destroy()
    for label, id, private, public in task["create"]:
        common = {A.TOKEN: True, A.LABEL: label, A.ID: bytes.fromhex(id)}
        secret = {A.PRIVATE: True, A.SENSITIVE: True, A.EXTRACTABLE: False, A.SIGN: True}
        session.create_object(ec.decode_ec_private_key(bytes.fromhex(private)) | common | secret)
        session.create_object(ec.decode_ec_public_key(bytes.fromhex(public)) | common | {A.PRIVATE: False})
"""


class Key:
    """A P-256 key of software, to be imported."""

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self.private = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        self.public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.public).hexdigest()

    def row(self, label: str) -> tuple[str, str, str, str]:
        """Return what `_ALTER` creates; the halves are paired by an id of their own."""
        return label, self.sha256[:16], self.private.hex(), self.public.hex()


@dataclass(frozen=True)
class Site:
    """A host with the SoftHSM tokens `a` and `b`, and a certmill whose home was initialised with them."""

    directory: Path
    keys: Mapping[str, Key]

    @property
    def home(self) -> Path:
        return self.directory / "home"

    @classmethod
    def make(cls, directory: Path) -> "Site":
        """Make tokens, keys and CA certificates. Blocks: some 3 s."""
        (directory / "tokens").mkdir(parents=True)
        site = cls(directory, {name: Key() for name in KEYS})
        site.configure()
        for token in ("a", "b"):
            initialise_token(MODULE, token, SO_PIN, PIN, site.softhsm)
            site.write_pin(token, PIN)
            site.alter(token, *(key.row(name) for name, key in site.keys.items()))
        run(site.environ(), "init")
        return site

    def copy(self, directory: Path) -> "Site":
        """Make another host of the same state."""
        shutil.copytree(self.directory, directory)
        copied = Site(directory, self.keys)
        copied.configure()
        return copied

    def configure(self, *lines: str) -> None:
        """Write SoftHSM's configuration, with further lines."""
        first = (
            f"directories.tokendir = {self.directory}/tokens",
            "objectstore.backend = file",
            "log.level = ERROR",
        )
        (self.directory / "softhsm2.conf").write_text("\n".join((*first, *lines, "")))

    def write_pin(self, token: str, pin: str) -> None:
        path = self.directory / f"pin-{token}"
        path.touch(mode=0o600)
        path.write_text(pin)

    def uri(self, token: str, module: Path | str = MODULE, source: str | None = None) -> str:
        source = source or f"file:{self.directory}/pin-{token}"
        return f"pkcs11:token={token}?module-path={module}&pin-source={source}"

    def alter(self, token: str, *create: tuple[str, str, str, str], destroy: tuple[str, ...] = ()) -> None:
        """Remove and add objects of a token."""
        task = {"module": MODULE, "token": token, "pin": PIN, "destroy": destroy, "create": create}
        subprocess.run(
            [sys.executable, "-P", "-c", _ALTER],
            input=json.dumps(task).encode(), env={**os.environ, **self.softhsm}, check=True,
        )  # fmt: skip

    @property
    def softhsm(self) -> dict[str, str]:
        return {"SOFTHSM2_CONF": str(self.directory / "softhsm2.conf")}

    def environ(self, **settings: str) -> dict[str, str]:
        tokens = f"{self.uri('a')} {self.uri('b')}"
        return environ(self.home, **{"TOKENS": tokens, **settings}) | self.softhsm

    def token(
        self, *arguments: str, expect: int = 0, env: Mapping[str, str] | None = None, **settings: str
    ) -> Done:
        """Run `certmill token …`; keyword arguments are settings."""
        return run({**self.environ(**settings), **(env or {})}, "token", *arguments, expect=expect)

    def checks(self, *, expect: int = 1, env: Mapping[str, str] | None = None, **settings: str) -> dict[Any, Any]:
        """Run `check --json` and return the checks by token, key and what is checked."""
        report = json.loads(self.token("check", "--json", expect=expect, env=env, **settings).stdout)
        assert report["ok"] is (expect == 0)
        return {(one["token"], one["key"], one["check"]): one for one in report["checks"]}


def environ(home: Path, **settings: str) -> dict[str, str]:
    named = {f"CERTMILL_{name.upper()}": value for name, value in settings.items()}
    return {**RunningCertmill(home).environ, **named}


def run(env: Mapping[str, str], *arguments: str, expect: int = 0) -> Done:
    """Run a command to its end, without a terminal; whatever happens, nobody sees a traceback or a PIN."""
    done = subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        start_new_session=True,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == expect, said
    assert "Traceback" not in said
    assert PIN not in said
    assert "\x1b" not in done.stdout
    return done


def failed(checks: Mapping[Any, Any]) -> dict[Any, str]:
    return {key: one["problem"] for key, one in checks.items() if not one["ok"]}


def contents(home: Path) -> dict[str, bytes | None]:
    """Return every file of a home and what is in it; SoftHSM itself notes each login in its own files."""
    kept = {
        path for path in home.rglob("*") if not (path.is_file() and path.is_relative_to(home / "token/tokens"))
    }
    return {str(path): path.read_bytes() if path.is_file() else None for path in kept}


TEXT, COUNT, WORDS = (
    {"type": "string"},
    {"type": "integer", "minimum": 1},
    {"type": "array", "items": {"type": "string"}},
)
PROBLEM = {"enum": ["module", "token", "pin-source", "pin", "key", "mechanism", "mismatch", "signature", "lane"]}


def exactly(**properties: object) -> dict[str, object]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def array(item: object) -> dict[str, object]:
    return {"type": "array", "items": item}


def or_null(schema: object) -> dict[str, object]:
    return {"anyOf": [schema, {"type": "null"}]}


LIST_SCHEMA = exactly(
    tokens=array(
        exactly(
            name=TEXT, uri=TEXT, module=TEXT, lanes=COUNT, problem=or_null(exactly(kind=PROBLEM, text=TEXT)),
            slot=or_null({"type": "integer"}), label=TEXT, manufacturer=TEXT, model=TEXT, serial=TEXT, hardware=TEXT,
            firmware=TEXT, algorithms=WORDS, missing_keys=WORDS, notes=WORDS,
            keys=array(
                exactly(
                    name=TEXT, kind=TEXT, spki_sha256={"type": "string", "pattern": "^[0-9a-f]{64}$"},
                    needed={"type": "boolean"}, same_on=WORDS, lacking_on=WORDS, differs_on=WORDS,
                )
            ),
        )
    )
)  # fmt: skip
CHECK_SCHEMA = exactly(
    ok={"type": "boolean"},
    initialised={"type": "boolean"},
    checks=array(
        exactly(
            token=TEXT, key=or_null(TEXT), check={"enum": ["open", "sign", "tokens", "certificate"]},
            ok={"type": "boolean"}, problem=or_null(PROBLEM), text=TEXT,
        )
    ),
)  # fmt: skip
BENCHMARK_SCHEMA = exactly(
    serving={"type": "boolean"},
    seconds={"type": "number"},
    results=array(
        exactly(
            token=TEXT, key=TEXT, algorithm=TEXT, p50_ms={"type": "number", "exclusiveMinimum": 0},
            p99_ms={"type": "number", "exclusiveMinimum": 0},
            rates=array(exactly(lanes=COUNT, batch=COUNT, signs_per_s={"type": "number", "exclusiveMinimum": 0})),
        )
    ),
    problems=array(exactly(token=TEXT, key=or_null(TEXT), problem=PROBLEM, text=TEXT)),
)  # fmt: skip


def parsed(done: Done, schema: Mapping[str, object]) -> Any:
    report = json.loads(done.stdout)
    jsonschema.validate(report, schema)
    return report
