"""The decoder kind ``own``: a codec of the user's, named in the config, such as a frozen policy with a noise input.

``skills.decoder_options.codec`` is ``module:Class``, a subclass of `NoiseCodec` that is built from the `SkillSpec`. Its
other options are its own, except ``noise_dim``, the size of its noise; that is H times the width of an action if it is
left out.

The card of a skill artifact names the class, too, and somebody else may have written the card. So a module is imported
only if a config of this process has named the class (`trust`), or if the program has imported the module itself.
"""

from __future__ import annotations

import os
import sys

import torch

from spirl_ray.config import SkillSettings
from spirl_ray.errors import SpirlError
from spirl_ray.registry import TRUSTED_CODECS, named_object
from spirl_ray.skills.decoders import DecoderKind, NoiseCodec, register_decoder
from spirl_ray.skills.model import SkillModel
from spirl_ray.skills.spec import SkillSpec

_SETTING = "skills.decoder_options.codec"


def trust(settings: SkillSettings) -> None:
    """Lets this process and those that it starts import the class that a config names."""
    name = settings.decoder_options.get("codec")
    if isinstance(name, str):
        os.environ[TRUSTED_CODECS] = ",".join(dict.fromkeys([*_trusted(), name]))


def _trusted() -> list[str]:
    return [name for name in os.environ.get(TRUSTED_CODECS, "").split(",") if name]


def try_out(model: SkillModel) -> None:
    """Decodes one observation of zeros with a codec of the user's, and does nothing for other kinds.

    Raises:
        SpirlError: the codec raises, or does not give finite actions of the right shape.
    """
    spec = model.spec
    if spec.decoder != "own":
        return
    name, wanted = type(model.codec).__name__, [1, spec.horizon, spec.action_dim]
    seen = {
        feature: torch.zeros(1, 1, *value.observed_shape, dtype=torch.uint8 if value.is_image else torch.float32)
        for feature, value in spec.observed.items()
    }
    try:
        with torch.no_grad():
            actions = model.decode(seen, torch.zeros(1, spec.latent_dim))
        shape, finite = list(actions.shape), bool(actions.isfinite().all())
    except Exception as error:  # whatever a user's class raises
        raise SpirlError(f"{_SETTING}: {name} cannot decode: {type(error).__name__}: {error}.") from error
    if shape != wanted or not finite:
        raise SpirlError(f"{_SETTING}: {name} decodes to {shape}, which must be finite actions of the shape {wanted}.")


def _build(spec: SkillSpec) -> NoiseCodec:
    name = spec.settings.decoder_options.get("codec")
    if not isinstance(name, str) or ":" not in name:
        raise SpirlError(f"{_SETTING}: name your class, a subclass of NoiseCodec, as module:Class.")
    if name.partition(":")[0] not in sys.modules and name not in _trusted():
        raise SpirlError(
            f"The decoder of these skills is the class {name}, which is imported only if you trust it: set the "
            f"environment variable {TRUSTED_CODECS}={name}, or import its module before you load the skills."
        )
    found = named_object(name, _SETTING)
    if not isinstance(found, type) or not issubclass(found, NoiseCodec):
        raise SpirlError(f"{_SETTING}: {name} is not a subclass of spirl_ray.skills.decoders.NoiseCodec.")
    build: type[NoiseCodec] = found
    try:
        return build(spec)
    except Exception as error:  # whatever a user's class raises
        raise SpirlError(f"{_SETTING}: {name} cannot be made: {type(error).__name__}: {error}.") from error


def _noise_dim(settings: SkillSettings, action_dim: int) -> int:
    size = settings.decoder_options.get("noise_dim", settings.horizon * action_dim)
    if not isinstance(size, int) or size < 1:
        raise SpirlError(f"skills.decoder_options.noise_dim: the size of the noise is a whole number, not {size!r}.")
    return size


register_decoder(
    "own",
    DecoderKind(_build, "frozen policy", observes="start", noise=True, latent_dim=_noise_dim, takes_options=True),
)
