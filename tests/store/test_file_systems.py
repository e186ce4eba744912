"""Which file systems are a network's, by invented tables of mounts and by this host's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from wesar_sweep.store.file_systems import network_file_system


def table(*mounts: tuple[str, str]) -> str:
    lines = [
        f"{number} 1 0:{number} / {point} rw,relatime shared:{number} - {kind} source rw"
        for number, (point, kind) in enumerate(mounts, start=20)
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "kind",
    ["nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "9p", "fuse.sshfs", "afs"],
)
def test_a_network_is_known(kind: str) -> None:
    mounts = table(("/", "ext4"), ("/scratch", kind))
    assert network_file_system(Path("/scratch/me/results"), mountinfo=mounts) == kind
    assert network_file_system(Path("/scratch"), mountinfo=mounts) == kind
    assert network_file_system(Path("/scratchy/results"), mountinfo=mounts) is None


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuseblk"])
def test_a_local_disk_is_not(kind: str) -> None:
    assert network_file_system(Path("/data/x"), mountinfo=table(("/", kind))) is None


def test_the_nearest_and_the_last_mount_counts() -> None:
    mounts = table(("/", "ext4"), ("/home", "nfs4"), ("/home/me/fast", "xfs"))
    assert network_file_system(Path("/home/me"), mountinfo=mounts) == "nfs4"
    assert network_file_system(Path("/home/me/fast/results"), mountinfo=mounts) is None
    mounts = table(("/", "nfs4"), ("/tmp", "ext4"), ("/tmp", "nfs"))
    assert network_file_system(Path("/tmp/x"), mountinfo=mounts) == "nfs"


def test_blanks_and_torn_lines() -> None:
    mounts = table(("/", "ext4"), (r"/my\040disk", "cifs")) + "torn\n25 1 0:3 / /torn -"
    assert network_file_system(Path("/my disk/results"), mountinfo=mounts) == "cifs"


def test_a_link_is_followed(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "link").symlink_to(there)
    mounts = table(("/", "ext4"), (str(there.resolve()), "nfs"))
    assert network_file_system(tmp_path / "link" / "results", mountinfo=mounts) == "nfs"


def test_the_temporary_folder_of_this_host(tmp_path: Path) -> None:
    assert network_file_system(tmp_path) is None
