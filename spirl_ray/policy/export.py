"""Policies as ONNX graphs, which act with NumPy and onnxruntime alone.

An export is a folder with two graphs and a card. ``policy.onnx`` maps the features of an observation to a latent, and
``decoder.onnx`` maps a latent (and the features that the decoder observes: those of each step in a closed loop, of the
first for flow skills) to primitive actions in [-1, 1]. Normalisation, the limit of latents and the limit of actions are
inside the graphs; ``export.json`` says them as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from spirl_ray import __version__
from spirl_ray.config import EnvironmentSettings, Settings
from spirl_ray.episodes.actions import ActionRange
from spirl_ray.episodes.features import Feature, Features
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import partial_folder, write_json
from spirl_ray.policy.policy import SkillChooser, load_policy, read_policy_card
from spirl_ray.skills.artifact import FeatureStatistics
from spirl_ray.skills.execution import limited
from spirl_ray.skills.model import SkillModel

FORMAT_VERSION = 1
_OPSET = 18
_BATCH = "batch"
OBSERVATION = "observation"
"""What the names of inputs that are features begin with."""
POLICY_OUTPUTS = ("latent", "weights", "means", "deviations")
"""The mode [B, Z] of pi(z | s), and the Gaussian mixture that it is: weights [B, K], components [B, K, Z]."""


class Graph(Settings):
    """One ONNX graph of an export."""

    file: str
    inputs: tuple[str, ...]
    """The inputs [B, …] by name: ``observation.FEATURE``, and ``latent``."""
    outputs: tuple[str, ...]
    sha256: str


class ExportCard(Settings):
    """The contents of ``export.json``."""

    format_version: int
    environment: EnvironmentSettings
    """The environment in which the policy was trained."""
    method: str
    seed: int
    env_steps: int
    features: dict[str, Feature]
    """The features that the graphs observe: images uint8 [B, frames, height, width, channels], all else float32."""
    horizon: int
    """H: a new latent is due after so many actions."""
    closed_loop: bool
    """True where the decoder runs at every step and returns one action; False where it returns all H at once."""
    latent_dim: int
    latent_limit: float | None
    """Latents are ``limit * tanh(.)`` of the chosen ones; the decoder's graph does this."""
    action_dim: int
    actions: ActionRange | None
    """The range, in units of the environment, that actions in [-1, 1] stand for; None is [-1, 1]."""
    normalisation: dict[str, FeatureStatistics]
    """The statistics of the data by which the graphs standardise features."""
    policy: Graph
    decoder: Graph
    policy_sha256: str
    """The hash of the parameters from which the graphs were made."""
    package_version: str


class _PolicyGraph(nn.Module):
    """The policy over a sequence of values in the order of ``names``."""

    def __init__(self, chooser: SkillChooser, names: Sequence[str]) -> None:
        super().__init__()
        self.chooser, self.names = chooser, names

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        distribution = self.chooser(dict(zip(self.names, values, strict=True)))
        weights, components = distribution.as_mixture()
        return distribution.mode(), weights, components.mean, components.log_std.exp()


class _DecoderGraph(nn.Module):
    """The decoder over a latent [B, Z] and the values that it observes, in the order of ``names``."""

    def __init__(self, model: SkillModel, latent_limit: float | None, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.latent_limit, self.names = model, latent_limit, names

    def forward(self, *inputs: Tensor) -> Tensor:
        latent, *values = inputs
        observations = {name: value.unsqueeze(1) for name, value in zip(self.names, values, strict=True)}
        return self.model.decode(observations or None, limited(latent, self.latent_limit)).clamp(-1.0, 1.0)


def export_policy(folder: str | Path, out: Path) -> ExportCard:
    """Writes a policy as ONNX graphs into a new folder, with ``export.json``.

    Args:
        folder: folder of a policy.
        out: folder to write; it must be empty or not exist.

    Raises:
        SpirlError: the policy cannot be read, ``out`` holds something, or onnx is not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise SpirlError(f"The export needs {' and '.join(missing)}: pip install 'spirl-ray[onnx]'.")
    folder = Path(folder)
    card, policy = read_policy_card(folder), load_policy(folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SpirlError(f"{out} is there already, and nothing was written. Name a new folder.")
    execution, chooser = policy.execution, policy.choose
    assert isinstance(chooser, SkillChooser)
    model, spec = execution.model, execution.model.spec
    seen = chooser.observer.needed
    followed = [] if model.kind.observes == "nothing" else list(spec.observed)
    statistics = model.statistics
    latent = torch.zeros(2, spec.latent_dim)
    with partial_folder(out) as partial:
        written = ExportCard(
            format_version=FORMAT_VERSION,
            features={name: policy.features[name] for name in policy.features if name in {*seen, *followed}},
            horizon=spec.horizon,
            closed_loop=model.kind.closed_loop,
            latent_dim=spec.latent_dim,
            action_dim=spec.action_dim,
            actions=spec.actions,
            normalisation={
                name: FeatureStatistics(mean=statistics.mean[name].tolist(), std=statistics.std[name].tolist())
                for name in statistics.names
                if name in {*seen, *followed}
            },
            policy=_write_graph(
                _PolicyGraph(chooser, seen),
                _examples(seen, policy.features),
                partial / layout.EXPORT_POLICY,
                POLICY_OUTPUTS,
            ),
            decoder=_write_graph(
                _DecoderGraph(model, execution.latent_limit, followed),
                {"latent": latent, **_examples(followed, policy.features)},
                partial / layout.EXPORT_DECODER,
                ("actions",),
            ),
            policy_sha256=card.sha256,
            package_version=__version__,
            **{name: getattr(card, name) for name in ("environment", "method", "seed", "env_steps", "latent_limit")},
        )
        write_json(partial / layout.EXPORT_CARD, written.model_dump(mode="json"))
    return written


def _examples(names: Sequence[str], features: Features) -> dict[str, Tensor]:
    """Two rows of each feature by the name of its input, because a batch of one would be taken for a constant."""
    dtypes = {name: torch.uint8 if features[name].is_image else torch.float32 for name in names}
    shapes = {name: features[name].observed_shape for name in names}
    # With a prefix, because a graph's own values have names such as ``view``, and an output is called ``actions``.
    return {f"{OBSERVATION}.{name}": torch.zeros(2, *shapes[name], dtype=dtypes[name]) for name in names}


def _write_graph(module: nn.Module, inputs: dict[str, Tensor], path: Path, outputs: Sequence[str]) -> Graph:
    """Writes a module as a graph whose inputs and outputs have names, for batches of any size."""
    each = {0: torch.export.Dim(_BATCH, min=1, max=2**20)}
    values = tuple(inputs.values())
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            values,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=(tuple(each for _ in values),),  # a module's arguments are one sequence
            opset_version=_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        assert program is not None
        shapes = {value.name: value.shape for value in program.model.graph.inputs}
        fixed = [name for name, shape in shapes.items() if shape is not None and isinstance(shape[0], int)]
        if fixed:
            raise SpirlError(
                f"{path.name}: the graph takes {fixed[0]} in batches of one size alone. "
                "In networks of your own, use operations that torch.export traces for batches of any size."
            )
        program.save(str(path), external_data=False)
    return Graph(
        file=path.name,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter from printing; what goes wrong it raises."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
