"""Pictures without a screen: which OpenGL is taken, and what is said where there is none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from spirl_ray.envs import offscreen
from spirl_ray.envs.offscreen import OffscreenCamera, load_mujoco
from spirl_ray.errors import SpirlError

_SCENE = """
<mujoco><worldbody>
  <light pos="2 0 2" dir="-1 0 -1"/><geom type="box" size=".1 .1 .1"/>
  <camera name="front" pos="1 0 0" xyaxes="0 1 0 0 0 1"/>
</worldbody></mujoco>
"""


def scene() -> tuple[Any, Any]:
    mujoco = load_mujoco()
    model = mujoco.MjModel.from_xml_string(_SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def test_a_rendered_image_shows_what_is_before_the_camera() -> None:
    model, data = scene()
    try:
        camera = OffscreenCamera(model, 48, 32, "front")
    except SpirlError as error:
        pytest.skip(str(error))
    image = camera.render(data)
    assert image.shape == (32, 48, 3)
    assert image[16, 24].min() > image[0, 0].max() + 30
    camera.close()
    camera.close()


@pytest.mark.parametrize(
    ("chosen", "egl", "expected"),
    [("", True, "egl"), ("", False, "osmesa"), ("osmesa", True, "osmesa"), ("EGL", False, "egl")],
)
def test_the_backend_is_the_chosen_one_or_egl_or_osmesa(
    chosen: str, egl: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = scene()
    asked: list[str] = []

    def refuse(name: str) -> Any:
        asked.append(name)
        raise ImportError("not here")

    monkeypatch.setenv("MUJOCO_GL", chosen)
    monkeypatch.setattr(offscreen, "_egl_has_a_display", lambda: egl)
    mujoco = load_mujoco()
    monkeypatch.setattr(offscreen, "load_mujoco", lambda: mujoco)
    monkeypatch.setattr(offscreen, "importlib", SimpleNamespace(import_module=refuse))
    with pytest.raises(SpirlError, match=f"OpenGL backend '{expected}' does not work here.*libosmesa6.*MUJOCO_GL"):
        OffscreenCamera(model, 8, 8, "front")
    assert asked == [f"mujoco.{expected}"]


def test_egl_without_its_library_has_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **kwargs: Any) -> Any:
        raise OSError("libEGL.so.1: cannot open shared object file")

    monkeypatch.setattr(offscreen.ctypes, "CDLL", missing)
    assert not offscreen._egl_has_a_display()


def test_the_sky_can_be_left_out() -> None:
    mujoco = load_mujoco()
    sky = '<asset><texture type="skybox" builtin="flat" rgb1="0 1 0" width="8" height="8"/></asset>'
    model = mujoco.MjModel.from_xml_string(_SCENE.replace("<worldbody>", f"{sky}<worldbody>"))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    corners = []
    for shown in (True, False):
        try:
            camera = OffscreenCamera(model, 32, 32, "front", sky=shown)
        except SpirlError as error:
            pytest.skip(str(error))
        corners.append(camera.render(data)[0, 0].tolist())
        camera.close()
    np.testing.assert_array_equal(corners[1], [0, 0, 0])
    assert corners[0][1] > 200
