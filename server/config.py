"""Settings: one `certmill.toml`, overridden by `CERTMILL_SECTION_KEY` variables, and `CERTMILL_TOKENS`.

Every setting, its unit and its default stand in `certmill.toml` beside this module; `certmill init` writes
that file into the home directory.
"""

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta

from pkix.algorithms import KeyAlgorithm
from server.errors import ConfigError
from server.home import Home
from server.settings.batches import BatchesSection
from server.settings.explain import explain, moved, no_such_variable, toml_error
from server.settings.numbers import PLAN, complete_plan, read_weights
from server.settings.section import Count, Section
from server.settings.signer import KeysSection, SignerSection, TokenSection
from server.settings.sources import Sources
from server.settings.storage import StorageSection

Hours = Annotated[int, Meta(ge=1, le=24 * 366)]
Url = Annotated[
    str,
    Meta(
        pattern=r"^(https?://[^\s/]+(/[^\s]*[^\s/])?)?$",
        max_length=200,
        description="an http(s) URL without a slash at its end, for example http://pki.example.gov, or empty",
    ),
]
Country = Annotated[str, Meta(pattern="^[A-Z]{2}$", description="two capital letters (ISO 3166), for example LA")]
CLIENT_VARIABLES = tuple(f"CERTMILL_CLIENT_{name}" for name in ("URL", "CERTIFICATE", "KEY", "CA"))
"""How commands that call an API find it (server/cli/connection.py): no settings of a server."""
_RESERVED_VARIABLES = {"CERTMILL_HOME", "CERTMILL_CONFIG", *CLIENT_VARIABLES}
_LAST_PORT = 65535


class Address:
    """A host and a TCP port; written `host:port`, IPv6 hosts in brackets."""

    __slots__ = ("host", "port")

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    @classmethod
    def parse(cls, text: object) -> Self:
        """Parse `host:port` or `[ipv6]:port`; raises ValueError."""
        match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\[\]:\s]+):(\d{1,5})", str(text))
        if not match or int(match[2]) > _LAST_PORT:
            raise ValueError("Expected host:port, for example 127.0.0.1:8443")
        return cls(match[1].strip("[]"), int(match[2]))

    @property
    def is_wildcard(self) -> bool:
        """Say whether this means every address of the machine (0.0.0.0, ::)."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and (self.host, self.port) == (other.host, other.port)

    def __hash__(self) -> int:
        return hash((self.host, self.port))

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ListenSection(Section, frozen=True, kw_only=True):
    """Where certmill listens. `public_url` is what was set, `url` what is written into certificates."""

    api: Address = Address("127.0.0.1", 8443)
    public: Address = Address("127.0.0.1", 8080)
    admin: Address = Address("127.0.0.1", 9090)
    public_url: Url = ""
    api_names: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")
    max_body_bytes: Annotated[int, Meta(ge=4096, le=16 * 2**20)] = 256 * 1024
    body_deadline_s: Annotated[float, Meta(gt=0, le=300)] = 10.0
    request_deadline_s: Annotated[float, Meta(gt=0, le=300)] = 30.0

    def __post_init__(self) -> None:
        if self.public.is_wildcard and not self.public_url:
            raise ValueError(
                f"public_url: must be set while listen.public is {self.public}, which no client can connect to; "
                "write the URL that certificates are to name, for example http://pki.example.gov"
            )

    @property
    def url(self) -> str:
        """Where everybody reaches the public listener: written into certificates, without a slash at its end."""
        return self.public_url or f"http://{self.public}"


class CaSection(Section, frozen=True, kw_only=True):
    """The hierarchy that `certmill init` makes."""

    organization: Annotated[str, Meta(min_length=1, max_length=64)] = "certmill demonstration"
    country: Country = "LA"
    root_key: KeyAlgorithm = KeyAlgorithm.EC_P384
    issuing_key: KeyAlgorithm = KeyAlgorithm.EC_P256
    ocsp_key: KeyAlgorithm = KeyAlgorithm.EC_P256
    root_years: Annotated[int, Meta(ge=2, le=30)] = 20
    issuing_years: Annotated[int, Meta(ge=1, le=20)] = 10


class IssuanceSection(Section, frozen=True, kw_only=True):
    """Micro-batches: how large, how old, how many at a time."""

    batch_size: Annotated[int, Meta(ge=1, le=1000)] = 64
    batch_age_ms: Annotated[float, Meta(ge=0, le=1000)] = 2.0
    batches_in_flight: Annotated[int, Meta(ge=1, le=64)] = 4
    queue_limit: Count = 5000
    preparers: Annotated[int, Meta(ge=0, le=64)] = 1
    backdate_s: Annotated[int, Meta(ge=0, le=47 * 3600)] = 300
    sign_deadline_s: Annotated[float, Meta(gt=0, le=300)] = 20.0


class LintSection(Section, frozen=True, kw_only=True):
    """pkilint's processes, and which share of certificates of known shapes is linted nevertheless."""

    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    sample: Annotated[float, Meta(ge=0, le=1)] = 0.01
    deadline_s: Annotated[float, Meta(gt=0, le=300)] = 5.0
    start_deadline_s: Annotated[float, Meta(gt=0, le=300)] = 30.0
    queue_limit: Count = 2000


class RenewalSection(Section, frozen=True, kw_only=True):
    """Who may renew, and how late."""

    grace_days: Annotated[int, Meta(ge=0, le=366)] = 30
    reuse_key: bool = True


class OcspSection(Section, frozen=True, kw_only=True):
    """The responder: how many workers, how long an answer lives."""

    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    validity_h: Annotated[int, Meta(ge=20, le=168)] = 96
    max_age_s: Annotated[int, Meta(ge=0, le=86400)] = 3600
    max_connections: Count = 10_000
    store_max_gib: Annotated[int, Meta(ge=1, le=4096)] = 8
    store: Annotated[str, Meta(pattern="^(/.*)?$", description="an absolute path, or empty")] = ""


class CrlSection(Section, frozen=True, kw_only=True):
    """Certificate revocation lists."""

    validity_h: Annotated[int, Meta(ge=24, le=240)] = 168
    interval_h: Annotated[int, Meta(ge=1, le=24)] = 24
    debounce_s: Annotated[float, Meta(ge=0, le=300)] = 0.5


class LogSection(Section, frozen=True, kw_only=True):
    """Logs: JSON lines to standard error, or text for people."""

    format: Literal["auto", "json", "text"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(Section, frozen=True, kw_only=True):
    """All settings. `home` holds everything that certmill writes."""

    home: Path
    listen: ListenSection = ListenSection()
    ca: CaSection = CaSection()
    signer: SignerSection = SignerSection()
    tokens: tuple[TokenSection, ...] = ()
    keys: KeysSection = KeysSection()
    weights: dict[str, int] = msgspec.field(default_factory=dict)
    plan: dict[str, int] = msgspec.field(default_factory=lambda: dict(PLAN))
    issuance: IssuanceSection = IssuanceSection()
    lint: LintSection = LintSection()
    renewal: RenewalSection = RenewalSection()
    batches: BatchesSection = BatchesSection()
    ocsp: OcspSection = OcspSection()
    crl: CrlSection = CrlSection()
    storage: StorageSection = StorageSection()
    log: LogSection = LogSection()

    def __post_init__(self) -> None:
        if self.issuance.sign_deadline_s >= self.listen.request_deadline_s:
            raise ValueError("issuance.sign_deadline_s: must be smaller than listen.request_deadline_s")
        if self.crl.interval_h >= self.crl.validity_h:
            raise ValueError("crl.interval_h: must be smaller than crl.validity_h")
        if self.tokens and self.signer.kind == "software":
            raise ValueError("signer.kind: must be auto or pkcs11 while [[tokens]] are named")
        places = [token.place for token in self.tokens]
        for number, place in enumerate(places):
            if (first := places.index(place)) != number:
                raise ValueError(
                    f"tokens[{number}].uri: the same token as tokens[{first}]; remove one of them "
                    "(lanes says how many sessions a token has): an HSM named twice does not make two"
                )
        names = [token.token_name for token in self.tokens]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise ValueError(f"tokens[{number}].name: {name!r} is taken; give each token a name of its own")

    @property
    def response_store(self) -> Path:
        """The directory of the OCSP response store."""
        return Path(self.ocsp.store) if self.ocsp.store else Home(self.home).response_store


def load_config(environ: Mapping[str, str]) -> Config:
    """Read the settings; raises `ConfigError`.

    Home: `CERTMILL_HOME`, else `./var`. File: `CERTMILL_CONFIG`, else `certmill.toml` in the home, if there.
    """
    home = Path(environ.get("CERTMILL_HOME") or "var").resolve()
    path = settings_file(home, environ)
    text = _read(path) if environ.get("CERTMILL_CONFIG") or path.exists() else ""
    tree = _parse(path, text)
    sources = Sources(path=path, text=text, variables=_overlay(tree, environ))
    for section, table in tree.items():
        if told := moved(section, table):
            raise ConfigError(f"{told} ({sources.of(section)})")
    if "home" in tree:
        raise ConfigError(f"setting home: set the variable CERTMILL_HOME instead ({sources.of('home')})")
    try:
        tree = {**tree, "home": str(home), "plan": complete_plan(tree.get("plan", {}))}
        tree["weights"] = read_weights(tree.get("weights", {}))
        return msgspec.convert(tree, Config, strict=False, dec_hook=_decode_special)
    except ValueError as error:  # msgspec.ValidationError among them
        setting, reason = explain(str(error), Config)
        raise ConfigError(f"setting {setting}: {reason} ({sources.of(setting)})") from None


def settings_file(home: Path, environ: Mapping[str, str]) -> Path:
    """Return the settings file of a home, which `CERTMILL_CONFIG` may name; it need not be there."""
    return Path(environ.get("CERTMILL_CONFIG") or home / "certmill.toml")


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file (named by CERTMILL_CONFIG)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text + "\n")  # so that an error in the last line has its number
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(toml_error(path, text, error, Config)) from None


def _overlay(tree: dict[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Put `CERTMILL_SECTION_KEY` variables over the file's settings, and `CERTMILL_TOKENS` over its tokens.

    Returns which setting came from which variable.
    """
    sections = [f.name for f in msgspec.structs.fields(Config) if f.name not in {"home", "tokens", "weights"}]
    variables: dict[str, str] = {}
    for name, value in environ.items():
        if not name.startswith("CERTMILL_") or name in _RESERVED_VARIABLES:
            continue
        if name == "CERTMILL_TOKENS":
            tree["tokens"] = [{"uri": uri} for uri in value.split()]
            variables["tokens"] = name
            continue
        section, _, key = name.removeprefix("CERTMILL_").lower().partition("_")
        if told := moved(section):
            raise ConfigError(f"{told} (variable {name})")
        if section not in sections or not key:
            raise ConfigError(f"variable {name}: {no_such_variable(name, Config)}")
        table = tree.setdefault(section, {})
        if isinstance(table, dict):  # else the file is wrong, which is told in a moment
            table[key] = value.split(",") if key == "api_names" else value
        variables[f"{section}.{key}"] = name
    return variables


def _decode_special(kind: type, value: object) -> object:
    return Address.parse(value) if kind is Address else Path(str(value))


def default_toml() -> str:
    """Return the documented settings file, every line of it a comment until somebody changes it."""
    return Path(__file__).with_name("certmill.toml").read_text("utf-8")


def environment() -> Mapping[str, str]:
    """Return the process environment; the one place that reads it."""
    return os.environ
