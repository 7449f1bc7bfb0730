"""The merge of pod templates follows Kubernetes."""

from __future__ import annotations

from typing import Any

import pytest

from rbg_operator.api.strategic_merge import merge

BASE = {"containers": [{"name": "a", "image": "1", "args": ["x", "y"]}, {"name": "b"}], "n": {"k": 1, "l": 2}}


@pytest.mark.parametrize(
    ("patch", "changes"),
    [
        ({"n": {"k": 3}}, {"n": {"k": 3, "l": 2}}),
        ({"n": {"k": None}}, {"n": {"l": 2}}),
        ({"n": {"$patch": "replace", "m": 1}}, {"n": {"m": 1}}),
        ({"n": {"$patch": "delete"}}, {"n": {}}),
        ({"containers": [{"name": "b", "$patch": "delete"}]}, {"containers": [BASE["containers"][0]]}),
        (
            {"containers": [{"name": "a", "args": ["z"]}, {"name": "c"}]},
            {"containers": [{"name": "a", "image": "1", "args": ["z"]}, {"name": "b"}, {"name": "c"}]},
        ),
        ({"new": [1]}, {"new": [1]}),
    ],
)
def test_merge(patch: dict[str, Any], changes: dict[str, Any]) -> None:
    assert merge(BASE, patch) == {**BASE, **changes}
