"""Which token holds the keys: an HSM that the operator names, SoftHSM, or (loudly) software keys."""

import secrets
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from server.config import TokenSection
from server.errors import ConfigError
from server.home import Home, write_file
from signer_pool.errors import LaneStartError
from signer_pool.lane import LaneConfig, Pkcs11LaneConfig, SoftwareLaneConfig
from signer_pool.token_init import initialise_token, token_exists

SOFTHSM_MODULES = (
    Path("/usr/lib/softhsm/libsofthsm2.so"),
    Path("/usr/lib64/softhsm/libsofthsm2.so"),
    Path("/usr/lib64/pkcs11/libsofthsm2.so"),
    Path("/usr/local/lib/softhsm/libsofthsm2.so"),
    Path("/opt/homebrew/lib/softhsm/libsofthsm2.so"),
)
_PIN_DIGITS = 16


def prepare_token(settings: TokenSection, home: Home, logger: FilteringBoundLogger) -> list[LaneConfig]:
    """Make the token usable and return one lane configuration per configured lane.

    Blocking; once per start. Raises `ConfigError` or `SignerPoolError`.
    """
    kind, module = _choose(settings)
    pin = _pin(settings, home)
    lane: LaneConfig
    if kind == "software":
        logger.warning(
            "SOFTWARE KEYS: the CA's private keys lie in files of this machine, not in an HSM. "
            "Never use this for certificates that anybody relies on; install SoftHSM or connect an HSM.",
            directory=str(home.software_keys),
        )
        lane = SoftwareLaneConfig(directory=str(home.software_keys), passphrase=pin)
    else:
        env = _softhsm_environment(home) if not settings.module else {}
        lane = Pkcs11LaneConfig(module_path=str(module), token_label=settings.label, pin=pin, env=env)
        if not settings.module and not token_exists(str(module), settings.label, env):
            _require_no_ca(home)
            initialise_token(str(module), settings.label, _secret(home.secrets / "so-pin"), pin, env)
            logger.info("token initialised", module=str(module), label=settings.label)
    return [lane] * settings.lanes


def _choose(settings: TokenSection) -> tuple[str, Path]:
    module = Path(settings.module) if settings.module else next((p for p in SOFTHSM_MODULES if p.exists()), None)
    if settings.kind == "software":
        return "software", Path()
    if module is None:
        if settings.kind == "pkcs11":
            raise ConfigError(
                "setting token.module: no PKCS #11 module named and SoftHSM not found; "
                "name your HSM's library, or install softhsm2"
            )
        return "software", Path()
    if not module.exists():
        raise ConfigError(f"setting token.module: {module} does not exist; name your HSM's PKCS #11 library")
    return "pkcs11", module


def _require_no_ca(home: Home) -> None:
    """Raise rather than put an empty token in the place of one that held CA keys and cannot be read now."""
    if home.database.exists() and (home.ca / "root.pem").exists():
        raise LaneStartError(
            f"{home.token}: the token that holds this CA's keys is missing or cannot be read; restore it from the "
            "backup (certificates and database are untouched)"
        )


def _softhsm_environment(home: Home) -> dict[str, str]:
    """Give SoftHSM a directory of its own, so that it touches no other token of the machine."""
    tokens = home.token / "tokens"
    tokens.mkdir(exist_ok=True, mode=0o700)
    conf = home.token / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n", "utf-8")
    return {"SOFTHSM2_CONF": str(conf)}


def _pin(settings: TokenSection, home: Home) -> str:
    if not settings.pin_file:
        if settings.module:
            raise ConfigError("setting token.pin_file: name the file that holds the PIN of your HSM's token")
        return _secret(home.secrets / "pin")
    try:
        return Path(settings.pin_file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"setting token.pin_file: {settings.pin_file} cannot be read: {error}") from None


def _secret(path: Path) -> str:
    """Return the secret in a file of ours, drawn at the first use."""
    if not path.exists():
        digits = "".join(secrets.choice("0123456789") for _ in range(_PIN_DIGITS))
        write_file(path, digits.encode(), mode=0o600)
    return path.read_text("ascii").strip()
