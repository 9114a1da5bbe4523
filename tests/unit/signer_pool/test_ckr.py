"""The table of PKCS #11 return values, against the header's list and against what python-pkcs11 raises."""

import dataclasses
import inspect
import json
import subprocess
import sys

import pkcs11.exceptions
import pytest

from signer_pool import ckr
from signer_pool.ckr import BY_EXCEPTION, TABLE, Action, Ckr, classify, code_of
from tests.unit.signer_pool.lanes import MODULE

# CKR_* of OASIS pkcs11t.h v3.1, without CKR_OK and CKR_VENDOR_DEFINED: value, then names from there upwards,
# `-` for a value that is not assigned.
HEADER = """
001 CANCEL HOST_MEMORY SLOT_ID_INVALID - GENERAL_ERROR FUNCTION_FAILED ARGUMENTS_BAD NO_EVENT
009 NEED_TO_CREATE_THREADS CANT_LOCK
010 ATTRIBUTE_READ_ONLY ATTRIBUTE_SENSITIVE ATTRIBUTE_TYPE_INVALID ATTRIBUTE_VALUE_INVALID
01B ACTION_PROHIBITED
020 DATA_INVALID DATA_LEN_RANGE
030 DEVICE_ERROR DEVICE_MEMORY DEVICE_REMOVED
040 ENCRYPTED_DATA_INVALID ENCRYPTED_DATA_LEN_RANGE AEAD_DECRYPT_FAILED
050 FUNCTION_CANCELED FUNCTION_NOT_PARALLEL - - FUNCTION_NOT_SUPPORTED
060 KEY_HANDLE_INVALID - KEY_SIZE_RANGE KEY_TYPE_INCONSISTENT KEY_NOT_NEEDED KEY_CHANGED KEY_NEEDED
067 KEY_INDIGESTIBLE KEY_FUNCTION_NOT_PERMITTED KEY_NOT_WRAPPABLE KEY_UNEXTRACTABLE
070 MECHANISM_INVALID MECHANISM_PARAM_INVALID
082 OBJECT_HANDLE_INVALID
090 OPERATION_ACTIVE OPERATION_NOT_INITIALIZED
0A0 PIN_INCORRECT PIN_INVALID PIN_LEN_RANGE PIN_EXPIRED PIN_LOCKED
0B0 SESSION_CLOSED SESSION_COUNT - SESSION_HANDLE_INVALID SESSION_PARALLEL_NOT_SUPPORTED SESSION_READ_ONLY
0B6 SESSION_EXISTS SESSION_READ_ONLY_EXISTS SESSION_READ_WRITE_SO_EXISTS
0C0 SIGNATURE_INVALID SIGNATURE_LEN_RANGE
0D0 TEMPLATE_INCOMPLETE TEMPLATE_INCONSISTENT
0E0 TOKEN_NOT_PRESENT TOKEN_NOT_RECOGNIZED TOKEN_WRITE_PROTECTED
0F0 UNWRAPPING_KEY_HANDLE_INVALID UNWRAPPING_KEY_SIZE_RANGE UNWRAPPING_KEY_TYPE_INCONSISTENT
100 USER_ALREADY_LOGGED_IN USER_NOT_LOGGED_IN USER_PIN_NOT_INITIALIZED USER_TYPE_INVALID
104 USER_ANOTHER_ALREADY_LOGGED_IN USER_TOO_MANY_TYPES
110 WRAPPED_KEY_INVALID - WRAPPED_KEY_LEN_RANGE WRAPPING_KEY_HANDLE_INVALID WRAPPING_KEY_SIZE_RANGE
115 WRAPPING_KEY_TYPE_INCONSISTENT
120 RANDOM_SEED_NOT_SUPPORTED RANDOM_NO_RNG
130 DOMAIN_PARAMS_INVALID
140 CURVE_NOT_SUPPORTED
150 BUFFER_TOO_SMALL
160 SAVED_STATE_INVALID
170 INFORMATION_SENSITIVE
180 STATE_UNSAVEABLE
190 CRYPTOKI_NOT_INITIALIZED CRYPTOKI_ALREADY_INITIALIZED
1A0 MUTEX_BAD MUTEX_NOT_LOCKED
1B0 NEW_PIN_MODE NEXT_OTP
1B5 EXCEEDED_MAX_ITERATIONS FIPS_SELF_TEST_FAILED LIBRARY_LOAD_FAILED PIN_TOO_WEAK PUBLIC_KEY_INVALID
200 FUNCTION_REJECTED TOKEN_RESOURCE_EXCEEDED OPERATION_CANCEL_FAILED KEY_EXHAUSTED
"""

# What python-pkcs11 concludes by itself, without a return value.
CONCLUSIONS = {"MultipleObjectsReturned", "MultipleTokensReturned", "NoSuchKey", "NoSuchToken"}

# Puts our answers into the function list of a real module, so that python-pkcs11's own mapping (a `cdef`
# function, not importable) raises. In a process of its own: nothing else may see that module afterwards.
DRIVER = """
import ctypes, json, os, sys

Function = ctypes.CFUNCTYPE(ctypes.c_ulong, *[ctypes.c_void_p] * 3)
answer = 0

def fill(info, *_):
    ctypes.memset(info, 32, 88)  # sizeof(CK_INFO), all blanks
    return 0

functions = ctypes.POINTER(ctypes.c_void_p * 69)()
assert ctypes.CDLL(sys.argv[1]).C_GetFunctionList(ctypes.byref(functions)) == 0
ours = {
    1: Function(lambda *_: 0),  # C_Initialize
    3: Function(fill),  # C_GetInfo
    5: Function(lambda *_: answer),  # C_GetSlotList
}
for place, function in ours.items():
    functions.contents[place] = ctypes.cast(function, ctypes.c_void_p).value

from pkcs11._pkcs11 import lib

module = lib(sys.argv[1])
raised = []
for answer in json.loads(sys.argv[2]):
    try:
        module.get_slots()
    except Exception as error:
        raised.append((type(error).__name__, str(error)))
print(json.dumps(raised), flush=True)
os._exit(0)
"""


def _header() -> dict[int, str]:
    values: dict[int, str] = {}
    for line in HEADER.split("\n"):
        if line:
            first, *names = line.split()
            values.update({int(first, 16) + step: f"CKR_{name}" for step, name in enumerate(names) if name != "-"})
    return values


def _raised_for(codes: list[int]) -> list[tuple[str, str]]:
    """Ask python-pkcs11 for the class and message that it makes of each code."""
    run = subprocess.run(
        [sys.executable, "-c", DRIVER, MODULE, json.dumps(codes)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [(name, message) for name, message in json.loads(run.stdout)]


def test_table_is_the_headers_list() -> None:
    assert {code: row.name for code, row in TABLE.items()} == _header()
    assert len(TABLE) == 97


def test_values_with_a_name_of_their_own() -> None:
    assert TABLE[ckr.GENERAL_ERROR].name == "CKR_GENERAL_ERROR"
    assert TABLE[ckr.KEY_HANDLE_INVALID].name == "CKR_KEY_HANDLE_INVALID"


def test_rows_are_in_order_and_none_is_hidden_by_another() -> None:
    assert [row[0] for row in ckr._ROWS] == sorted(TABLE)
    assert len({row.name for row in TABLE.values()}) == len(TABLE)
    assert all(code == row.code for code, row in TABLE.items())


def test_every_action_is_used_and_every_reason_is_a_sentence() -> None:
    assert {row.action for row in TABLE.values()} == set(Action)
    for row in TABLE.values():
        assert row.reason[0].isupper(), row
        assert row.reason.endswith("."), row
        assert 20 <= len(row.reason) <= 80, row


def test_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TABLE[1] = TABLE[2]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        TABLE[1].code = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("names", "action"),
    [
        ("SESSION_HANDLE_INVALID SESSION_CLOSED OBJECT_HANDLE_INVALID KEY_HANDLE_INVALID", Action.REOPEN),
        ("USER_NOT_LOGGED_IN OPERATION_ACTIVE OPERATION_NOT_INITIALIZED BUFFER_TOO_SMALL", Action.REOPEN),
        ("DEVICE_REMOVED DEVICE_ERROR DEVICE_MEMORY SLOT_ID_INVALID", Action.TOKEN_DOWN),
        ("TOKEN_NOT_PRESENT TOKEN_NOT_RECOGNIZED FIPS_SELF_TEST_FAILED RANDOM_NO_RNG", Action.TOKEN_DOWN),
        ("DATA_INVALID DATA_LEN_RANGE FUNCTION_REJECTED KEY_EXHAUSTED", Action.CALLER),
        ("GENERAL_ERROR CRYPTOKI_NOT_INITIALIZED HOST_MEMORY CANT_LOCK SESSION_COUNT", Action.REPLACE),
        ("MECHANISM_INVALID KEY_TYPE_INCONSISTENT KEY_FUNCTION_NOT_PERMITTED KEY_SIZE_RANGE", Action.REPLACE),
        ("FUNCTION_FAILED FUNCTION_CANCELED USER_ALREADY_LOGGED_IN", Action.RETRY),
    ],
)
def test_decisions(names: str, action: Action) -> None:
    by_name = {row.name: row for row in TABLE.values()}
    assert {by_name[f"CKR_{name}"].action for name in names.split()} == {action}


def test_no_machine_repeats_what_concerns_a_pin() -> None:
    never = {row.name for row in TABLE.values() if row.action is Action.NEVER}
    about_pins = {row.name for row in TABLE.values() if "PIN" in row.name.split("_")}
    assert never == about_pins | {"CKR_NEXT_OTP", "CKR_USER_TYPE_INVALID"}
    assert len(about_pins) == 8


def test_known_codes_are_classified_by_the_table() -> None:
    assert all(classify(code) is row for code, row in TABLE.items())


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (0x80000000, "CKR_VENDOR_DEFINED 0x80000000"),
        (0x8000ABCD, "CKR_VENDOR_DEFINED 0x8000ABCD"),
        (0xFFFFFFFF80000001, "CKR_VENDOR_DEFINED 0xFFFFFFFF80000001"),
        (0x7FFFFFFF, "CKR 0x7FFFFFFF"),
        (0x204, "CKR 0x00000204"),  # CKR_PENDING of v3.2
        (0x004, "CKR 0x00000004"),  # CKR_FLAGS_INVALID of v1
        (0x000, "CKR 0x00000000"),
    ],
)
def test_vendors_and_unknown_codes_replace_the_process(code: int, name: str) -> None:
    row = classify(code)
    assert row == Ckr(code, name, Action.REPLACE, row.reason)
    assert ("vendor" in row.reason) is (code >= 0x80000000)


def test_every_exception_class_that_stands_for_a_return_value_is_known() -> None:
    base = pkcs11.exceptions.PKCS11Error
    classes = {
        name for name, member in inspect.getmembers(pkcs11.exceptions, inspect.isclass) if issubclass(member, base)
    }
    classes -= {base.__name__}
    assert classes >= CONCLUSIONS
    assert classes - CONCLUSIONS == set(BY_EXCEPTION) - CONCLUSIONS
    assert set(BY_EXCEPTION.values()) <= set(TABLE)


def test_python_pkcs11_there_and_back_for_every_row() -> None:
    vendors = [0x80000000, 0x80000001, 0xFFFFFFFF80000001, 0x204]
    codes = [*TABLE, *vendors]
    raised = _raised_for(codes)
    assert [code_of(name, message) for name, message in raised] == codes
    # It merges nothing: no two values look alike, so the table's actions need not agree with one another.
    assert len(set(raised)) == len(codes)
    classes = [name for name, _ in raised if name != "PKCS11Error"]
    assert set(classes) == set(BY_EXCEPTION) - CONCLUSIONS
    assert len(classes) == len(set(classes))


def test_module_that_cannot_be_loaded() -> None:
    from pkcs11._pkcs11 import lib

    with pytest.raises(pkcs11.exceptions.PKCS11Error) as caught:
        lib("/nonexistent.so")
    assert TABLE[code_of(type(caught.value).__name__, str(caught.value))].name == "CKR_LIBRARY_LOAD_FAILED"


@pytest.mark.parametrize(
    ("name", "message", "code"),
    [
        ("PinIncorrect", "", 0xA0),
        ("PinIncorrect", "Unmapped error code 0x5", 0xA0),
        ("NoSuchToken", "No token matching {'token_label': 't'}", 0xE0),
        ("PKCS11Error", "Unmapped error code 0x1b6", 0x1B6),
        ("PKCS11Error", "unmapped error code 0x1B6", 0x1B6),
        ("PKCS11Error", "Failed to cancel operation", 0x202),
        ("PKCS11Error", "Unmapped error code 0xnothing", ckr.GENERAL_ERROR),
        ("PKCS11Error", "Unmapped error code", ckr.GENERAL_ERROR),
        ("PKCS11Error", "", ckr.GENERAL_ERROR),
        ("MultipleTokensReturned", "More than 1 token matches", ckr.GENERAL_ERROR),
        ("ValueError", "0xa0", ckr.GENERAL_ERROR),
    ],
)
def test_code_of(name: str, message: str, code: int) -> None:
    assert code_of(name, message) == code
