"""The config with which ``spirl init`` begins an experiment, filled in by a look at the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from spirl_ray.config_environment import ActionSettings, EnvironmentSettings
from spirl_ray.envs.inspection import EnvironmentInspection


def starting_config(name: str, settings: EnvironmentSettings, found: EnvironmentInspection | None) -> str:
    """A commented config; for an environment, it is filled in with what was found.

    Args:
        name: name of the experiment.
        settings: how the environment is made.
        found: what `inspect_environment` found; None where there are data alone, from which skills can be learned.
    """
    environment = _NO_ENVIRONMENT if found is None else _environment(settings, found)
    return _TEMPLATE.format(name=name, environment=environment, ship=_ship(settings))


def _environment(settings: EnvironmentSettings, found: EnvironmentInspection) -> str:
    kwargs = f"kwargs: {_in_one_line(settings.kwargs)}" if settings.kwargs else "# kwargs: {}"
    return f"""\
env:
  id: {settings.id}
  {kwargs} # the arguments of its constructor
  max_episode_steps: {found.spec.max_episode_steps}

# its own actions: {found.own_actions}
{interface_yaml(settings, found)}"""


def interface_yaml(settings: EnvironmentSettings, found: EnvironmentInspection) -> str:
    """The ``interface`` part of a config as YAML, with comments."""
    spec = found.spec
    if not spec.keys:
        return "# The environment is registered with its features, so nothing has to be said of its interface.\n"
    groups: dict[str, list[str]] = {"observation": [], "goal": [], "image": []}
    for feature_name, feature in spec.features.items():
        group = feature.role if feature.role in groups else "observation"
        groups[group].append(feature_name)
    own = settings.interface
    lines = ["interface:"]
    if own.imports:
        lines.append(f"  imports: {_in_one_line(list(own.imports))}")
    keys = [spec.keys[n] for n in groups["observation"]]
    lines.append(f"  observation: {_in_one_line(keys)} # skills, prior, policy and critics observe these")
    keys = [spec.keys[n] for n in groups["goal"]]
    lines.append(f"  goal: {_in_one_line(keys)} # policy and critics observe these, skills do not")
    if groups["image"]:
        lines.append("  images:")
        for feature_name in groups["image"]:
            (height, width, channels), frames = spec.features[feature_name].shape, spec.features[feature_name].frames
            grey = "true" if channels == 1 else "false"
            size = f"[{height}, {width}]"
            lines.append(
                f"    {feature_name}: {{key: {spec.keys[feature_name]}, size: {size}, frames: {frames}, grey: {grey}}}"
            )
    else:
        lines.append("  images: {} # such as {front: {key: pixels, size: 64, frames: 2}}")
    if found.left_out:
        lines.append(f"  # left out: {', '.join(found.left_out)}")
    if own.action != ActionSettings():
        lines.append(f"  action: {_in_one_line(own.action.model_dump(mode='json'))}")
    lines.append(f"  # success: {found.success}")
    lines.append(f"  success: {own.success or 'null'} # info.KEY, terminated, return >= X, or none")
    if found.info_keys:
        lines.append(f"  # info holds {', '.join(found.info_keys)}")
    low, high = found.rewards
    lines.append(f"  # random steps had rewards from {low:.3g} to {high:.3g}")
    lines.append(f"  reward: {own.reward} # or success, or success - 1")
    if own.completed is not None:
        lines.append(f"  completed: {own.completed}")
    if own.position_target is not None:
        lines.append(f"  position_target: {_in_one_line(own.position_target.model_dump(mode='json'))}")
    return "\n".join(lines) + "\n"


def _in_one_line(values: Any) -> str:
    return yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=float("inf")).strip()


def _ship(settings: EnvironmentSettings) -> str:
    """The part ``submit``; it names the module of the environment if that is in the current folder."""
    module = (settings.id or "").rpartition(":")[0].partition(".")[0]
    for own in (Path(module), Path(f"{module}.py")):
        if module and own.exists():
            return f"submit:\n  ship: [./{own}] # your own code, which travels to every process"
    what = "folders and files of your own code that the environment or the data need"
    return f"# submit:\n#   ship: [./my_package] # {what}"


_NO_ENVIRONMENT = """\
# Without an environment, skills are learned from data alone (spirl pretrain). `spirl init NAME --env ID` fills this in.
# env:
#   id: gymnasium_robotics:AdroitHandDoor-v1 # a Gymnasium id, module:Id, or package.module:callable
"""
_TEMPLATE = """\
# An experiment of your own. docs/configuration.md explains every setting; those that are left out have their defaults.
#   spirl env check {name}.yaml               # what the environment holds, and how it is read
#   spirl data import {name}.yaml --dry-run   # what your files hold, and how they are read
#   spirl run {name}.yaml                     # skills, policy, evaluation, report
name: {name}
methods: [spirl_cl] # spirl, ssp, flat_prior, bc_sac, sac; several are compared
seeds: [0]

{environment}
data:
  sources: # one or several; docs/data.md has the formats: minari, npz, hdf5, lerobot, parquet, python, folder
    - {{type: minari, id: NAME/OF/DATASET-v0}}
    # - {{type: npz, path: demonstrations.npz}}
  # actions_outside: clip # where recorded actions may leave the range

skills:
  horizon: 10
  beta: 0.002 # lower: a latent holds more, and the prior has a harder task; the report tells which way to go

pretrain:
  updates: 8000
  optimizer: adam
  cosine_decay: true
  warmup_updates: 0

train:
  env_steps: 200000
  target_divergence: 4.0 # how far the policy may move away from the prior, in nats per decision
  initial_alpha: 0.1
  alpha_lr: 0.001
  warmup_decisions: 500
  critic_layers: 3
  critic_layer_norm: true
  evaluate_every: 20000

{ship}
"""
