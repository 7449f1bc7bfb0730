"""$(VAR) in commands, arguments and values, with the meaning it has in Kubernetes.

$(VAR) is the variable's value if it is defined, else it stays as written; $$ is one $, so $$(VAR) gives the text
$(VAR); any other $ stays. What a variable expands to is not expanded again.
"""

from __future__ import annotations

from collections.abc import Mapping


def expand(text: str, variables: Mapping[str, str]) -> str:
    """The text with its references replaced."""
    parts: list[str] = []
    position = 0
    last_close = text.rfind(")")  # beyond it no reference can end: keeps a text full of "$(" linear
    while (dollar := text.find("$", position)) >= 0:
        parts.append(text[position:dollar])
        follower = text[dollar + 1 : dollar + 2]
        if follower == "$":
            parts.append("$")
            position = dollar + 2
        elif follower == "(" and last_close > dollar:
            close = text.index(")", dollar)
            name = text[dollar + 2 : close]
            parts.append(variables.get(name, text[dollar : close + 1]))
            position = close + 1
        else:
            parts.append("$")
            position = dollar + 1
    parts.append(text[position:])
    return "".join(parts)
