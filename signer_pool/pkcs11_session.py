"""One PKCS #11 session behind the lane contract; the only module that imports `pkcs11`.

Runs in a lane's child process, single-threaded: python-pkcs11 initialises the module without locks. Every error
of the library leaves this module as one of ours that carries its CKR, already classified.

The PIN is given once in a process's life, when it opens: a wrong one costs a try, and only the parent knows what
the token's other lanes were told. Where the login has ended, the parent starts a new process.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import cast

import pkcs11
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pkcs11 import MGF, Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass, TokenFlag
from pkcs11.attributes import AttributeMapper
from pkcs11.types import SignMixin
from pkcs11.util.ec import encode_ec_public_key, encode_named_curve_parameters

from pkix.algorithms import BY_KEY_ALGORITHM, KeyAlgorithm, key_algorithm
from pkix.errors import UnsupportedKey
from signer_pool import ckr
from signer_pool.ckr import Action, Ckr
from signer_pool.errors import KeyExists, LaneStartError, PinRejected, SigningFailed, TokenRefused
from signer_pool.lane import TokenFacts
from signer_pool.lane_config import KeyMatch, Pkcs11LaneConfig
from signer_pool.mechanisms import (
    CURVES,
    ED25519_PARAMETERS,
    RSA_BITS,
    SIGNING_MECHANISMS,
    ecdsa_sig_value,
    ed25519_spki,
)

_OPEN_DELAYS_S = (0.05, 0.1, 0.2, 0.4)
_ID_BYTES = 16
_REOPENINGS = 3  # each leaves a session open until the process ends, and tokens have few
_TOKENS_NAMED = 8
# Where reading attributes fails, python-pkcs11 returns less than a key is; were that skipped, keys would vanish.
_UNREADABLE = "an object's attributes cannot be read"
_KEY_TYPES = {KeyType.RSA, KeyType.EC, KeyType.EC_EDWARDS}
# These speak of the object that was asked, whatever else is wrong; the other objects are well.
_OF_ONE_OBJECT = (pkcs11.AttributeTypeInvalid, pkcs11.AttributeSensitive)
_SIGNATURE_BUFFER_BYTES = 1024  # RSA-4096 needs 512; python-pkcs11 would zero 8 KiB for each signature
_LAST_TRY = TokenFlag.USER_PIN_FINAL_TRY | TokenFlag.USER_PIN_LOCKED
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


def open_pkcs11_session(
    config: Pkcs11LaneConfig, *, sleep: Callable[[float], None] = time.sleep
) -> "Pkcs11Session":
    """Load the module, find the token, log in; raises `LaneStartError`, `PinRejected`.

    Processes that open a token at the same instant may see CKR_GENERAL_ERROR: that alone is tried again, and
    never with the PIN, for some modules answer so to a wrong one.
    """
    session = Pkcs11Session(config)
    for delay_s in _OPEN_DELAYS_S:
        try:
            session.find_token()
            break
        except LaneStartError as error:
            if error.code != ckr.GENERAL_ERROR:
                raise
            sleep(delay_s)
    else:
        session.find_token()
    session.log_in()
    return session


def _classified(error: pkcs11.PKCS11Error) -> Ckr:
    return ckr.classify(ckr.code_of(type(error).__name__, str(error)))


@contextmanager
def _start_errors(config: Pkcs11LaneConfig, doing: str) -> Iterator[None]:
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
        found = _classified(error)
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


@dataclass(frozen=True, slots=True)
class _PublicHalf:
    algorithm: KeyAlgorithm
    spki_der: bytes


@dataclass(frozen=True, slots=True)
class _Key:
    handle: SignMixin
    public: _PublicHalf


class Pkcs11Session:
    """A `KeySession` over one logged-in session."""

    def __init__(self, config: Pkcs11LaneConfig) -> None:
        self._config = config
        self._keys: dict[str, _Key] = {}
        self._notes: list[str] = []
        self._reopened = 0
        self._writes = True
        self._logged_in_by_hearsay = False

    def find_token(self) -> None:
        """Load the module, find the token and see that it opens sessions; raises `LaneStartError`."""
        with _start_errors(self._config, "cannot be opened"):
            self._token = _find_token(self._config)
            self._mechanisms = self._token.slot.get_mechanisms()
            try:
                self._open(None).close()
            except pkcs11.TokenWriteProtected:
                self._writes = False  # it signs all the same, but makes no keys
                self._open(None).close()

    def log_in(self) -> None:
        """Open the session and log in, once; raises `LaneStartError`, `PinRejected`."""
        with _start_errors(self._config, "cannot be opened"):
            # Anew: its flags are as old as the object, and another process may have given a wrong PIN since.
            self._token = self._token.slot.get_token()
        if self._token.flags & _LAST_TRY:
            raise PinRejected(
                f"{self._config.token}: the token says that its PIN is locked, or that the next wrong one locks "
                "it; certmill does not risk that: log in once with the vendor's tool, then restart"
            )
        with _start_errors(self._config, "cannot be opened"):
            try:
                self._session = self._open(self._config.pin)
            except pkcs11.UserAlreadyLoggedIn:
                self._session = self._open_without_login()

    def _open_without_login(self) -> pkcs11.Session:
        """Open a session that counts on a login of this process: it is the process's (PKCS #11 §5.6)."""
        session = self._open(None)
        self._logged_in_by_hearsay = True
        return session

    def _open(self, pin: str | None) -> pkcs11.Session:
        return self._token.open(rw=self._writes, user_pin=pin, attribute_mapper=_lenient_mapper())

    @property
    def token(self) -> str:
        """Describe the token."""
        serial = self._token.serial.decode("ascii", "replace")
        return f"{self._config.token} ({self._token.manufacturer_id} {self._token.model}, serial {serial})"

    def facts(self) -> TokenFacts:
        """Return what the token says of itself."""
        token = self._token
        return TokenFacts(
            label=token.label,
            manufacturer=token.manufacturer_id,
            model=token.model,
            serial=token.serial.decode("ascii", "replace"),
            hardware=".".join(map(str, token.hardware_version)),
            firmware=".".join(map(str, token.firmware_version)),
            slot_id=token.slot.slot_id,
            mechanisms=tuple(
                name for name, row in SIGNING_MECHANISMS.items() if Mechanism[row.mechanism] in self._mechanisms
            ),
        )

    def notes(self) -> list[str]:
        """Return lines for the operator about keys that `public_keys` found unusable."""
        return self._notes

    def reopen(self) -> None:
        """Replace the session by a new one and find the keys again, without another login.

        Raises `LaneStartError`, with CKR_USER_NOT_LOGGED_IN if the login ended with the session; `PinRejected` if
        the token speaks of the PIN although it was given none.
        """
        self._reopened += 1
        if self._reopened > _REOPENINGS:
            raise LaneStartError(f"{self._config.token}: lost its session {self._reopened} times")
        # The old session is left open: closing the last one ends the login, and python-pkcs11's close() logs out.
        with _start_errors(self._config, "cannot be opened again"):
            self._session = self._open_without_login()
        self.public_keys()

    def touch(self) -> None:
        """Search for a key, so that the session does not idle; raises `TokenRefused`."""
        try:
            next(iter(self._session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY})), None)
        except pkcs11.PKCS11Error as error:
            raise self._refused(error) from None

    def public_keys(self) -> dict[str, bytes]:
        """Find the key pairs that we can sign with; raises `LaneStartError`.

        A private key counts when it is the only one of its name and its public half is on the token.
        """
        with _start_errors(self._config, "its keys cannot be listed"):
            self._keys = self._find_keys()
        return {name: key.public.spki_der for name, key in self._keys.items()}

    def signer(self, name: str, algorithm: str) -> Callable[[bytes], bytes]:
        """Return a function from TBS to signature; raises `TokenRefused`, and so does the function."""
        key = self._keys.get(name)
        if key is None:
            found = ckr.classify(ckr.KEY_HANDLE_INVALID)
            raise TokenRefused(f"{self._config.token}: no key {name!r}", found)
        row = SIGNING_MECHANISMS[algorithm]
        sign, mechanism, ecdsa = key.handle.sign, Mechanism[row.mechanism], row.ecdsa
        pss = row.pss
        parameter = pss and (Mechanism[pss.hashed], MGF[pss.hashed], pss.salt_bytes)
        hashed: Callable[[bytes], hashlib._Hash] | None = getattr(hashlib, row.digest) if row.digest else None

        def sign_one(tbs: bytes) -> bytes:
            data = tbs if hashed is None else hashed(tbs).digest()
            try:
                signature = sign(
                    data, mechanism=mechanism, mechanism_param=parameter, buffer_size=_SIGNATURE_BUFFER_BYTES
                )
            except pkcs11.PKCS11Error as error:
                raise self._refused(error) from None
            return ecdsa_sig_value(signature) if ecdsa else signature

        return sign_one

    def _refused(self, error: pkcs11.PKCS11Error) -> TokenRefused:
        found = _classified(error)
        return TokenRefused(f"{self._config.token}: {found.name}", found)

    def generate(self, name: str, algorithm: KeyAlgorithm) -> bytes:
        """Make a key pair that is sensitive and not extractable; raises `KeyExists`, `SigningFailed`."""
        match = self._config.keys.get(name, KeyMatch(label=name))
        wanted = {Attribute.LABEL: match.label, Attribute.ID: match.id}
        try:
            if any(self._session.get_objects({k: v for k, v in wanted.items() if v is not None})):
                raise KeyExists(f"{self._config.token}: an object {name!r} exists already")
            public, private = self._generate(name, algorithm)
            spki_der = _spki_der(public)
            self._keys[name] = _Key(cast("SignMixin", private), _PublicHalf(algorithm, spki_der))
        except pkcs11.PKCS11Error as error:
            raise SigningFailed(f"{self._config.token}: key generation: {_classified(error).name}") from error
        return spki_der

    def _generate(self, name: str, algorithm: KeyAlgorithm) -> tuple[pkcs11.PublicKey, pkcs11.PrivateKey]:
        template = {
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: False,
            Attribute.PRIVATE: True,
        }
        match = self._config.keys.get(name, KeyMatch())
        common = {
            "id": match.id or secrets.token_bytes(_ID_BYTES),
            "label": match.label or name,
            "store": True,
            "capabilities": MechanismFlag.SIGN | MechanismFlag.VERIFY,
            "private_template": template,
        }
        if algorithm is KeyAlgorithm.ED25519:
            edwards = self._session.create_domain_parameters(
                KeyType.EC_EDWARDS, {Attribute.EC_PARAMS: ED25519_PARAMETERS}, local=True
            )
            return edwards.generate_keypair(mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN, **common)  # type: ignore[arg-type]  # of a dict of many types
        curve = CURVES.get(algorithm)
        if curve is None:
            return self._session.generate_keypair(KeyType.RSA, RSA_BITS[algorithm], **common)
        parameters = self._session.create_domain_parameters(
            KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters(curve)}, local=True
        )
        return parameters.generate_keypair(**common)  # type: ignore[arg-type]  # of a dict of many types

    def _find_keys(self) -> dict[str, _Key]:
        self._notes = []
        by_id, by_label = self._find_public_halves()
        found: dict[str, _Key] = {}
        ambiguous: set[str] = set()
        private_seen = False
        for private in self._session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}):
            if not isinstance(private, pkcs11.PrivateKey):
                raise pkcs11.FunctionFailed(_UNREADABLE)
            private_seen = True
            if not isinstance(private, SignMixin):
                continue
            with self._sparing_the_others(private):
                # CKA_ID is what pairs the halves (PKCS #11 §4.8); tokens filled by hand may lack it.
                public = by_id.get(private.id) if private.id else by_label.get(private.label)
                name = _name(private, self._config.keys) if public is not None else None
                if public is None or name is None or not self._can_sign(name, public.algorithm):
                    continue
                if name in found:
                    ambiguous.add(name)
                found[name] = _Key(private, public)
        self._see_that_it_is_logged_in(found, private_seen=private_seen or not by_label)
        self._notes += [
            f"{self._config.token}: several private keys are called {name!r}; none of them is used: rename all "
            "but one, or add id=… to the key's URI"
            for name in sorted(ambiguous)
        ]
        return {name: key for name, key in found.items() if name not in ambiguous}

    def _find_public_halves(self) -> tuple[dict[bytes, _PublicHalf], dict[str, _PublicHalf]]:
        """Find the public keys of kinds that we sign with, by CKA_ID and by label."""
        by_id: dict[bytes, _PublicHalf] = {}
        by_label: dict[str, _PublicHalf] = {}
        for public in self._session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY}):
            if not isinstance(public, pkcs11.PublicKey):
                raise pkcs11.FunctionFailed(_UNREADABLE)
            with self._sparing_the_others(public):
                half = _public_half(public)
                if half is not None:
                    identity, label = public.id, public.label
                    by_id[identity] = by_label[label] = half
        return by_id, by_label

    @contextmanager
    def _sparing_the_others(self, key: pkcs11.PublicKey | pkcs11.PrivateKey) -> Iterator[None]:
        """Pass over a key that cannot be read, with a note: it is not ours, damaged, or just being written.

        What speaks of the session instead is raised: else keys would vanish.
        """
        try:
            yield
        except _OF_ONE_OBJECT as error:
            self._pass_over(key, error)
        except pkcs11.PKCS11Error:
            raise
        except Exception as error:
            self._pass_over(key, error)

    def _pass_over(self, key: pkcs11.PublicKey | pkcs11.PrivateKey, error: Exception) -> None:
        kind = "private" if isinstance(key, pkcs11.PrivateKey) else "public"
        self._notes.append(
            f"{self._config.token}: the {kind} key {_called(key)} cannot be read ({type(error).__name__}) and is "
            "left alone; if it is one of the CA's, look at its attributes with the vendor's tool"
        )

    def _see_that_it_is_logged_in(self, found: dict[str, _Key], *, private_seen: bool) -> None:
        """Raise `LaneStartError` where a login that we count on has ended.

        A token then hides its private keys: the lane would be ready, and without keys for ever. Some of them may
        show all the same (CKA_PRIVATE false), so all that were there have to be there again.
        """
        if self._logged_in_by_hearsay and not (private_seen and self._keys.keys() <= found.keys()):
            row = ckr.classify(ckr.USER_NOT_LOGGED_IN)
            raise LaneStartError(
                f"{self._config.token}: {row.name}: private keys do not show; only a new process logs in again",
                row.code,
            )

    def _can_sign(self, name: str, algorithm: KeyAlgorithm) -> bool:
        mechanism = SIGNING_MECHANISMS[BY_KEY_ALGORITHM[algorithm].name].mechanism
        if Mechanism[mechanism] in self._mechanisms:
            return True
        self._notes.append(
            f"{self._config.token}: lacks the mechanism CKM_{mechanism} that the {algorithm.value} key "
            f"{name!r} needs; enable it on the token, or use a key of another kind"
        )
        return False


def _find_token(config: Pkcs11LaneConfig) -> pkcs11.Token:
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


def _name(private: pkcs11.PrivateKey, keys: dict[str, KeyMatch]) -> str | None:
    """Return the pool's name of a key: the configured one that matches, else its label unless that is taken."""
    for name, match in keys.items():
        if match.label in {None, private.label} and match.id in {None, private.id}:
            return name
    return None if private.label in keys else private.label


def _public_half(public: pkcs11.PublicKey) -> _PublicHalf | None:
    """Read a public key; None if it is of a kind that we do not sign with. Its attributes may raise anything."""
    if public.key_type not in _KEY_TYPES:
        return None
    spki_der = _spki_der(public)
    try:
        return _PublicHalf(key_algorithm(serialization.load_der_public_key(spki_der)), spki_der)
    except UnsupportedKey:
        return None


def _called(key: pkcs11.PublicKey | pkcs11.PrivateKey) -> str:
    """Name a key by what of its names can be read."""
    with suppress(Exception):
        return repr(key.label)
    with suppress(Exception):
        return f"of id {key.id.hex()}"
    return "without label and id"


def _lenient_mapper() -> AttributeMapper:
    """Take a truth value of whatever length.

    Where python-pkcs11 cannot decode one it raises from inside the search, and all objects behind it are lost.
    """
    mapper = AttributeMapper()
    for attribute in _CAPABILITIES:
        pack, _ = mapper.attribute_types[attribute]
        mapper.register_handler(attribute, pack, any)
    return mapper


def _spki_der(public: pkcs11.PublicKey) -> bytes:
    """Return the SubjectPublicKeyInfo of an RSA or EC key; raises ValueError if parts of it are missing."""
    if public.key_type is KeyType.EC:
        return encode_ec_public_key(public)
    if public.key_type is KeyType.EC_EDWARDS:
        return ed25519_spki(public[Attribute.EC_POINT])
    numbers = rsa.RSAPublicNumbers(
        int.from_bytes(public[Attribute.PUBLIC_EXPONENT], "big"),
        int.from_bytes(public[Attribute.MODULUS], "big"),
    )
    return numbers.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
