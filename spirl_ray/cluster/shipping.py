"""The files that a job uploads to a cluster: this package, the user's own code and the resolved config, and nothing
else."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import spirl_ray
from spirl_ray.config import Experiment
from spirl_ray.config_file import to_yaml
from spirl_ray.config_submit import SubmitSettings
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.pipeline.provenance import SHIPPED_COMMIT, commit
from spirl_ray.pipeline.user_code import shipped_files, shipped_paths

LIMIT_BYTES = 100 * 2**20
"""The size in bytes of the largest upload that Ray's dashboard accepts; it stores files in the package without
compressing them."""
_PACKAGE = Path(spirl_ray.__file__).parent
_BIGGEST = 5


def check_size(files: Sequence[Path], limit: int = LIMIT_BYTES) -> None:
    """Checks that an upload is not larger than Ray accepts.

    Args:
        files: all files of the upload.
        limit: most bytes.

    Raises:
        SpirlError: the upload is too large; the message names the biggest files.
    """
    sizes = sorted(((path.stat().st_size, path) for path in files), key=lambda pair: pair[0], reverse=True)
    total = sum(size for size, _ in sizes)
    if total <= limit:
        return
    listing = "\n".join(f"  {size / 2**20:,.1f} MiB  {path}" for size, path in sizes[:_BIGGEST])
    raise SpirlError(
        f"The job would carry {total / 2**20:,.1f} MiB, Ray takes {limit / 2**20:,.0f} MiB. Nothing was uploaded. "
        f"The biggest files are\n{listing}\nData and results do not belong in the package: move them to the storage "
        "that every node sees."
    )


def as_on_cluster(experiment: Experiment) -> Experiment:
    """An experiment as its job runs it: on the cluster that it was submitted to, whatever the config says, and with the
    user's code beside it."""
    ray = experiment.ray.model_copy(update={"address": None})
    return experiment.model_copy(update={"ray": ray, "submit": SubmitSettings()})


def config_of(experiment: Experiment) -> str:
    """The text of ``experiment.yaml`` in a job."""
    return to_yaml(as_on_cluster(experiment))


def stage(
    folder: Path, experiment: Experiment | None = None, package: Path = _PACKAGE, config: str | None = None
) -> None:
    """Makes the working folder of a job.

    Args:
        folder: receives the package and, with an experiment, ``experiment.yaml``.
        experiment: the settings of the job, overrides applied.
        package: the source of the code.
        config: the text of ``experiment.yaml``, where it is more than the experiment, as for a sweep.

    Raises:
        SpirlError: the upload is larger than Ray accepts; nothing is copied then.
    """
    own = [] if experiment is None else shipped_paths(experiment.submit.ship)
    places = {file: Path("spirl_ray") / file.relative_to(package) for file in shipped_files(package)}
    places |= {file: file.relative_to(path.parent) for path in own for file in shipped_files(path)}
    check_size(list(places))
    for file, place in places.items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    # There is no repository where the job runs, but its results name the commit.
    (folder / "spirl_ray" / SHIPPED_COMMIT).write_text(commit(), encoding="utf-8")
    if experiment is not None:
        (folder / layout.JOB_CONFIG).write_text(config or config_of(experiment), encoding="utf-8")
