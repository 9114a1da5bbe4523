"""Where a setting came from, so that an error names the one place to mend: a line of the file, or a variable."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]")
_KEY = re.compile(r"""\s*([\w.\s"'-]+?)\s*=""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """`path` and `text` of the settings file (the text is empty if there is none); `variables` by setting."""

    path: Path
    text: str
    variables: Mapping[str, str]

    def of(self, setting: str) -> str:
        """Say where `setting` (ocsp.workers, tokens[0].pin, plan.2026) is set, or that it is not."""
        section, _, key = setting.partition(".")
        for name in (setting, section.partition("[")[0]):
            if name in self.variables:
                return f"variable {self.variables[name]}"
        line = line_of(self.text, section, key)
        if line:
            return f"{self.path}, line {line}"
        variable = f"CERTMILL_{section}_{key}".upper()
        return f"a default; set it in {self.path} or by {variable}"


def line_of_single(text: str, section: str) -> int:
    """Return the line of the first `[section]` in single brackets, else 0."""
    headers = ((number, _HEADER.match(line)) for number, line in enumerate(text.splitlines(), 1))
    return next((n for n, found in headers if found and found[1] == "[" and _bare(found[2]) == section), 0)


def line_of(text: str, section: str, key: str) -> int:
    """Return the line of the key, else of its section, else 0. It knows TOML as people write it, no more."""
    at_section = 0
    for number, inside, found in _lines(text):
        name = f"{inside}.{found}".strip(".")
        if key and name == f"{section}.{key}".strip("."):
            return number
        if not at_section and name.startswith(section) and name[len(section) :][:1] in {"", ".", "["}:
            at_section = number  # or of the first that belongs to it: token.kind = …, [token.x], [[token]]
    return at_section


def _lines(text: str) -> Iterator[tuple[int, str, str]]:
    """Go through headers and keys: line number, section (tokens[1] is the second of them), key or nothing."""
    inside, count = "", dict[str, int]()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            inside = _bare(header[2])
            if header[1] == "[[":
                count[inside] = count.get(inside, -1) + 1
                inside = f"{inside}[{count[inside]}]"
            yield number, inside, ""
        elif key := _KEY.match(line):
            yield number, inside, _bare(key[1])


def _bare(name: str) -> str:
    return re.sub(r"""[\s"']""", "", name)
