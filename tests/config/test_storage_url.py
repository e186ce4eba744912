"""The URL of a database: what is allowed, and that its password is shown nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from wesar_sweep.config import load_sweep
from wesar_sweep.config.storage_url import StorageUrl, parse_storage_url, redact
from wesar_sweep.config.sweep import Sweep
from wesar_sweep.errors import ConfigError

SECRET = "hush@/:#hush"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:hush@h:5433/d", "postgresql://u@h:5433/d"),
        ("postgresql+psycopg://u:hush@h/d", "postgresql://u@h/d"),
        ("postgres://h/d", "postgresql://h/d"),
        (" postgresql:///d ", "postgresql:///d"),
        ("postgresql://u:hush@[::1]:5/d?sslmode=verify-full", "postgresql://u@[::1]:5/d?sslmode=verify-full"),
        ("postgresql://a%40b:hush%40%2F%3A%23hush@h/d", "postgresql://a%40b@h/d"),
    ],
)  # fmt: skip
def test_what_is_allowed_and_what_is_shown(text: str, shown: str) -> None:
    url = parse_storage_url(text)
    assert url.shown == shown
    assert "hush" not in f"{url.shown}{url!r}{url}"
    again = parse_storage_url(url.full)
    assert (again, again.password) == (url, url.password)
    assert url.for_sqlalchemy.startswith("postgresql+psycopg://")


def test_a_password_of_odd_characters_comes_through() -> None:
    url = StorageUrl(user="u", host="h", port=None, database="d", password=SECRET)
    assert parse_storage_url(url.full).password == SECRET
    said = url.hide(f"cannot connect with {SECRET} or {url.full}")
    assert "hush" not in said and "cannot connect" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mysql://u:hush@h/d", "in no other database"),
        ("sqlite:///study.db", "SQLite file always lies in its results directory"),
        ("postgresql://u:hush@h", "does not name a database"),
        ("postgresql://u:hush@h/d/e", "does not name a database"),
        ("postgresql://u:hush#hush@h/d", "this cannot be read as a URL|does not name a database"),
        ("postgresql://u:/hush@h/d", "does not name a database"),
        ("postgresql://u:hush@h:port/d", "cannot be read as a URL"),
        ("postgresql://u@h/d?password=hush", "does not belong among the options"),
        ("postgresql:u:hush@h/d", "does not name a database"),
        ("u:hush@h/d", "in no other database"),
        ("", "in no other database"),
    ],
)
def test_what_is_refused_and_without_the_password(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_storage_url(text)
    assert "hush" not in str(caught.value)
    (problem,) = caught.value.problems
    assert problem.allowed is not None and "postgresql://" in problem.allowed


def test_two_urls_of_one_place() -> None:
    url = parse_storage_url("postgresql://u:hush@h/d")
    assert url.same_place(parse_storage_url("postgresql://other@h:5432/d?sslmode=require"))
    assert not url.same_place(parse_storage_url("postgresql://u@h/e"))


def test_in_a_sweep_file(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("storage: postgresql://u:hush@h/d\nheartbeat_grace_s: 5\n")
    sweep = load_sweep(path)
    assert (sweep.storage, sweep.heartbeat_grace_s) == ("postgresql://u:hush@h/d", 5.0)
    assert "hush" not in repr(sweep)
    assert Sweep().storage is None
    path.write_text("slots: 2\nstorage: mysql://u:hush@h/d\n")
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    said = str(caught.value)
    assert f"{path}:2:10: storage: " in said and "mysql://u:***@h/d" in said
    assert "hush" not in said
    path.write_text("storage: [postgresql://u:hush@h/d]\nheartbeat_grace_s: 0\n")
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    assert len(caught.value.problems) == 2 and "hush" not in str(caught.value)


def test_other_text_is_left_alone() -> None:
    assert redact("plain text, http://host/path") == "plain text, http://host/path"
