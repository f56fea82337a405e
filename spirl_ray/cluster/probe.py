"""The probe of one node. It is sent by value, so that it also answers where this package is missing or different.

Nothing may be imported at the top but the standard library, Ray, and what is sent by value as well.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from spirl_ray.files.source import source_digest

_PATIENCE_S = 5.0
_GPU_PROGRAM = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"


class NodeProbe:
    """An actor that answers for the node on which it runs."""

    def __init__(self, gpus: float) -> None:
        self.gpus = gpus

    def clock(self) -> float:
        """The seconds since the epoch on this node's clock."""
        return time.time()

    def versions(self) -> dict[str, str]:
        """The versions of Python, packages and this package's code; "not installed" for what is missing."""
        from importlib.metadata import PackageNotFoundError, version

        found = {"python": platform.python_version()}
        for name in ("ray", "torch", "spirl-ray"):
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "not installed"
        spec = importlib.util.find_spec("spirl_ray")
        if spec is not None and spec.origin is not None:
            # A job brings the package itself, which then need not be installed.
            if found["spirl-ray"] == "not installed":
                found["spirl-ray"] = "shipped"
            found["spirl-ray"] += f" ({source_digest(Path(spec.origin).parent)})"
        return found

    def import_problem(self) -> str | None:
        """The first of the package's heavy modules that does not import here, and why; None if all do."""
        for name in ("spirl_ray.envs.kitchen.env", "spirl_ray.pipeline.training", "spirl_ray.skills.pretrain"):
            try:
                importlib.import_module(name)
            except Exception as error:
                return f"{name}: {type(error).__name__}: {error}"
        return None

    def gpu_problem(self) -> str | None:
        """The reason why PyTorch cannot use the GPUs that Ray counts on this node, or None."""
        if not self.gpus:
            return None
        # In its own process, because Ray hides GPUs from workers that did not ask for one.
        environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        done = subprocess.run(
            [sys.executable, "-c", _GPU_PROGRAM], capture_output=True, text=True, env=environment, check=False
        )
        seen = int(done.stdout.strip() or 0) if done.returncode == 0 else 0
        return None if seen >= self.gpus else f"Ray counts {self.gpus:g} GPUs, PyTorch sees {seen}"

    def output_problem(self, folder: str, content: str, own: str) -> str | None:
        """Reads the driver's file in ``folder`` and writes another file there; returns the problem, or None.

        Args:
            folder: folder that the driver has made.
            content: what the driver wrote into ``driver``.
            own: name of the file to write.
        """
        file = Path(folder) / "driver"
        deadline = time.monotonic() + _PATIENCE_S
        # Network file systems may show a new file a little later.
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        try:
            if file.read_text() != content:
                return "reads other bytes than the driver wrote"
            (Path(folder) / own).write_text(own)
        except FileNotFoundError:
            return "does not see what the driver wrote there"
        except OSError as error:
            return f"{error.strerror} (as user {os.getuid()})"
        return None

    def storage_problem(self, uri: str, own: str) -> str | None:
        """Writes a file named ``own`` to ``uri``, reads it again and deletes it; returns the problem, or None."""
        try:
            from pyarrow import fs

            remote, root = fs.FileSystem.from_uri(uri)
            file = f"{root.rstrip('/')}/.doctor-{own}"
            if remote.type_name in ("local", "hdfs"):
                remote.create_dir(root, recursive=True)
            with remote.open_output_stream(file) as sink:
                sink.write(own.encode())
            with remote.open_input_stream(file) as source:
                read = source.read()
            remote.delete_file(file)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None if read == own.encode() else "reads other bytes than it wrote"

    def asked(self, folder: str | None, uri: str | None, content: str, own: str) -> dict[str, Any]:
        """Returns everything except the clock, in one answer."""
        return {
            "versions": self.versions(),
            "import": self.import_problem(),
            "gpu": self.gpu_problem(),
            "output": None if folder is None else self.output_problem(folder, content, own),
            "storage": None if uri is None else self.storage_problem(uri, own),
        }
