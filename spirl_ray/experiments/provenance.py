"""Where results come from: commit, package versions, hardware, command."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("spirl-ray", "ray", "torch", "gymnasium", "gymnasium-robotics", "mujoco", "minari", "pyarrow")


def commit() -> str:
    """The commit of the source tree this package runs from, or "unknown" for an installed wheel."""
    found = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def hardware() -> dict[str, str]:
    """What the driver's machine is; no host names."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {"cpu": model, "cores": str(os.cpu_count()), "gpu": gpu, "system": platform.system()}


def command_line() -> str:
    """The running command, as a shell would take it."""
    return shlex.join(["spirl", *sys.argv[1:]])
