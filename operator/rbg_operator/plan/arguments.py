"""Reading the flags of a role's command, to learn its stage and port.

Commands come in several spellings: `--port 30002` as two items, as one with "=", as one item with a space in it, or the
whole command as a string for `sh -c`. All are flattened to words first; nothing here is ever executed.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rbg_operator.api.model import Role
from rbg_operator.plan.expand import expand

SHELLS = ("sh", "bash", "dash", "ash", "zsh")


def raw_argv(role: Role) -> list[str]:
    """command and args of the role's first container, as written."""
    container = role.main_container
    return [*(container.get("command") or ()), *(container.get("args") or ())]


def role_words(role: Role) -> list[str]:
    """The words of command and args, with the values that the manifest itself gives to variables; for reading flags."""
    literals = {entry["name"]: entry.get("value") or "" for entry in role.main_container.get("env") or ()}
    return words([expand(word, literals) if "$" in word else word for word in raw_argv(role)])


def words(argv: Sequence[str]) -> list[str]:
    """The words that the started program will see, as far as they can be told without a shell."""
    is_shell = len(argv) >= 3 and argv[0].rpartition("/")[2] in SHELLS
    if is_shell and argv[1].startswith("-") and argv[1].endswith("c"):
        return _shell_words(argv[2])
    flat: list[str] = []
    for item in argv:
        flat.extend(item.split() if item.startswith("-") else [item])
    return flat


def flag(argv: Sequence[str], name: str) -> str | None:
    """Value of the last `name VALUE` or `name=VALUE`; None if the flag is absent, "" if nothing follows it."""
    return flag_in(words(argv), name)


def flag_in(flat: Sequence[str], name: str) -> str | None:
    """The same, of an argv that is in words already."""
    found = None
    for index, word in enumerate(flat):
        if word == name:
            found = flat[index + 1] if index + 1 < len(flat) and not flat[index + 1].startswith("--") else ""
        elif word.startswith(name + "="):
            found = word[len(name) + 1 :]
    return found


def module(argv: Sequence[str]) -> str:
    """The module that python runs with -m; "" if there is none."""
    return module_in(words(argv))


def module_in(flat: Sequence[str]) -> str:
    """The same, of an argv that is in words already."""
    for index, word in enumerate(flat[:-1]):
        if word == "-m":
            return flat[index + 1]
    return ""


def _shell_words(script: str) -> list[str]:
    joined = script.replace("\\\n", " ")
    lexer = shlex.shlex(joined, posix=True, punctuation_chars=True)  # "30000; exec …" is two words
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        return list(lexer)
    except ValueError:  # an unclosed quote: the shell will complain, the flags can still be read
        return joined.split()
