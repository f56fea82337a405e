"""The provenance of results: commit, package versions, hardware."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from spirl_ray.files.source import source_digest

_PACKAGES = ("spirl-ray", "ray", "torch", "gymnasium", "gymnasium-robotics", "mujoco", "minari", "pyarrow")
_GIGABYTE = 2**30
SHIPPED_COMMIT = "COMMIT"
"""The file in a package that a job has brought to a cluster, which holds the commit where the job was submitted."""


@functools.lru_cache(maxsize=1)
def commit() -> str:
    """The commit of the source tree from which this package runs, with "-dirty" if tracked files differ from it.

    For an installed wheel, even if its environment lies inside somebody else's repository, and for a folder that
    ``ray job submit`` has uploaded without its history, it is "unknown" with the digest of the code, which `spirl
    doctor` also shows. In a job of ``spirl submit``, it is the commit where the job was submitted.
    """
    here = Path(__file__).parent
    if _git(here, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        shipped = here.parent / SHIPPED_COMMIT
        if shipped.exists():
            return shipped.read_text(encoding="utf-8").strip()
        return f"unknown (code {source_digest(here.parent)})"
    head = _git(here, "rev-parse", "--short=12", "HEAD")
    if not head:
        return "unknown"
    changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return f"{head}-dirty" if changed else head


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of a git command; None if it fails or there is no git."""
    try:
        found = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def hardware() -> dict[str, str]:
    """The hardware of the driver's machine, without host names."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    found = {"cpu": model, "cores": str(os.cpu_count())}
    if "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / _GIGABYTE:.0f} GiB"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found["gpu"] = ", ".join(f"{gpus.count(name)} × {name}" for name in dict.fromkeys(gpus)) or "none"
    found["system"] = platform.system()
    return found
