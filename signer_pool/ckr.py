"""What the signer pool does about each PKCS #11 return value: one table, and how a value is found in it.

The numbers are those of PKCS #11 v3.1 (`pkcs11t.h`), the meanings those of its §5.1. Three rules decide:

- CALLER only where the cause lies in what was asked (the item's bytes, the template of a new key) or where
  somebody said no: other sessions would answer the same. What other tokens might do well goes to them.
- A value that none of our calls may return says that the module is confused: REPLACE, as for unknown ones.
- Whatever concerns the PIN is never repeated by a machine: a few wrong attempts lock a token for good.
"""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

GENERAL_ERROR = 0x005
KEY_HANDLE_INVALID = 0x060
TOKEN_NOT_PRESENT = 0x0E0
USER_NOT_LOGGED_IN = 0x101


class Action(enum.StrEnum):
    """What to do. Everything but CALLER and NEVER is bounded by the pool, so that no item circles for ever."""

    RETRY = "retry"  # the session is well: the same again, here
    REOPEN = "reopen"  # session or handles are gone: a new session in this process, keys found again, same items
    REPLACE = "replace"  # the module's state is in doubt: kill the process, start anew; items go elsewhere
    TOKEN_DOWN = "token-down"  # noqa: S105  # the device fails: latch the token, move its work, probe it
    CALLER = "caller"  # no session can do this: a typed error at once; while opening: the operator's fault
    NEVER = "never"  # credentials: not tried again until an operator acts


@dataclass(frozen=True, slots=True)
class Ckr:
    """One return value. `reason`: why this action; a sentence for the operator."""

    code: int
    name: str
    action: Action
    reason: str


def classify(code: int) -> Ckr:
    """Return the row of a return value; REPLACE for vendors' own and unknown values. Raises nothing."""
    row = TABLE.get(code)
    if row is not None:
        return row
    if code >= _VENDOR_DEFINED:
        name, reason = "CKR_VENDOR_DEFINED", "A value of the vendor's own; the module's manual may say more."
    else:
        name, reason = "CKR", "No value of PKCS #11 v3.1: what it means for the session is unknown."
    return Ckr(code, f"{name} 0x{code:08X}", Action.REPLACE, reason)


def code_of(exception_name: str, message: str) -> int:
    """Return the number behind an exception of python-pkcs11; CKR_GENERAL_ERROR if there is none.

    The library has a class for most values and a number for none. The values without a class come as
    `PKCS11Error`, told apart by `message` alone. No class stands for two values, so nothing is lost.
    """
    code = BY_EXCEPTION.get(exception_name)
    if code is not None:
        return code
    unmapped = _UNMAPPED.match(message)
    if unmapped is not None:
        return int(unmapped[1], 16)
    for beginning, known in _BY_MESSAGE:
        if message.startswith(beginning):
            return known
    return GENERAL_ERROR


def classify_signing(row: Ckr) -> Ckr:
    """Return the row as it counts for a signature: what is no answer to C_Sign speaks of a confused module."""
    if row.action is Action.CALLER and row.code not in _ABOUT_THE_ITEM:
        return replace(row, action=Action.REPLACE, reason=_UNASKED)
    return row


_VENDOR_DEFINED = 0x80000000
_ABOUT_THE_ITEM = {0x020, 0x021, 0x200, 0x203}
_UNMAPPED = re.compile(r"unmapped error code 0x([0-9a-f]+)\b", re.IGNORECASE)

_UNASKED = "No call of ours may be answered so: the module is confused."
_KEY_HERE = "This token's key cannot sign so; another token's may."
_WRONG = "The module made a signature and found it wrong."
_NEW_KEY = "The template of a new key was refused."
_LOCKS = "The module's own locks are broken."
_OTHER_USER = "Another user is logged in to the token; this may end soon."
_PIN = "The PIN was refused; more attempts would lock the token."

_ROWS = (
    (0x001, "CKR_CANCEL", Action.REPLACE, _UNASKED),
    (0x002, "CKR_HOST_MEMORY", Action.REPLACE, "This host is out of memory; a new process starts small."),
    (0x003, "CKR_SLOT_ID_INVALID", Action.TOKEN_DOWN, "The slot is gone, and its token with it."),
    (0x005, "CKR_GENERAL_ERROR", Action.REPLACE, "The module says that its own state may be inconsistent."),
    (0x006, "CKR_FUNCTION_FAILED", Action.RETRY, "It failed and does not say why; the same call may succeed."),
    (0x007, "CKR_ARGUMENTS_BAD", Action.REPLACE, "Our arguments do not depend on the item: the fault is here."),
    (0x008, "CKR_NO_EVENT", Action.REPLACE, _UNASKED),
    (0x009, "CKR_NEED_TO_CREATE_THREADS", Action.REPLACE, "The module could not start threads of its own."),
    (0x00A, "CKR_CANT_LOCK", Action.REPLACE, "The module could not initialise its locks."),
    (0x010, "CKR_ATTRIBUTE_READ_ONLY", Action.CALLER, _NEW_KEY),
    (0x011, "CKR_ATTRIBUTE_SENSITIVE", Action.CALLER, "One object hides this attribute; the rest is well."),
    (0x012, "CKR_ATTRIBUTE_TYPE_INVALID", Action.CALLER, "One object lacks this attribute; the rest is well."),
    (0x013, "CKR_ATTRIBUTE_VALUE_INVALID", Action.CALLER, _NEW_KEY),
    (0x01B, "CKR_ACTION_PROHIBITED", Action.CALLER, "A policy of the token forbids making or changing it."),
    (0x020, "CKR_DATA_INVALID", Action.CALLER, "The bytes to sign are the fault: every session refuses them."),
    (0x021, "CKR_DATA_LEN_RANGE", Action.CALLER, "There is too much or too little to sign, for every session."),
    (0x030, "CKR_DEVICE_ERROR", Action.TOKEN_DOWN, "The device reports a fault of its own."),
    (0x031, "CKR_DEVICE_MEMORY", Action.TOKEN_DOWN, "The device is out of memory, for all its sessions."),
    (0x032, "CKR_DEVICE_REMOVED", Action.TOKEN_DOWN, "The token was removed, or cannot be reached any more."),
    (0x040, "CKR_ENCRYPTED_DATA_INVALID", Action.REPLACE, _UNASKED),
    (0x041, "CKR_ENCRYPTED_DATA_LEN_RANGE", Action.REPLACE, _UNASKED),
    (0x042, "CKR_AEAD_DECRYPT_FAILED", Action.REPLACE, _UNASKED),
    (0x050, "CKR_FUNCTION_CANCELED", Action.RETRY, "The call was cancelled half-way; nothing was signed."),
    (0x051, "CKR_FUNCTION_NOT_PARALLEL", Action.REPLACE, _UNASKED),
    (0x054, "CKR_FUNCTION_NOT_SUPPORTED", Action.REPLACE, "This module cannot do it; another token's may."),
    (0x060, "CKR_KEY_HANDLE_INVALID", Action.REOPEN, "The key's handle is stale: keys must be found again."),
    (0x062, "CKR_KEY_SIZE_RANGE", Action.REPLACE, _KEY_HERE),
    (0x063, "CKR_KEY_TYPE_INCONSISTENT", Action.REPLACE, _KEY_HERE),
    (0x064, "CKR_KEY_NOT_NEEDED", Action.REPLACE, _UNASKED),
    (0x065, "CKR_KEY_CHANGED", Action.REPLACE, _UNASKED),
    (0x066, "CKR_KEY_NEEDED", Action.REPLACE, _UNASKED),
    (0x067, "CKR_KEY_INDIGESTIBLE", Action.REPLACE, _UNASKED),
    (0x068, "CKR_KEY_FUNCTION_NOT_PERMITTED", Action.REPLACE, _KEY_HERE),
    (0x069, "CKR_KEY_NOT_WRAPPABLE", Action.REPLACE, _UNASKED),
    (0x06A, "CKR_KEY_UNEXTRACTABLE", Action.REPLACE, _UNASKED),
    (0x070, "CKR_MECHANISM_INVALID", Action.REPLACE, "This token lacks the mechanism; another may have it."),
    (0x071, "CKR_MECHANISM_PARAM_INVALID", Action.REPLACE, "This token refuses the mechanism as we use it."),
    (0x082, "CKR_OBJECT_HANDLE_INVALID", Action.REOPEN, "A handle is stale: objects must be found again."),
    (0x090, "CKR_OPERATION_ACTIVE", Action.REOPEN, "An operation is left unfinished; a new session has none."),
    (0x091, "CKR_OPERATION_NOT_INITIALIZED", Action.REOPEN, "The session lost its operation between two calls."),
    (0x0A0, "CKR_PIN_INCORRECT", Action.NEVER, _PIN),
    (0x0A1, "CKR_PIN_INVALID", Action.NEVER, _PIN),
    (0x0A2, "CKR_PIN_LEN_RANGE", Action.NEVER, _PIN),
    (0x0A3, "CKR_PIN_EXPIRED", Action.NEVER, "The PIN has expired: an operator must set a new one."),
    (0x0A4, "CKR_PIN_LOCKED", Action.NEVER, "The PIN is locked: only the security officer can unlock it."),
    (0x0B0, "CKR_SESSION_CLOSED", Action.REOPEN, "The session was closed during the call."),
    (0x0B1, "CKR_SESSION_COUNT", Action.REPLACE, "No session is left; a dead process gives back its own."),
    (0x0B3, "CKR_SESSION_HANDLE_INVALID", Action.REOPEN, "The session is gone: token or network closed it."),
    (0x0B4, "CKR_SESSION_PARALLEL_NOT_SUPPORTED", Action.REPLACE, _UNASKED),
    (0x0B5, "CKR_SESSION_READ_ONLY", Action.CALLER, "The session may sign but not write: no key can be made."),
    (0x0B6, "CKR_SESSION_EXISTS", Action.REPLACE, _UNASKED),
    (0x0B7, "CKR_SESSION_READ_ONLY_EXISTS", Action.REPLACE, _UNASKED),
    (0x0B8, "CKR_SESSION_READ_WRITE_SO_EXISTS", Action.REPLACE, _OTHER_USER),
    (0x0C0, "CKR_SIGNATURE_INVALID", Action.REPLACE, _WRONG),
    (0x0C1, "CKR_SIGNATURE_LEN_RANGE", Action.REPLACE, _WRONG),
    (0x0D0, "CKR_TEMPLATE_INCOMPLETE", Action.CALLER, _NEW_KEY),
    (0x0D1, "CKR_TEMPLATE_INCONSISTENT", Action.CALLER, _NEW_KEY),
    (0x0E0, "CKR_TOKEN_NOT_PRESENT", Action.TOKEN_DOWN, "The token is not there, or cannot be reached."),
    (0x0E1, "CKR_TOKEN_NOT_RECOGNIZED", Action.TOKEN_DOWN, "What is in the slot does not answer as a token."),
    (0x0E2, "CKR_TOKEN_WRITE_PROTECTED", Action.CALLER, "The token is write-protected: no session may write."),
    (0x0F0, "CKR_UNWRAPPING_KEY_HANDLE_INVALID", Action.REPLACE, _UNASKED),
    (0x0F1, "CKR_UNWRAPPING_KEY_SIZE_RANGE", Action.REPLACE, _UNASKED),
    (0x0F2, "CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT", Action.REPLACE, _UNASKED),
    (0x100, "CKR_USER_ALREADY_LOGGED_IN", Action.RETRY, "This process is logged in: open without a PIN."),
    (
        0x101,
        "CKR_USER_NOT_LOGGED_IN",
        Action.REOPEN,
        "Has the login ended? If a new session has none, a process does.",
    ),
    (0x102, "CKR_USER_PIN_NOT_INITIALIZED", Action.NEVER, "The token has no user PIN: an operator must set it."),
    (0x103, "CKR_USER_TYPE_INVALID", Action.NEVER, "The token knows no ordinary user: it needs another login."),
    (0x104, "CKR_USER_ANOTHER_ALREADY_LOGGED_IN", Action.REPLACE, _OTHER_USER),
    (0x105, "CKR_USER_TOO_MANY_TYPES", Action.REPLACE, _OTHER_USER),
    (0x110, "CKR_WRAPPED_KEY_INVALID", Action.REPLACE, _UNASKED),
    (0x112, "CKR_WRAPPED_KEY_LEN_RANGE", Action.REPLACE, _UNASKED),
    (0x113, "CKR_WRAPPING_KEY_HANDLE_INVALID", Action.REPLACE, _UNASKED),
    (0x114, "CKR_WRAPPING_KEY_SIZE_RANGE", Action.REPLACE, _UNASKED),
    (0x115, "CKR_WRAPPING_KEY_TYPE_INCONSISTENT", Action.REPLACE, _UNASKED),
    (0x120, "CKR_RANDOM_SEED_NOT_SUPPORTED", Action.REPLACE, _UNASKED),
    (0x121, "CKR_RANDOM_NO_RNG", Action.TOKEN_DOWN, "The token has no random numbers: it must not sign ECDSA."),
    (0x130, "CKR_DOMAIN_PARAMS_INVALID", Action.CALLER, "The token cannot make keys with these parameters."),
    (0x140, "CKR_CURVE_NOT_SUPPORTED", Action.CALLER, "The token cannot make keys on this curve."),
    (0x150, "CKR_BUFFER_TOO_SMALL", Action.REOPEN, "An operation is left unfinished; a new session has none."),
    (0x160, "CKR_SAVED_STATE_INVALID", Action.REPLACE, _UNASKED),
    (0x170, "CKR_INFORMATION_SENSITIVE", Action.CALLER, "One object hides what we ask; the rest is well."),
    (0x180, "CKR_STATE_UNSAVEABLE", Action.REPLACE, _UNASKED),
    (0x190, "CKR_CRYPTOKI_NOT_INITIALIZED", Action.REPLACE, "The module forgot that it was initialised."),
    (0x191, "CKR_CRYPTOKI_ALREADY_INITIALIZED", Action.REPLACE, "Only a new process starts the module afresh."),
    (0x1A0, "CKR_MUTEX_BAD", Action.REPLACE, _LOCKS),
    (0x1A1, "CKR_MUTEX_NOT_LOCKED", Action.REPLACE, _LOCKS),
    (0x1B0, "CKR_NEW_PIN_MODE", Action.NEVER, "The token wants a new PIN: an operator must set it."),
    (0x1B1, "CKR_NEXT_OTP", Action.NEVER, "The token wants a one-time password, which only a person has."),
    (0x1B5, "CKR_EXCEEDED_MAX_ITERATIONS", Action.RETRY, "Chance did not help; it may the next time."),
    (0x1B6, "CKR_FIPS_SELF_TEST_FAILED", Action.TOKEN_DOWN, "The token failed its self-test and signs no more."),
    (0x1B7, "CKR_LIBRARY_LOAD_FAILED", Action.REPLACE, "The module or a library of its own cannot be loaded."),
    (0x1B8, "CKR_PIN_TOO_WEAK", Action.NEVER, "The PIN is too weak for the token: an operator must change it."),
    (0x1B9, "CKR_PUBLIC_KEY_INVALID", Action.REPLACE, _UNASKED),
    (0x200, "CKR_FUNCTION_REJECTED", Action.CALLER, "A person at the device said no; we do not go around it."),
    (0x201, "CKR_TOKEN_RESOURCE_EXCEEDED", Action.TOKEN_DOWN, "The token is exhausted, for all its sessions."),
    (0x202, "CKR_OPERATION_CANCEL_FAILED", Action.REOPEN, "An operation cannot be ended; a new session has none."),
    (0x203, "CKR_KEY_EXHAUSTED", Action.CALLER, "The key has made all the signatures that it can."),
)

TABLE: Mapping[int, Ckr] = MappingProxyType(
    {code: Ckr(code, name, action, reason) for code, name, action, reason in _ROWS}
)

# Without NoSuchKey, MultipleObjectsReturned and MultipleTokensReturned, which python-pkcs11 itself concludes.
BY_EXCEPTION: Mapping[str, int] = MappingProxyType(
    {
        "AnotherUserAlreadyLoggedIn": 0x104,
        "ArgumentsBad": 0x007,
        "AttributeReadOnly": 0x010,
        "AttributeSensitive": 0x011,
        "AttributeTypeInvalid": 0x012,
        "AttributeValueInvalid": 0x013,
        "DataInvalid": 0x020,
        "DataLenRange": 0x021,
        "DeviceError": 0x030,
        "DeviceMemory": 0x031,
        "DeviceRemoved": 0x032,
        "DomainParamsInvalid": 0x130,
        "EncryptedDataInvalid": 0x040,
        "EncryptedDataLenRange": 0x041,
        "ExceededMaxIterations": 0x1B5,
        "FunctionCancelled": 0x050,
        "FunctionFailed": 0x006,
        "FunctionNotSupported": 0x054,
        "FunctionRejected": 0x200,
        "GeneralError": 0x005,
        "HostMemory": 0x002,
        "KeyHandleInvalid": 0x060,
        "KeyIndigestible": 0x067,
        "KeyNeeded": 0x066,
        "KeyNotNeeded": 0x064,
        "KeyNotWrappable": 0x069,
        "KeySizeRange": 0x062,
        "KeyTypeInconsistent": 0x063,
        "KeyUnextractable": 0x06A,
        "MechanismInvalid": 0x070,
        "MechanismParamInvalid": 0x071,
        "NoEvent": 0x008,
        # Not a return value: its search passes over slots that answer CKR_TOKEN_NOT_PRESENT and _RECOGNIZED.
        "NoSuchToken": 0x0E0,
        "ObjectHandleInvalid": 0x082,
        "OperationActive": 0x090,
        "OperationNotInitialized": 0x091,
        "PinExpired": 0x0A3,
        "PinIncorrect": 0x0A0,
        "PinInvalid": 0x0A1,
        "PinLenRange": 0x0A2,
        "PinLocked": 0x0A4,
        "PinTooWeak": 0x1B8,
        "PublicKeyInvalid": 0x1B9,
        "RandomNoRNG": 0x121,
        "RandomSeedNotSupported": 0x120,
        "SessionClosed": 0x0B0,
        "SessionCount": 0x0B1,
        "SessionExists": 0x0B6,
        "SessionHandleInvalid": 0x0B3,
        "SessionReadOnly": 0x0B5,
        "SessionReadOnlyExists": 0x0B7,
        "SessionReadWriteSOExists": 0x0B8,
        "SignatureInvalid": 0x0C0,
        "SignatureLenRange": 0x0C1,
        "SlotIDInvalid": 0x003,
        "TemplateIncomplete": 0x0D0,
        "TemplateInconsistent": 0x0D1,
        "TokenNotPresent": 0x0E0,
        "TokenNotRecognised": 0x0E1,
        "TokenWriteProtected": 0x0E2,
        "UnwrappingKeyHandleInvalid": 0x0F0,
        "UnwrappingKeySizeRange": 0x0F1,
        "UnwrappingKeyTypeInconsistent": 0x0F2,
        "UserAlreadyLoggedIn": 0x100,
        "UserNotLoggedIn": 0x101,
        "UserPinNotInitialized": 0x102,
        "UserTooManyTypes": 0x105,
        "WrappedKeyInvalid": 0x110,
        "WrappedKeyLenRange": 0x112,
        "WrappingKeyHandleInvalid": 0x113,
        "WrappingKeySizeRange": 0x114,
        "WrappingKeyTypeInconsistent": 0x115,
    }
)

# How a PKCS11Error begins that names its value in words (0.10: `map_rv_to_error`, `_cancel_operation`, `lib`).
_BY_MESSAGE = (
    ("Buffer was too small", 0x150),
    ("Initialisation error (already initialized)", 0x191),
    ("Initialisation error (not initialized)", 0x190),
    ("Parallel not supported", 0x0B4),
    ("User type invalid", 0x103),
    ("Failed to cancel operation", 0x202),
    ("OS exception while loading", 0x1B7),
    ("Unknown exception while loading", 0x1B7),
)
