"""The command line on PostgreSQL: the same study, and its password nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import postgres_server
import psutil
import pytest

from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.outcomes import read_outcomes

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

STUDY = """
space: {lr: [1e-3, 3e-2, 1e-2]}
replicates: 2
model: {width: 12, depth: 1, heads: 2, context: 16}
training: {steps: 300, batch: 4, warmup: 4}
data: {source: synthetic, symbols: 32, length: 40000}
evaluation: {sequences: 8, every: 100}
"""

SECRETS = {
    postgres_server.PASSWORD.encode(),
    quote(postgres_server.PASSWORD, safe="").encode(),
    # In case a file breaks it up.
    b"s3cr",
}


def assert_no_secret(folder: Path) -> int:
    """Look into every file; how many there were."""
    files = 0
    for path in folder.rglob("*"):
        try:
            data = path.read_bytes() if path.is_file() else b""
        except FileNotFoundError:
            continue
        files += path.is_file()
        assert not [secret for secret in SECRETS if secret in data], path
    return files


def words(*parts: object) -> list[str]:
    return [sys.executable, "-m", "wesar_sweep", *map(str, parts)]


def test_a_study_on_postgres_from_run_to_status(
    tmp_path: Path, postgres: postgres_server.Server
) -> None:
    url = postgres.new_database()
    (tmp_path / "tiny.yaml").write_text(STUDY)
    (tmp_path / "sweep.yaml").write_text(
        f"storage: {url}\nheartbeat_grace_s: 5\nworkers: 2\ndevice: cpu\nslots: 1\n"
    )
    out = tmp_path / "results" / "tiny"
    directory = StudyDirectory(out)
    command = words("run", tmp_path / "tiny.yaml", "--on", tmp_path / "sweep.yaml", "--out", out)
    with (tmp_path / "said.txt").open("wb") as said:
        driver = subprocess.Popen(command, stdout=said, stderr=said)
        deadline = time.monotonic() + 120
        while not list(directory.outcomes_folder.glob("*.jsonl")):
            assert time.monotonic() < deadline and driver.poll() is None
            time.sleep(0.05)
        # While it runs: submitit's files are there, and the workers' arguments can be seen.
        assert assert_no_secret(out) > 5
        family = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
        arguments = " ".join(word for one in family for word in one.cmdline())
        assert "submitit" in arguments and "s3cr" not in arguments
        # Killed like this, the driver leaves its workers to notice.
        driver.kill()
        driver.wait()
    assert not directory.database_file.exists()
    assert json.loads(directory.storage_file.read_text())["heartbeat_grace_s"] == 5

    # The password by the environment, the place by the directory.
    clean = {key: value for key, value in os.environ.items() if key != "WESAR_STORAGE"}
    resumed = subprocess.run(
        words("resume", out, "--workers", 2, "--device", "cpu", "--slots", 1),
        env={**clean, "PGPASSWORD": postgres_server.PASSWORD},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "s3cr" not in resumed.stdout + resumed.stderr
    found = [(row.trial, row.seed) for row in read_outcomes(directory)]
    lines = sum(p.read_text().count("\n") for p in directory.outcomes_folder.glob("*.jsonl"))
    assert sorted(found) == [(trial, seed) for trial in range(3) for seed in range(2)]
    assert lines == 6

    status = subprocess.run(
        words("status", out, "--json"), env=clean, capture_output=True, text=True, check=True
    )
    facts = json.loads(status.stdout)
    assert facts["complete"] and facts["workers"] and not any(w["alive"] for w in facts["workers"])
    provenance = json.loads(directory.provenance_file.read_text())
    assert provenance["storage"] == json.loads(directory.storage_file.read_text())["url"]
    assert_no_secret(out)
    assert "s3cr" not in (tmp_path / "said.txt").read_text()


def test_control_a_password_in_a_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"..." + postgres_server.PASSWORD.encode())
    with pytest.raises(AssertionError):
        assert_no_secret(tmp_path)
