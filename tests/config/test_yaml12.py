"""YAML 1.2 scalars, places, refusals, and that what is written reads back."""

from __future__ import annotations

import math
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from wesar_sweep.config import yaml12
from wesar_sweep.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4),
        ("1E3", 1e3),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("0o17", 15),
        ("017", 17),
        ("0x1F", 31),
        ("+3", 3),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("Null", None),
        ("", None),
        ("'5e-4'", "5e-4"),
        ('"no"', "no"),
    ],
)
def test_core_schema(text: str, value: object) -> None:
    read = yaml12.parse(f"key: {text}\n").value["key"]
    assert read == value
    assert type(read) is type(value)


def test_yaml11_reads_these_differently() -> None:
    # The control: were PyYAML's own resolver in use, the cases above would fail.
    assert yaml.safe_load("[5e-4, 0o17, 017, 1:30, no, on]") == [
        "5e-4",
        "0o17",
        15,
        90,
        False,
        True,
    ]


def test_nan() -> None:
    assert math.isnan(yaml12.parse("[.nan]").value[0])


def test_places() -> None:
    document = yaml12.parse("# a study\nspace:\n  lr: [1e-3,  0.01]\n  'width': 64 # wide\n")
    assert document.keys[("space", "width")] == yaml12.Place(4, 3, "'width'")
    assert document.values[("space", "width")] == yaml12.Place(4, 12, "64")
    assert document.values[("space", "lr")] == yaml12.Place(3, 7, "[1e-3,  0.01]")
    assert document.values[("space", "lr", 1)] == yaml12.Place(3, 15, "0.01")
    assert document.values[("space",)].text is None


def test_anchors() -> None:
    assert yaml12.parse("a: &x [1, 2]\nb: *x\n").value == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: &x [*x]\n", "f:1:4: this alias contains itself\n    value: &x [*x]"),
        (
            "a: *x\n",
            "f:1:4: this alias has no anchor\n    value: a: *x\n"
            "    hint: write the value itself, or quote text that begins with *",
        ),
        (
            "a: @x\n",
            "f:1:4: text cannot begin with this character\n    value: a: @x\n"
            "    hint: put the text in quotes",
        ),
        (
            "a: - b\n",
            "f:1:4: a list cannot begin here\n    value: a: - b\n"
            "    hint: begin it in the next line, or write [a, b]",
        ),
        (
            "a: b: c\n",
            "f:1:5: a colon does not fit here\n    value: a: b: c\n"
            "    hint: check the indentation here and the line above, or quote the text",
        ),
        (
            'a: "\\q"\n',
            'f:1:4: this backslash means nothing here\n    value: a: "\\q"\n'
            "    hint: use single quotes, or write two backslashes",
        ),
        ("a: !!int x\n", "f:1:4: this is not what its tag !!int says\n    value: !!int x"),
        (
            "a: {b: 1\nc: 2\n",
            "f:1:4: this mapping is not closed\n    value: a: {b: 1\n"
            "    hint: separate entries by commas and end with }",
        ),
        (
            "? [a]\n: b\n",
            "f:1:3: a key must be text\n    value: [a]\n    hint: put the key in quotes",
        ),
        ("a: " + "1" * 401, "f:1:4: the number is too long\n    value: " + "1" * 79 + "…"),
    ],
)
def test_refusals(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        yaml12.parse(text, file="f")
    assert str(caught.value) == error


def test_every_duplicate_is_reported() -> None:
    with pytest.raises(ConfigError) as caught:
        yaml12.parse("a: 1\nb: {c: 1, c: 2}\na: 3\n", file="f")
    assert [(p.line, p.column, p.path) for p in caught.value.problems] == [
        (2, 11, "b.c"),
        (3, 1, "a"),
    ]


def test_aliases_of_aliases_do_not_fill_the_memory() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)
    )
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        yaml12.parse(bomb)
    assert time.monotonic() - begun < 10


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(
        ["no", "on", "5e-4", "0o17", "1:30", "~", "<<", "=", "1_0", "- a", "a: b", "#"]
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(VALUES)
def test_what_is_written_reads_back(value: object) -> None:
    read = yaml12.parse(yaml12.dumps({"key": value})).value["key"]
    assert read == value
    assert repr(read) == repr(value)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text())
def test_written_text_is_text_for_yaml_1_1_too(value: object) -> None:
    assert yaml.safe_load(yaml12.dumps({"key": value}))["key"] == value


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet="ab1-:[]{}\"'#&*!|>%@` \n\t,?", max_size=30))
def test_any_text_is_read_or_refused_with_its_line(text: str) -> None:
    try:
        yaml12.parse(text, file="f")
    except ConfigError as error:
        assert all(problem.line and problem.column for problem in error.problems)
