"""Whatever the bytes are: one mapping comes out, or one clear error."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbg_operator.api.documents import MAX_BYTES, load_manifest
from rbg_operator.api.problems import ManifestError

BOMB = b"a: &a [1,1,1,1,1,1,1,1,1,1]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 10)) for i in range(8)
)
MERGE_BOMB = b"a0: &a0 {k: 1}\n" + b"".join(
    b"a%d: &a%d {<<: [*a%d, *a%d]}\n" % (i, i, i - 1, i - 1) for i in range(1, 30)
)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"- a", "holds a list"),
        (b"word", "holds a string"),
        (b"a: 1\n---\nb: 2", "several YAML documents"),
        (b"a: [", "line 2, column 1"),
        (b"a: 1\na: 2", "the key 'a' is given twice"),
        (b"1: a", "keys are strings"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"a: !!python/object:os.system x", "not valid YAML"),
        (b"a: !!binary aGk=", "holds a bytes"),
        (b"{" * 1000, "nested deeper"),
        (b"a: &a [*a]", "write it without aliases"),
        (BOMB, "write it without aliases"),
        (MERGE_BOMB, "merge key"),
        (b"a: " + b"9" * 9999, "cannot be read"),
        (b"a: .inf", "holds the number inf, which JSON cannot say"),
        (b" " * (MAX_BYTES + 1), "at most 1,048,576"),
    ],
)
def test_refused_with_a_reason(data: bytes, message: str) -> None:
    with pytest.raises(ManifestError, match=r"^group\.yaml ") as caught:
        load_manifest(data, "group.yaml")
    assert message in str(caught.value)


def test_json_and_dates_as_text() -> None:
    assert load_manifest(b'{"a": [1, null], "b": 2001-01-01}', "x") == {"a": [1, None], "b": "2001-01-01"}


@given(st.binary(max_size=200) | st.text(alphabet="a:-[]{}&*<>!|'\" \n1", max_size=60).map(str.encode))
def test_no_input_raises_anything_else(data: bytes) -> None:
    with contextlib.suppress(ManifestError):
        assert isinstance(load_manifest(data, "x"), dict)
