"""A PostgreSQL server of the tests' own: in a temporary folder, on a free port of the loopback.

The server refuses to run as root; there it runs as the account that the package made for it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from pathlib import Path
from urllib.parse import quote

PASSWORD = "s3cr#t/p@ss:wörd"
"""Of the role; all that a URL may trip over, and found nowhere unless something wrote it."""


def binaries() -> Path | None:
    """Where initdb and pg_ctl are: Debian puts them outside of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return None if on_path is None else Path(on_path).parent


def missing() -> str | None:
    """Why there can be no server here; None where there can."""
    if binaries() is None:
        return "PostgreSQL is not installed (Debian: apt-get install postgresql)"
    if os.getuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "PostgreSQL cannot run as root, and there is no account postgres"
    try:
        import psycopg
    except ImportError:
        return "psycopg is not installed (pip install 'wesar-sweep[postgres]')"
    del psycopg
    return None


def certify(folder: Path) -> None:
    """Make a key and a certificate that it signs itself, server.key and server.crt."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", folder / "server.key", "-out", folder / "server.crt"),
        ],
        check=True,
        capture_output=True,
    )
    (folder / "server.key").chmod(0o600)


class Server:
    """A running server; `stop` and `start` as an administrator has them.

    Args:
        fsync: Have commits reach the disk, as a server that is measured must.
        tls: Let only encrypted connections in, by a certificate of its own for 127.0.0.1.
    """

    def __init__(self, *, fsync: bool = False, tls: bool = False) -> None:
        found = binaries()
        assert found is not None, "asked before: missing()"
        self._binaries = found
        # Not in pytest's folder: the server's account cannot enter it.
        self.folder = Path(tempfile.mkdtemp(prefix="wesar-pg-"))
        self._data = self.folder / "data"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        secret = self.folder / "password"
        secret.write_text(PASSWORD + "\n")
        secret.chmod(0o644)
        self._run(
            "initdb", "-D", self._data, "-U", "tester", "-A", "scram-sha-256",
            f"--pwfile={secret}", "-E", "UTF8", "--no-locale", "--no-sync",
        )  # fmt: skip
        secret.unlink()
        with (self._data / "postgresql.conf").open("a") as settings:
            settings.write(
                f"fsync = {'on' if fsync else 'off'}\nmax_connections = 100\n"
                f"listen_addresses = '127.0.0.1'\n"
                f"port = {self.port}\nunix_socket_directories = '{self.folder}'\n"
            )
        if tls:
            self._require_tls()
        self.start()

    @property
    def certificate(self) -> Path:
        """What clients must trust."""
        return self.folder / "server.crt"

    def _require_tls(self) -> None:
        certify(self.folder)
        if os.getuid() == 0:
            for name in ("server.crt", "server.key"):
                shutil.chown(self.folder / name, "postgres", "postgres")
        with (self._data / "postgresql.conf").open("a") as settings:
            settings.write(
                f"ssl = on\nssl_cert_file = '{self.folder}/server.crt'\n"
                f"ssl_key_file = '{self.folder}/server.key'\n"
            )
        (self._data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")

    def url(self, database: str, *, password: bool = True) -> str:
        """The URL of a database, with the password or without."""
        secret = f":{quote(PASSWORD, safe='')}" if password else ""
        return f"postgresql://tester{secret}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Make a database; its URL."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.say(f"CREATE DATABASE {name}")
        return self.url(name)

    def say(self, statement: str, *, database: str = "postgres") -> list[tuple[object, ...]]:
        """Execute a statement."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        log = self.folder / "log"
        self._run("pg_ctl", "-D", self._data, "-l", log, "-w", "-t", "60", "start")

    def stop(self, *, mode: str = "fast") -> None:
        self._run("pg_ctl", "-D", self._data, "-w", "-t", "60", "-m", mode, "stop")

    def remove(self) -> None:
        self.stop(mode="immediate")
        shutil.rmtree(self.folder)

    def _run(self, program: str, *words: object) -> None:
        command = [str(self._binaries / program), *map(str, words)]
        if os.getuid() == 0:
            command = [
                "setpriv",
                "--reuid=postgres",
                "--regid=postgres",
                "--clear-groups",
                *command,
            ]
        # What pg_ctl starts keeps its standard streams: a pipe would never end.
        said = self.folder / f"{program}.txt"
        with said.open("wb") as stream:
            done = subprocess.run(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
            )
        if done.returncode:
            log = self.folder / "log"
            tail = log.read_text()[-2000:] if log.exists() else ""
            raise RuntimeError(f"{program} failed: {said.read_text()}{tail}")
