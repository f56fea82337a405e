"""The digest of a package's code. It needs the standard library alone, because `spirl doctor` sends it to nodes."""

from __future__ import annotations

import hashlib
from pathlib import Path


def source_digest(package: Path) -> str:
    """Returns eight hex digits that change with any line of the package's Python files."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]
