"""Which tokens the settings name, and how to open them.

Nothing here writes: no token is initialised, no PIN is drawn, no directory is made, no lock is taken. So all of it
may be used while certmill serves.
"""

import enum
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import msgspec
from structlog.typing import FilteringBoundLogger

from server.config import Config
from server.errors import ConfigError
from server.home import Home
from server.keys.certified import certified_keys
from server.keys.pin import read_pin
from server.keys.token import SOFTHSM_MODULES, module_fault, prepare_token, require_own_pin, setting_of
from server.settings.signer import TokenSection
from server.storage.place import place_of
from signer_pool.ckr import TOKEN_NOT_PRESENT
from signer_pool.errors import LaneStartError, PinRejected
from signer_pool.lane_config import LaneConfig, Pkcs11LaneConfig
from signer_pool.pkcs11_uri import Pkcs11Uri

_OWN_LABEL = "certmill"  # what `certmill init` calls the token that it makes
_LIBRARY_LOAD_FAILED = 0x1B7
_CONNECT_S = 1.0


class ProblemKind(enum.StrEnum):
    """What is wrong, in one word for programs."""

    MODULE = "module"  # the PKCS #11 library is not there, or is none
    TOKEN = "token"  # noqa: S105 - the library has no such token
    PIN_SOURCE = "pin-source"  # the PIN cannot be had
    PIN = "pin"  # the token refused it, or the next wrong one would lock the token
    KEY = "key"  # missing, or not usable
    MECHANISM = "mechanism"
    MISMATCH = "mismatch"  # another key than elsewhere
    SIGNATURE = "signature"  # it does not verify
    LANE = "lane"  # anything else that the module or the token answers


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong; `text` is one line that says what to do."""

    kind: ProblemKind
    text: str

    @classmethod
    def of(cls, error: LaneStartError) -> "Problem":
        """Say why a token could not be opened."""
        kind = _KINDS.get(error.code, ProblemKind.LANE)
        return cls(kind=ProblemKind.PIN if isinstance(error, PinRejected) else kind, text=str(error))


_KINDS = {TOKEN_NOT_PRESENT: ProblemKind.TOKEN, _LIBRARY_LOAD_FAILED: ProblemKind.MODULE}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSource:
    """A configured token. `lane` opens a session of it, or says why none can be opened."""

    name: str
    uri: str
    module: str
    label: str
    lanes: int
    lane: LaneConfig | Problem


def token_sources(
    config: Config, environ: Mapping[str, str], ask: Callable[[str], str], logger: FilteringBoundLogger
) -> list[TokenSource]:
    """Return every configured token; `ask` gets the name of a token whose PIN somebody has to type.

    What is wrong with one token is told in its place. Raises `ConfigError` when the home has no token yet, or has
    its keys in tokens that the settings no longer name; `LaneStartError` when its own token's PIN is gone;
    `StorageError`.
    """
    home = Home(config.home)
    if not config.tokens:
        return [_own_token(config, home, logger)]

    def pin_of(token: TokenSection, number: int) -> str:
        prompt = partial(ask, token.token_name)
        return read_pin(token.pin_source, environ, prompt, setting=setting_of(token, number, "pin"))

    return [_named_token(config, number, pin_of, logger) for number in range(len(config.tokens))]


def is_serving(home: Home) -> bool:
    """Tell whether an authority serves from this home; it is not disturbed."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_CONNECT_S)
        try:
            connection.connect(str(home.authority_socket))
        except OSError:
            return False
    return True


def not_initialised(home: Home) -> str:
    """Say what to do with a home that nobody has initialised."""
    return f"{home.root} was never initialised: run `certmill init` first"


def _named_token(
    config: Config, number: int, pin_of: Callable[[TokenSection, int], str], logger: FilteringBoundLogger
) -> TokenSource:
    token = config.tokens[number]
    address = token.address
    return TokenSource(
        name=token.token_name,
        uri=str(address),
        module=address.module_path or "",
        label=address.token or "",
        lanes=token.lanes or config.signer.lanes,
        lane=_named_lane(config, number, pin_of, logger),
    )


def _named_lane(
    config: Config, number: int, pin_of: Callable[[TokenSection, int], str], logger: FilteringBoundLogger
) -> LaneConfig | Problem:
    token = config.tokens[number]
    if fault := module_fault(token, number):  # before the PIN: nobody should type one for nothing
        return Problem(kind=ProblemKind.MODULE, text=fault)
    try:
        pin = pin_of(token, number)
    except ConfigError as error:
        return Problem(kind=ProblemKind.PIN_SOURCE, text=str(error))
    alone = msgspec.structs.replace(config, tokens=(token,))
    return prepare_token(alone, Home(config.home), logger, {token.token_name: pin})[0]


def _own_token(config: Config, home: Home, logger: FilteringBoundLogger) -> TokenSource:
    """Find the token that `certmill init` has made; raises as `token_sources` if it has not.

    As `prepare_token`, which would make what is missing, and writes SoftHSM's configuration anew each time.
    """
    kind = config.signer.kind
    module = None if kind == "software" else next((path for path in SOFTHSM_MODULES if path.exists()), None)
    made = home.software_keys if module is None else home.token / "softhsm2.conf"
    refused = module is None and kind == "pkcs11"  # by `prepare_token`, which says why
    pin = home.secrets / "pin"
    try:
        if not refused and not (pin.exists() and made.exists()):
            # (`holds_ca` may leave a -wal behind.)
            if (home.ca / "root.pem").exists() or certified_keys(home, place_of(config)):
                require_own_pin(home)
            raise ConfigError(not_initialised(home))
        if module is None:
            (lane, *_) = prepare_token(config, home, logger, {})
            uri, label = home.software_keys.as_uri(), ""
        else:
            lane = Pkcs11LaneConfig(
                module_path=str(module),
                token_label=_OWN_LABEL,
                pin=pin.read_text("ascii").strip(),
                env={"SOFTHSM2_CONF": str(made)},
                keys=config.keys.matches(),
            )
            uri, label = str(Pkcs11Uri(token=_OWN_LABEL, module_path=str(module))), _OWN_LABEL
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{pin} cannot be read: {error}; run as certmill's user") from None
    return TokenSource(
        name=lane.token_name,
        uri=uri,
        module="" if module is None else str(module),
        label=label,
        lanes=config.signer.lanes,
        lane=lane,
    )
