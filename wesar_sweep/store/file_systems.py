"""Whether a path lies on a network file system, by the kernel's table of mounts.

SQLite's locks do not hold there: two hosts can write one page each of the same file, and the
database is lost. Files that one process appends to, or that are written whole, may lie there.
"""

from __future__ import annotations

import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = re.compile(
    r"nfs\d*|cifs|smb\d*|smbfs|lustre|lustre_lite|gpfs|beegfs\w*|fhgfs|ceph|afs|9p|pvfs2|orangefs"
    r"|panfs|wekafs|glusterfs|ncpfs|coda"
    r"|fuse\.(sshfs|glusterfs|glusterfs-fuse|ceph|ceph-fuse|beegfs|lustre|s3fs|gcsfuse|rclone"
    r"|juicefs|davfs|davfs2|curlftpfs|moosefs|mfs|dfs|blobfuse2?|cvmfs2)"
)


def network_file_system(path: Path, *, mountinfo: str | None = None) -> str | None:
    """The kind of network file system that a path lies on, such as ``nfs4``; None on a local disk.

    Args:
        path: It need not exist yet: its nearest folder that does counts.
        mountinfo: The table of mounts; None: this process's own. Where there is none, as on other
            systems than Linux, nothing is known and the answer is None.
    """
    if mountinfo is None:
        try:
            mountinfo = _MOUNTS.read_text()
        except OSError:
            return None
    where = path.resolve()
    found, kind = -1, ""
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split()
        if not separator or len(fields) < 5 or not after.split():
            continue
        point = Path(_unescaped(fields[4]))
        # Of several mounts on one point the last one is seen.
        if (where == point or point in where.parents) and len(point.parts) >= found:
            found, kind = len(point.parts), after.split()[0]
    return kind if _NETWORK.fullmatch(kind) else None


def _unescaped(text: str) -> str:
    """A field of the table: blanks and the like stand there in octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
