"""Makes one line of what is wrong with a setting: which one, why, and what is possible instead."""

import re
import tomllib
from difflib import get_close_matches
from pathlib import Path

from msgspec import inspect

from server.settings.section import Section
from server.settings.sources import line_of_single

_MOVED = {
    "token": "is now [signer] (kind, lanes, batch_deadline_s) and, for an HSM, [[tokens]] (uri and pin instead of "
    "module, label and pin_file), see docs/operating.md"
}


def moved(section: str, table: object = None) -> str | None:
    """Say what became of a section that earlier versions had; None if it never was one.

    `table` is what stands in it: it may be a new section whose name was written wrongly.
    """
    if section == "token" and isinstance(table, list):
        return "section [[token]]: no such section; did you mean [[tokens]]?"
    if section == "token" and isinstance(table, dict) and "uri" in table:
        return "section [token]: no such section; did you mean [[tokens]]?"
    return f"section [{section}] {_MOVED[section]}" if section in _MOVED else None


def explain(text: str, root: type[Section]) -> tuple[str, str]:
    """Return setting and reason of an error of msgspec, or of a section's own.

    Where it is: msgspec's path at the end, the words before a colon, or both.
    """
    reason, _, where = text.partition(" - at `$.")
    where = where.rstrip("`")
    if named := re.fullmatch(r"([\w.\[\]]+): (.*)", reason, re.DOTALL):
        return f"{where}.{named[1]}".lstrip("."), named[2]
    if unknown := re.search(r"unknown field `([^`]*)`", reason):
        return f"{where}.{unknown[1]}".lstrip("."), no_such(where, unknown[1], root)
    return where, _reason(reason, _type_at(root, where))


def no_such(section: str, key: str, root: type[Section]) -> str:
    """Say that a section has no such key, or (`section` is empty) that there is no such section.

    And what was perhaps meant, and all there is.
    """
    sections = [name for name in _names(root, "") if name != "home"]
    elsewhere = [f"{key} of {_title(root, name)}" for name in sections if key in _names(root, name)]
    if section:
        keys = _names(root, section)
        meant = [*get_close_matches(key, keys, n=1), *elsewhere]
        what, present = "setting", f"{_title(root, section)} has {', '.join(keys)}"
    else:
        meant = [*elsewhere, *(_title(root, name) for name in get_close_matches(key, sections, n=1))]
        what, present = "section", f"there are {', '.join(_title(root, name) for name in sections)}"
    return f"no such {what}; {f'did you mean {meant[0]}? ' if meant else ''}{present}"


def no_such_variable(name: str, root: type[Section]) -> str:
    """Say that no setting goes by this variable, and which one was perhaps meant."""
    known = [f"{section}_{key}".upper() for section in _names(root, "") for key in _names(root, section)]
    meant = get_close_matches(name.removeprefix("CERTMILL_"), known, n=1)
    remedy = f"did you mean CERTMILL_{meant[0]}?" if meant else "they are called CERTMILL_SECTION_KEY"
    return f"no such setting; {remedy}"


def toml_error(path: Path, text: str, error: tomllib.TOMLDecodeError, root: type[Section]) -> str:
    """Make one line of a file that is no TOML; what stands twice is named, and brackets that are wrong."""
    found = re.fullmatch(r"(Cannot declare|Cannot overwrite).*\(at line (\d+), .*\)", str(error))
    if not found:
        return f"{path}: not valid TOML: {error}"
    line = text.splitlines()[int(found[2]) - 1].partition("#")[0].strip()
    section = line.strip("[] ")
    title = _title(root, section)
    single = line_of_single(text, section) if line.startswith("[") and title.startswith("[[") else 0
    if single:
        return f"{path}, line {single}: [{section}] must be written in double brackets, {title}, once for each"
    what = f"section {line}" if line.startswith("[") else line.partition("=")[0].strip()
    return f"{path}, line {found[2]}: {what} stands twice; leave one of them, with all that belongs to it"


def _reason(reason: str, kind: inspect.Type | None) -> str:
    reason = re.sub(r"^Expected `str( \| null)?`, got `\w+`$", "must be text in quotes", reason)
    if isinstance(kind, inspect.Metadata):
        described = (kind.extra_json_schema or {}).get("description", "")
        return f"must be {described}" if "regex" in reason and described else reason
    if isinstance(kind, inspect.StructType) and reason.startswith("Expected `object`, got"):
        return "must be a [section], not a value"
    if isinstance(kind, inspect.VarTupleType) and isinstance(kind.item_type, inspect.StructType):
        return f"{reason}; write the section's name in double brackets, once for each"
    choices: list[str] = []
    if isinstance(kind, inspect.LiteralType):
        choices = [str(value) for value in kind.values]
    if isinstance(kind, inspect.EnumType):
        choices = [str(member.value) for member in kind.cls]
    if choices:
        return f"{reason.replace('Invalid enum value', 'unknown')}; it is one of {', '.join(choices)}"
    return reason


def _names(root: type[Section], where: str) -> list[str]:
    kind = _type_at(root, where)
    if isinstance(kind, inspect.VarTupleType):
        kind = kind.item_type
    return [field.name for field in kind.fields] if isinstance(kind, inspect.StructType) else []


def _title(root: type[Section], section: str) -> str:
    """Write a section as it stands in the file: [ocsp], [[tokens]]."""
    bare = section.partition("[")[0]
    return f"[[{bare}]]" if isinstance(_type_at(root, bare), inspect.VarTupleType) else f"[{bare}]"


def _type_at(root: type[Section], where: str) -> inspect.Type | None:
    """Return the type at a path such as signer.kind or tokens[0].pin; None if there is none."""
    kind: inspect.Type | None = inspect.type_info(root)
    for name in filter(None, where.split(".")):
        if isinstance(kind, inspect.VarTupleType):
            kind = kind.item_type
        if not isinstance(kind, inspect.StructType):
            return None
        bare = name.partition("[")[0]
        kind = next((field.type for field in kind.fields if field.name == bare), None)
    return kind
