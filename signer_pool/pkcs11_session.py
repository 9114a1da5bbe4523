"""One PKCS #11 session behind the lane contract. Only the modules pkcs11_* know the library.

Runs in a lane's child process, single-threaded: python-pkcs11 initialises the module without locks. Every error
of the library leaves this module as one of ours that carries its CKR, already classified.

The PIN is given once in a process's life, when it opens: a wrong one costs a try, and only the parent knows what
the token's other lanes were told. Where the login has ended, the parent starts a new process.
"""

import hashlib
import secrets
import time
from collections.abc import Callable
from typing import cast

import pkcs11
from pkcs11 import MGF, Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass, TokenFlag
from pkcs11.types import SignMixin
from pkcs11.util.ec import encode_named_curve_parameters

from pkix.algorithms import KeyAlgorithm
from signer_pool import ckr
from signer_pool.errors import KeyExists, LaneStartError, PinRejected, SigningFailed, TokenRefused
from signer_pool.lane import TokenFacts
from signer_pool.lane_config import KeyMatch, Pkcs11LaneConfig
from signer_pool.mechanisms import CURVES, ED25519_PARAMETERS, RSA_BITS, SIGNING_MECHANISMS, ecdsa_sig_value
from signer_pool.pkcs11_keys import KeySearch, PublicHalf, TokenKey, spki_der_of
from signer_pool.pkcs11_token import classified, find_token, lenient_mapper, start_errors

_OPEN_DELAYS_S = (0.05, 0.1, 0.2, 0.4)
_ID_BYTES = 16
_REOPENINGS = 3  # each leaves a session open until the process ends, and tokens have few
_SIGNATURE_BUFFER_BYTES = 1024  # RSA-4096 needs 512; python-pkcs11 would zero 8 KiB for each signature
_LAST_TRY = TokenFlag.USER_PIN_FINAL_TRY | TokenFlag.USER_PIN_LOCKED


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


class Pkcs11Session:
    """A `KeySession` over one logged-in session."""

    def __init__(self, config: Pkcs11LaneConfig) -> None:
        self._config = config
        self._keys: dict[str, TokenKey] = {}
        self._notes: list[str] = []
        self._reopened = 0
        self._writes = True
        self._logged_in_by_hearsay = False

    def find_token(self) -> None:
        """Load the module, find the token and see that it opens sessions; raises `LaneStartError`."""
        with start_errors(self._config, "cannot be opened"):
            self._token = find_token(self._config)
            self._mechanisms = self._token.slot.get_mechanisms()
            try:
                self._open(None).close()
            except pkcs11.TokenWriteProtected:
                self._writes = False  # it signs all the same, but makes no keys
                self._open(None).close()

    def log_in(self) -> None:
        """Open the session and log in, once; raises `LaneStartError`, `PinRejected`."""
        with start_errors(self._config, "cannot be opened"):
            # Anew: its flags are as old as the object, and another process may have given a wrong PIN since.
            self._token = self._token.slot.get_token()
        if self._token.flags & _LAST_TRY:
            raise PinRejected(
                f"{self._config.token}: the token says that its PIN is locked, or that the next wrong one locks "
                "it; certmill does not risk that: log in once with the vendor's tool, then restart"
            )
        with start_errors(self._config, "cannot be opened"):
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
        return self._token.open(rw=self._writes, user_pin=pin, attribute_mapper=lenient_mapper())

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
        with start_errors(self._config, "cannot be opened again"):
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
        with start_errors(self._config, "its keys cannot be listed"):
            search = KeySearch(self._session, self._config, self._mechanisms)
            found = search.run()
        self._see_that_it_is_logged_in(search)
        self._keys, self._notes = found, search.notes
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
        found = classified(error)
        return TokenRefused(f"{self._config.token}: {found.name}", found)

    def generate(self, name: str, algorithm: KeyAlgorithm) -> bytes:
        """Make a key pair that is sensitive and not extractable; raises `KeyExists`, `SigningFailed`."""
        match = self._config.keys.get(name, KeyMatch(label=name))
        wanted = {Attribute.LABEL: match.label, Attribute.ID: match.id}
        try:
            if any(self._session.get_objects({k: v for k, v in wanted.items() if v is not None})):
                raise KeyExists(f"{self._config.token}: an object {name!r} exists already")
            public, private = self._generate(name, algorithm)
            spki_der = spki_der_of(public)
            self._keys[name] = TokenKey(cast("SignMixin", private), PublicHalf(algorithm, spki_der))
        except pkcs11.PKCS11Error as error:
            raise SigningFailed(f"{self._config.token}: key generation: {classified(error).name}") from error
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

    def _see_that_it_is_logged_in(self, search: KeySearch) -> None:
        """Raise `LaneStartError` where a login that we count on has ended.

        A token then hides its private keys: the lane would be ready, and without keys for ever. Some of them may
        show all the same (CKA_PRIVATE false), so all that were there have to be there again.
        """
        if self._logged_in_by_hearsay and (search.hides_private_keys or not self._keys.keys() <= search.names):
            row = ckr.classify(ckr.USER_NOT_LOGGED_IN)
            raise LaneStartError(
                f"{self._config.token}: {row.name}: private keys do not show; only a new process logs in again",
                row.code,
            )
