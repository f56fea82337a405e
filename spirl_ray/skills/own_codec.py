"""The decoder kind ``own``: a codec of the user's, named in the config, such as a frozen policy with a noise input.

``skills.decoder_options.codec`` is ``module:Class``, a subclass of `NoiseCodec` that is built from the `SkillSpec`. Its
other options are its own, except ``noise_dim``, the size of its noise; that is H times the width of an action if it is
left out.
"""

from __future__ import annotations

from spirl_ray.config import SkillSettings
from spirl_ray.errors import SpirlError
from spirl_ray.registry import named_object
from spirl_ray.skills.decoders import DecoderKind, NoiseCodec, register_decoder
from spirl_ray.skills.spec import SkillSpec

_SETTING = "skills.decoder_options.codec"


def _build(spec: SkillSpec) -> NoiseCodec:
    name = spec.settings.decoder_options.get("codec")
    if not isinstance(name, str):
        raise SpirlError(f"{_SETTING}: name your class, a subclass of NoiseCodec, as module:Class.")
    found = named_object(name, _SETTING)
    if not isinstance(found, type) or not issubclass(found, NoiseCodec):
        raise SpirlError(f"{_SETTING}: {name} is not a subclass of spirl_ray.skills.decoders.NoiseCodec.")
    return found(spec)


def _noise_dim(settings: SkillSettings, action_dim: int) -> int:
    size = settings.decoder_options.get("noise_dim", settings.horizon * action_dim)
    if not isinstance(size, int) or size < 1:
        raise SpirlError(f"skills.decoder_options.noise_dim: the size of the noise is a whole number, not {size!r}.")
    return size


register_decoder("own", DecoderKind(_build, "frozen policy", observes="start", prior="standard", latent_dim=_noise_dim))
