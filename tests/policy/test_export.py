"""An exported policy says with onnxruntime what it says with PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_skills import random_observations, save_toy_policy, save_toy_skills, toy_model

from spirl_ray.config import TrainSettings
from spirl_ray.episodes.features import Feature, Features, ObjectSet
from spirl_ray.errors import SpirlError
from spirl_ray.policy import export
from spirl_ray.policy.export import ExportCard, export_policy
from spirl_ray.policy.policy import Policy, SkillChooser, load_policy
from spirl_ray.skills.execution import limited

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")

ROWS = 1000
MOST = 1e-5
NUMBERS: Features = {"state": Feature(shape=(4,)), "goal": Feature(shape=(2,), role="goal")}
IMAGES: Features = {
    "hand": Feature(shape=(3,), role="proprioception"),
    "view": Feature(shape=(8, 8, 1), role="image", frames=2),
    "blocks": Feature(shape=(5, 3), objects=ObjectSet(agent="hand", up=2, size=0.08)),
}
CASES: dict[str, tuple[str, Features, dict[str, Any], dict[str, Any], float | None]] = {
    "recurrent": ("open_loop", NUMBERS, {}, {}, None),
    "closed loop with a limit": ("closed_loop", NUMBERS, {}, {}, 2.0),
    "plan skills": ("plan", NUMBERS, {}, {}, None),
    "flow skills, residual on N(0, I)": ("flow", NUMBERS, {}, {"policy_head": "residual"}, None),
    "flat": ("identity", NUMBERS, {}, {}, None),
    "mixture head": ("closed_loop", NUMBERS, {}, {"policy_head": "mixture"}, None),
    "residual on a mixture, images and objects": (
        "closed_loop",
        IMAGES,
        {"prior": "mixture", "image_channels": 2},
        {"policy_head": "residual"},
        None,
    ),
    "residual beside a flow": ("open_loop", NUMBERS, {"prior": "flow"}, {"policy_head": "residual"}, None),
}


def made(folder: Path, case: str) -> Path:
    decoder, features, settings, train, limit = CASES[case]
    skills = save_toy_skills(folder / "skills", toy_model(decoder, features, **settings))
    chosen = TrainSettings(policy_init="scratch", **train)
    return save_toy_policy(folder / "policy", skills, features, chosen, latent_limit=limit)


def ran(folder: Path, graph: Any, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = runtime.InferenceSession(str(folder / graph.file), providers=["CPUExecutionProvider"])
    given = {entry.name: values[entry.name] for entry in session.get_inputs()}
    return dict(zip(graph.outputs, session.run(list(graph.outputs), given), strict=True))


def differences(policy: Policy, card: ExportCard, out: Path, rows: int) -> dict[str, float]:
    """The greatest difference between the graphs and PyTorch for each output, over random states.

    It is relative to the largest number of a row, where that is beyond 1: float32 has no finer sums of such numbers.
    """
    seen = random_observations(card.features, rows)
    choose, execution = policy.choose, policy.execution
    assert isinstance(choose, SkillChooser)
    with torch.inference_mode():
        chosen = choose(seen)
        weights, components = chosen.as_mixture()
        latent = chosen.mode()
        observed = None
        if execution.model.kind.observes != "nothing":
            observed = {name: seen[name].unsqueeze(1) for name in execution.model.spec.features}
        actions = execution.model.decode(observed, limited(latent, execution.latent_limit)).clamp(-1, 1)
    values = {f"observation.{name}": value.numpy() for name, value in seen.items()}
    expected = dict(
        zip(export.POLICY_OUTPUTS, (latent, weights, components.mean, components.log_std.exp()), strict=True)
    )
    found = ran(out, card.policy, values)
    found |= ran(out, card.decoder, {**values, "latent": latent.numpy()})
    assert found["actions"].shape == (rows, 1 if card.closed_loop else card.horizon, card.action_dim)
    assert np.ptp(found["actions"]) > 0.01

    def difference(name: str, value: np.ndarray) -> float:
        rest = tuple(range(1, value.ndim))
        scale = np.maximum(1.0, np.abs(value).max(axis=rest, keepdims=True))
        return float((np.abs(found[name] - value) / scale).max())

    return {name: difference(name, value.numpy()) for name, value in {**expected, "actions": actions}.items()}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_graphs_agree_with_pytorch(tmp_path: Path, case: str) -> None:
    policy, out = made(tmp_path, case), tmp_path / "out"
    card = export_policy(policy, out)
    far = {name: value for name, value in differences(load_policy(policy), card, out, ROWS).items() if value > MOST}
    assert far == {}
    read = ExportCard.model_validate(json.loads((out / "export.json").read_text()))
    assert read == card
    assert (card.horizon, card.latent_limit) == (1 if case == "flat" else 5, CASES[case][4])
    assert set(card.policy.inputs) | set(card.decoder.inputs) == {
        "latent",
        *(f"observation.{name}" for name in card.features),
    }
    assert sorted(path.name for path in out.iterdir()) == ["decoder.onnx", "export.json", "policy.onnx"]


@pytest.mark.slow
def test_graphs_of_a_trained_policy_agree_with_pytorch(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "artifacts" / "blocks"  # its latents are the largest ones that we have
    card = export_policy(folder, tmp_path / "out")
    found = differences(load_policy(folder), card, tmp_path / "out", ROWS)
    assert {name: value for name, value in found.items() if value > MOST} == {}


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    policy, out = made(tmp_path, "flat"), tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(SpirlError, match="out is there already"):
        export_policy(policy, out)
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(SpirlError, match=r"onnx and onnxscript.*spirl-ray\[onnx\]"):
        export_policy(tmp_path, tmp_path / "out")
