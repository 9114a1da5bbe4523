"""Finding a token behind a PKCS #11 module, and what the module's errors mean while a lane starts."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pkcs11
from pkcs11 import Attribute
from pkcs11.attributes import AttributeMapper

from signer_pool import ckr
from signer_pool.ckr import Action, Ckr
from signer_pool.errors import LaneStartError, PinRejected
from signer_pool.lane_config import Pkcs11LaneConfig

_TOKENS_NAMED = 8
# What python-pkcs11 itself reads of each object that a search finds.
_CAPABILITIES = (
    Attribute.ENCRYPT,
    Attribute.DECRYPT,
    Attribute.SIGN,
    Attribute.VERIFY,
    Attribute.WRAP,
    Attribute.UNWRAP,
    Attribute.DERIVE,
    Attribute.ENCAPSULATE,
    Attribute.DECAPSULATE,
)


def classified(error: pkcs11.PKCS11Error) -> Ckr:
    """Return what is to be done about an error of the library."""
    return ckr.classify(ckr.code_of(type(error).__name__, str(error)))


@contextmanager
def start_errors(config: Pkcs11LaneConfig, doing: str) -> Iterator[None]:
    """Turn the library's errors into one line that names token, module and remedy."""
    try:
        yield
    except pkcs11.NoSuchToken:
        raise LaneStartError(
            f"{config.token}: no such token{_looked_for(config)}; is it connected? Else correct its URI. "
            f"The module has {_present(config)}",
            ckr.TOKEN_NOT_PRESENT,
        ) from None
    except pkcs11.MultipleTokensReturned:
        raise LaneStartError(f"{config.token}: several tokens match; add serial=… to its URI") from None
    except pkcs11.PKCS11Error as error:
        found = classified(error)
        if found.action is Action.NEVER:
            raise PinRejected(
                f"{config.token}: the PIN was refused ({found.name}); it is not tried again, so that the token "
                "does not lock: correct the PIN and start again",
                found.code,
            ) from None
        said = " ".join(str(error).split())
        raise LaneStartError(
            f"{config.token}: {doing}: {found.name}{f' ({said})' if said else ''}; check that the module's path "
            "is right, its configuration and log, and that its device is connected",
            found.code,
        ) from None


def find_token(config: Pkcs11LaneConfig) -> pkcs11.Token:
    """Find the one token that matches all that is known of it."""
    wanted = {
        "manufacturer_id": config.manufacturer,
        "model": config.model,
        "serial": config.serial.encode() if config.serial is not None else None,
    }
    tokens = [
        token
        for token in pkcs11.lib(config.module_path).get_tokens(token_label=config.token_label or None)
        if all(value is None or getattr(token, name) == value for name, value in wanted.items())
        and config.slot_id in {None, token.slot.slot_id}
    ]
    if not tokens:
        raise pkcs11.NoSuchToken
    if len(tokens) > 1:
        raise pkcs11.MultipleTokensReturned
    return tokens[0]


def lenient_mapper() -> AttributeMapper:
    """Take a truth value of whatever length.

    Where python-pkcs11 cannot decode one it raises from inside the search, and all objects behind it are lost.
    """
    mapper = AttributeMapper()
    for attribute in _CAPABILITIES:
        pack, _ = mapper.attribute_types[attribute]
        mapper.register_handler(attribute, pack, any)
    return mapper


def _looked_for(config: Pkcs11LaneConfig) -> str:
    """Name what else than the label has to match."""
    wanted = {
        "serial": config.serial,
        "manufacturer": config.manufacturer,
        "model": config.model,
        "slot-id": config.slot_id,
    }
    said = ", ".join(f"{name} {value}" for name, value in wanted.items() if value is not None)
    return f" ({said})" if said else ""


def _present(config: Pkcs11LaneConfig) -> str:
    """Name the tokens that the module shows."""
    with suppress(pkcs11.PKCS11Error):
        tokens = [
            f"{token.label!r} (serial {token.serial.decode('ascii', 'replace')})"
            for token in pkcs11.lib(config.module_path).get_tokens()
        ]
        return ", ".join(tokens[:_TOKENS_NAMED]) or "no token at all"
    return "tokens that cannot be listed"
