"""The settings of a job on a cluster: what it takes along, what its driver gets, how long it may run."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, model_validator

from spirl_ray.settings import SettingPath, Settings

RESERVED_TAGS = ("experiment", "command", "env_vars", "time_limit", "job_name", "job_submission_id")
"""The names under which this package and Ray note something about a job, beside the user's tags."""
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def seconds_of(duration: str) -> float:
    """The seconds in a text such as ``90min``, ``12h`` or ``1.5d``.

    Raises:
        ValueError: the text is no positive duration.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h|d)", duration)
    if found is None or not float(found[1]):
        raise ValueError("must be a duration such as 90min, 12h or 2d (s, min, h, d)")
    return float(found[1]) * _SECONDS[found[2]]


def _duration(text: str) -> str:
    seconds_of(text)
    return text


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("must be the name of an environment variable alone; its value comes from the shell")
    if name.startswith("RAY_"):
        raise ValueError("belongs to Ray, which sets it itself on the nodes")
    return name


def _bytes(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, int | float) and value < 2**20):
        raise ValueError("must be an amount of memory such as 8GiB")
    return value


Duration = Annotated[str, AfterValidator(_duration)]
VariableName = Annotated[str, AfterValidator(_variable)]
Amount = Annotated[float, Field(ge=0, le=1_000_000)]


class DriverSettings(Settings):
    """The resources that the driver of a job occupies on its node, and the nodes that may be that one."""

    cpus: Amount = 0
    """Logical CPUs, beside those of env runners and training workers."""
    gpus: Amount = 0
    """GPUs for the learner, where that is in the driver."""
    memory: Annotated[ByteSize, BeforeValidator(_bytes)] | None = None
    """Memory that Ray counts, such as ``8GiB``."""
    resources: dict[str, Amount] = Field(default_factory=dict)
    """Resources that nodes declare, such as ``spirl_driver: 1``."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that the node must have, such as ``ray.io/node-group: driver``."""

    @property
    def asked(self) -> dict[str, float]:
        """The resources by the names that Ray has for them, without those of which nothing is asked."""
        every = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory or 0), **self.resources}
        return {name: amount for name, amount in every.items() if amount}


class SubmitSettings(Settings):
    """``ship`` concerns every process that works on the experiment, the rest only its jobs (``spirl submit``)."""

    ship: tuple[SettingPath, ...] = ()
    """Folders and files of the user's own code, importable by their names in every process: here, in Ray's workers, and
    in jobs, to which they are uploaded."""
    pip: tuple[str, ...] = ()
    """Packages that Ray installs on each node for this job, as pip's requirements."""
    env_vars: tuple[VariableName, ...] = ()
    """Names of environment variables, whose values are taken from the shell that submits."""
    image: str | None = None
    """The container image in which Ray starts the job's processes, where its nodes have podman."""
    driver: DriverSettings = DriverSettings()
    time_limit: Duration | None = None
    """The time after which the job stops as after a SIGTERM, such as ``12h``."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Words about the job, which ``spirl jobs`` and the Ray dashboard show."""

    @model_validator(mode="after")
    def _fits_together(self) -> SubmitSettings:
        for name in RESERVED_TAGS:
            if name in self.tags:
                raise ValueError(f"tags: {name} is noted for every job; choose another name")
        clashes = [name for name in ("ship", "pip", "env_vars") if self.image and getattr(self, name)]
        if clashes:
            raise ValueError(
                f"image: Ray brings nothing else into a container, so {', '.join(clashes)} cannot be used with it. Put "
                "code and packages into the image, and give secrets to the nodes"
            )
        return self
