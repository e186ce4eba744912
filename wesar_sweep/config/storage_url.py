"""The URL of a study's database as people write it, taken apart once, its password in one place.

Shown, logged and kept in a study's directory is `StorageUrl.shown` alone. The password may also
stand where PostgreSQL's own tools look for it (PGPASSWORD, ~/.pgpass); this room never reads those.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from wesar_sweep.errors import ConfigError, Problem

STORAGE_VARIABLE = "WESAR_STORAGE"
"""Environment variable with a storage URL, for studies whose sweep file says none."""

ALLOWED = "null (SQLite in the results directory) or postgresql://user@host:port/database"

_SCHEMES = ("postgresql", "postgresql+psycopg", "postgres")
_SECRET = re.compile(r":(?!//)\S*@")
_SECRET_OPTION = re.compile(r"((?:ssl)?password)=[^&\s]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class StorageUrl:
    """A PostgreSQL database, and how to come in."""

    user: str
    """Empty: whom PostgreSQL's client takes by itself (PGUSER, else the account's name)."""
    host: str
    """Empty: as `user` (PGHOST, else the socket on this host)."""
    port: int | None
    database: str
    options: tuple[tuple[str, str], ...] = ()
    """Further words of the client, such as ``("sslmode", "verify-full")``."""
    password: str | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """The URL without its password: for people, logs and files."""
        return self._text("postgresql", self.user and quote(self.user, safe=""))

    @property
    def full(self) -> str:
        """The URL with its password, for the environment of workers alone."""
        return self._text("postgresql", self._credentials())

    @property
    def for_sqlalchemy(self) -> str:
        """The same with the driver's name."""
        return self._text("postgresql+psycopg", self._credentials())

    def same_place(self, other: StorageUrl) -> bool:
        """Whether both name one database, whoever comes in and by whatever options."""
        mine = (self.host, self.port or 5432, self.database)
        return mine == (other.host, other.port or 5432, other.database)

    def hide(self, text: str) -> str:
        """A text of somebody else, such as a driver's error, without this password in it."""
        text = redact(text)
        for secret in {self.password, quote(self.password or "", safe="")} - {None, ""}:
            text = text.replace(str(secret), "***")
        return text

    def _credentials(self) -> str:
        user = quote(self.user, safe="")
        return user if self.password is None else f"{user}:{quote(self.password, safe='')}"

    def _text(self, scheme: str, credentials: str) -> str:
        at = f"{credentials}@" if credentials else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        query = f"?{urlencode(self.options)}" if self.options else ""
        return f"{scheme}://{at}{host}{port}/{quote(self.database, safe='')}{query}"


def parse_storage_url(text: str, *, where: str = "storage") -> StorageUrl:
    """The database that a URL names.

    Args:
        text: As in a sweep file.
        where: Where it stands, for the message: ``storage`` or an environment variable.

    Raises:
        ConfigError: It is no URL of a PostgreSQL database; the message shows no password.
    """
    wrong = _refusal(text.strip())
    if wrong is not None:
        message, hint = wrong
        raise ConfigError(
            Problem(message, path=where, value=redact(text), allowed=ALLOWED, hint=hint)
        )
    parts = urlsplit(text.strip())
    return StorageUrl(
        user=unquote(parts.username or ""),
        host=unquote(parts.hostname or ""),
        port=parts.port,
        database=unquote(parts.path[1:]),
        options=tuple(parse_qsl(parts.query, keep_blank_values=True)),
        password=None if parts.password is None else unquote(parts.password),
    )


def redact(text: str) -> str:
    """A text without what stands where a URL has its password."""
    return _SECRET_OPTION.sub(r"\1=***", _SECRET.sub(":***@", text))


def _refusal(text: str) -> tuple[str, str | None] | None:
    """What is wrong with a URL and what to do, if anything is."""
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018
    except ValueError as error:
        # Its words may quote the password: a "#" or "/" in it ends up where the port is read.
        del error
        return "this cannot be read as a URL", "write %23 for # and %2F for / in a password"
    if parts.scheme == "sqlite":
        return (
            "a study's SQLite file always lies in its results directory",
            "leave storage away, and choose the directory with --out",
        )
    if parts.scheme not in _SCHEMES:
        return "studies are kept in SQLite or PostgreSQL, in no other database", None
    return _incomplete(parts)


def _incomplete(parts: SplitResult) -> tuple[str, str | None] | None:
    if not parts.path[1:] or "/" in parts.path[1:]:
        return "the URL does not name a database", "end it with / and the database's name"
    if parts.fragment:
        return "a # ends the URL", "write %23 for a # in a name or a password"
    secret = [key for key, _ in parse_qsl(parts.query) if "password" in key.lower()]
    if secret:
        return (
            f"{secret[0]} does not belong among the options",
            "put the password before the @, into PGPASSWORD, or into ~/.pgpass",
        )
    return None
