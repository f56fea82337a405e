"""MuJoCo without a screen: the module itself, and images of a scene rendered by OpenGL on EGL or OSMesa."""

from __future__ import annotations

import atexit
import ctypes
import ctypes.util
import importlib
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spirl_ray.errors import SpirlError

_MAX_GEOMS = 1000
_MAX_DEVICES = 16
_EGL_PLATFORM_DEVICE = 0x313F  # EGL_PLATFORM_DEVICE_EXT of the EGL registry


def choose_backend() -> None:
    """Lets MuJoCo render on EGL where there is no screen and nothing else has been chosen.

    Environments that others wrote look at ``MUJOCO_GL`` when MuJoCo is imported.
    """
    if "DISPLAY" not in os.environ and "MUJOCO_GL" not in os.environ and ctypes.util.find_library("EGL"):
        os.environ["MUJOCO_GL"] = "egl"


def load_mujoco() -> Any:
    """Imports the mujoco module, only when it is needed: this takes a while, and most commands never simulate.

    Raises:
            SpirlError: the module does not load; if MUJOCO_GL names a backend that is missing, even the import fails.
    """
    try:
        return importlib.import_module("mujoco")
    except Exception as error:
        backend = os.environ.get("MUJOCO_GL", "")
        raise SpirlError(
            f"MuJoCo does not load ({error}); MUJOCO_GL is {backend!r}: install that OpenGL backend or unset it"
        ) from error


class OffscreenCamera:
    """A camera that renders a MuJoCo model, without shadows, reflections and multisampling, which are slow in software.

    The OpenGL backend is the one that ``MUJOCO_GL`` names, else EGL, or OSMesa where EGL finds no device.

    Args:
        model: an MjModel; its settings of offscreen quality are changed.
        width, height: size of an image in pixels.
        camera: name of a camera of the model, or an MjvCamera.
        sky: True renders the model's sky, if it has one; otherwise the background is black.

    Raises:
        SpirlError: the OpenGL backend does not work here.
    """

    def __init__(self, model: Any, width: int, height: int, camera: Any, *, sky: bool = True) -> None:
        self._mujoco = mujoco = load_mujoco()
        self._model = model
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 64
        self._gl, self._context = _open_context(mujoco, model, width, height)
        # A context freed after its backend has shut down raises in its destructor.
        atexit.register(self.close)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = int(sky)
        self._options = mujoco.MjvOption()
        self._camera = camera
        if isinstance(camera, str):
            self._camera = mujoco.MjvCamera()
            self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            self._camera.fixedcamid = model.camera(camera).id
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._pixels = np.zeros((height, width, 3), dtype=np.uint8)

    def render(self, data: Any) -> NDArray[np.uint8]:
        """Renders the scene in the state of an MjData, uint8 [height, width, 3]."""
        mujoco = self._mujoco
        self._gl.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._options, None, self._camera, everything, self._scene)
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._viewport, self._context)
        return self._pixels[::-1].copy()

    def close(self) -> None:
        """Frees the context; a second call does nothing."""
        if self._gl is None:
            return
        atexit.unregister(self.close)
        self._gl.make_current()
        self._context.free()
        self._gl.free()
        self._gl = None


def _open_context(mujoco: Any, model: Any, width: int, height: int) -> tuple[Any, Any]:
    """Opens an OpenGL context of the backend, and MuJoCo's context in it."""
    # Mesa would draw with a thread for each core; a process has one core here, and images are small.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    backend = os.environ.get("MUJOCO_GL", "").lower() or ("egl" if _egl_has_a_display() else "osmesa")
    try:
        gl = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
        gl.make_current()
        return gl, mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
    except Exception as error:  # each backend fails in its own way
        raise SpirlError(
            f"cannot render: OpenGL backend {backend!r} does not work here ({error}); install EGL or "
            "OSMesa (Debian: libegl1 libgl1-mesa-dri, or libosmesa6) and set MUJOCO_GL to egl or osmesa, "
            "or run without rendering"
        ) from error


def _egl_has_a_display() -> bool:
    """True where EGL can be initialised on some device.

    The library itself is asked in private, because once PyOpenGL has loaded EGL for the whole process, MuJoCo finds its
    functions there and can no longer use OSMesa.
    """
    try:
        egl = ctypes.CDLL("libEGL.so.1", mode=os.RTLD_LOCAL)
    except OSError:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    find_devices, find_display = (
        egl.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT")
    )
    if not find_devices or not find_display:
        return False
    pointer = ctypes.c_void_p
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, pointer, pointer)(find_devices)
    display_of = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(find_display)
    devices, count = (pointer * _MAX_DEVICES)(), ctypes.c_int()
    query(_MAX_DEVICES, ctypes.addressof(devices), ctypes.addressof(count))
    displays = [display_of(_EGL_PLATFORM_DEVICE, device, None) for device in devices[: count.value]]
    egl.eglInitialize.argtypes = [pointer, pointer, pointer]
    return any(display and egl.eglInitialize(display, None, None) for display in displays)
