"""Which tokens hold the keys: those of HSMs that the operator names; else SoftHSM, or (loudly) software keys."""

import secrets
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from server.config import Config, environment, settings_file
from server.errors import ConfigError, StorageError
from server.home import Home, write_file
from server.keys.certified import certified_keys
from server.keys.pin import PROMPT, PinError, read_pin
from server.settings.signer import TokenSection
from server.storage.place import Place, PostgresPlace, place_of
from signer_pool.errors import LaneStartError
from signer_pool.lane_config import LaneConfig, Pkcs11LaneConfig, SoftwareLaneConfig
from signer_pool.token_init import initialise_token, token_exists

SOFTHSM_MODULES = (
    Path("/usr/lib/softhsm/libsofthsm2.so"),
    Path("/usr/lib64/softhsm/libsofthsm2.so"),
    Path("/usr/lib64/pkcs11/libsofthsm2.so"),
    Path("/usr/local/lib/softhsm/libsofthsm2.so"),
    Path("/opt/homebrew/lib/softhsm/libsofthsm2.so"),
)
_OWN_LABEL = "certmill"
_PIN_DIGITS = 16
_DATABASE_TIMEOUT_S = 5.0


def ask_pins(config: Config, ask: Callable[[str], str]) -> dict[str, str]:
    """Ask for the PINs that somebody has to type: token name to PIN. `ask` gets the token's name.

    Blocking; raises `ConfigError`.
    """
    return {
        token.token_name: read_pin(
            PROMPT, {}, partial(ask, token.token_name), setting=setting_of(token, number, "pin")
        )
        for number, token in enumerate(config.tokens)
        if token.pin_source == PROMPT
    }


def read_pins(config: Config, environ: Mapping[str, str], typed: Mapping[str, str]) -> dict[str, str]:
    """Return the PINs of all named tokens, by token name; `typed` are those that were asked for.

    Blocking; raises `ConfigError`.
    """
    return {
        token.token_name: read_pin(
            token.pin_source,
            environ,
            partial(_typed, typed, token.token_name),
            setting=setting_of(token, number, "pin"),
        )
        for number, token in enumerate(config.tokens)
    }


def prepare_token(
    config: Config, home: Home, logger: FilteringBoundLogger, pins: Mapping[str, str]
) -> list[LaneConfig]:
    """Make the tokens usable and return the configuration of every lane, token after token.

    `pins`: what `read_pins` gives. A token that the operator names is never initialised. Blocking; once per
    start. Raises `ConfigError` or `SignerPoolError`.
    """
    if not config.tokens:
        return [_own_token(config, home, logger)] * config.signer.lanes
    lanes: list[LaneConfig] = []
    for number, token in enumerate(config.tokens):
        lane = _named_token(config, number, token, pins[token.token_name])
        lanes += [lane] * (token.lanes or config.signer.lanes)
    return lanes


def setting_of(token: TokenSection, number: int, key: str) -> str:
    """Name a setting of a token for an error, and the token with it."""
    return f"tokens[{number}].{key} (token {token.token_name!r})"


def module_fault(token: TokenSection, number: int) -> str | None:
    """Say why the PKCS #11 library of a named token cannot be used; None if its file is there. Blocking."""
    module = Path(token.address.module_path or "")
    try:
        if module.is_file():
            return None
        fault = "is not a file" if module.exists() else "is not there"
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    where = f"setting {setting_of(token, number, 'uri')}: module-path {module}"
    return f"{where} {fault}; name your HSM's PKCS #11 library"


def _typed(typed: Mapping[str, str], token: str) -> str:
    if token not in typed:
        raise PinError(f"no PIN of token {token!r} came over standard input")
    return typed[token]


def _named_token(config: Config, number: int, token: TokenSection, pin: str) -> Pkcs11LaneConfig:
    address = token.address
    if fault := module_fault(token, number):
        raise ConfigError(fault)
    return Pkcs11LaneConfig(
        module_path=address.module_path or "",
        token_label=address.token or "",
        pin=pin,
        name=token.token_name,
        serial=address.serial,
        manufacturer=address.manufacturer,
        model=address.model,
        slot_id=address.slot_id,
        keys=config.keys.matches(),
    )


def _own_token(config: Config, home: Home, logger: FilteringBoundLogger) -> LaneConfig:
    module = _own_module(config.signer.kind)
    has_ca = holds_ca(home, place_of(config))
    if has_ca:  # nothing is made below in the place of what is missing
        require_own_pin(home)
    pin = _secret(home.secrets / "pin")
    keys = config.keys.matches()
    if module is None:
        if keys:
            raise ConfigError(f"setting keys.{next(iter(keys))}: software keys have fixed names; remove it")
        logger.warning(
            "SOFTWARE KEYS: the CA's private keys lie in files of this machine, not in an HSM. "
            "Never use this for certificates that anybody relies on; install SoftHSM or connect an HSM.",
            directory=str(home.software_keys),
        )
        return SoftwareLaneConfig(directory=str(home.software_keys), passphrase=pin)
    env = _softhsm_environment(home)
    if not token_exists(str(module), _OWN_LABEL, env):
        if has_ca:
            raise _missing_token(home)
        initialise_token(str(module), _OWN_LABEL, _secret(home.secrets / "so-pin"), pin, env)
        logger.info("token initialised", module=str(module), label=_OWN_LABEL)
    return Pkcs11LaneConfig(module_path=str(module), token_label=_OWN_LABEL, pin=pin, env=env, keys=keys)


def holds_ca(home: Home, place: Place | None = None) -> bool:
    """Say whether a CA was made in this home. Looks and changes nothing; raises `StorageError`. Blocking.

    `place`: where the database is, None for SQLite in the home. The certificate's file counts too: with database
    and token gone, there was a CA all the same.
    """
    if (home.ca / "root.pem").exists():
        return True
    if isinstance(place, PostgresPlace):
        return bool(certified_keys(home, place))
    if not home.database.exists():
        return False
    try:
        uri = f"{home.database.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=_DATABASE_TIMEOUT_S)) as database:
            tables = database.execute("select 1 from sqlite_master where type = 'table' and name = 'issuers'")
            return bool(tables.fetchone()) and bool(database.execute("select 1 from issuers").fetchone())
    except sqlite3.Error as error:
        raise StorageError(f"database {home.database}: {error}") from None


def require_own_pin(home: Home) -> None:
    """Refuse a home that holds a CA, names no tokens, and lacks the PIN of a token of its own. Changes nothing.

    Raises `LaneStartError` if there is something that the PIN belongs to. If there is nothing, the keys are in an
    HSM, and somebody took its [[tokens]] out of the settings: `ConfigError`.
    """
    pin = home.secrets / "pin"
    if pin.exists():
        return
    if any((home.token / "tokens").glob("*")) or any(home.software_keys.glob("*.pem")):
        raise LaneStartError(f"{pin}: the PIN of this CA's keys is missing; restore it from the backup")
    raise ConfigError(
        "setting tokens: this home's CA has its keys in tokens that are named under [[tokens]], and none is "
        f"named; name them in {settings_file(home.root, environment())} (docs/hsm.md), or, if certmill kept the "
        "keys itself, restore its PIN and its token from the backup"
    )


def _missing_token(home: Home) -> Exception:
    if any(home.software_keys.glob("*.pem")):
        return ConfigError(
            f"setting signer.kind: the keys of this CA are software keys, in {home.software_keys}; "
            'write kind = "software" (a CA with keys in SoftHSM needs a CERTMILL_HOME of its own)'
        )
    return LaneStartError(
        f"{home.token}: the token that holds this CA's keys is missing or cannot be read; restore it from the "
        "backup, or name your HSM under [[tokens]] (database and certificates are untouched; a new CA needs an "
        "empty CERTMILL_HOME)"
    )


def _own_module(kind: str) -> Path | None:
    """Return SoftHSM's library, None for software keys."""
    if kind == "software":
        return None
    module = next((path for path in SOFTHSM_MODULES if path.exists()), None)
    if module is None and kind == "pkcs11":
        raise ConfigError(
            "setting signer.kind: pkcs11 needs an HSM under [[tokens]], or SoftHSM, which is not found; "
            "name your HSM's token, or install softhsm2"
        )
    return module


def _softhsm_environment(home: Home) -> dict[str, str]:
    """Give SoftHSM a directory of its own, so that it touches no other token of the machine."""
    tokens = home.token / "tokens"
    tokens.mkdir(exist_ok=True, mode=0o700)
    conf = home.token / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n", "utf-8")
    return {"SOFTHSM2_CONF": str(conf)}


def _secret(path: Path) -> str:
    """Return the secret in a file of ours; at the first use it is drawn."""
    if not path.exists():
        digits = "".join(secrets.choice("0123456789") for _ in range(_PIN_DIGITS))
        write_file(path, digits.encode(), mode=0o600)
    return path.read_text("ascii").strip()
