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

from spirl_ray.config import SkillSettings
from spirl_ray.errors import SpirlError
from spirl_ray.registry import TRUSTED_CODECS, named_object
from spirl_ray.skills.decoders import DecoderKind, NoiseCodec, register_decoder
from spirl_ray.skills.spec import SkillSpec

_SETTING = "skills.decoder_options.codec"


def trust(settings: SkillSettings) -> None:
    """Lets this process and those that it starts import the class that a config names."""
    if (name := _named(settings)) is not None:
        os.environ[TRUSTED_CODECS] = ",".join(dict.fromkeys([*_trusted(), name]))


def _named(settings: SkillSettings) -> str | None:
    name = settings.decoder_options.get("codec")
    return name if isinstance(name, str) else None


def _trusted() -> list[str]:
    return [name for name in os.environ.get(TRUSTED_CODECS, "").split(",") if name]


def _build(spec: SkillSpec) -> NoiseCodec:
    name = _named(spec.settings)
    if name is None or ":" not in name:
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
    DecoderKind(
        _build,
        "frozen policy",
        observes="start",
        noise=True,
        latent_dim=_noise_dim,
        takes_options=True,
        user_class=_named,
    ),
)
