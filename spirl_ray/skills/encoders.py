"""Observation encoders, which turn named features into the one vector that priors, decoders, policies and critics get.

An encoder is chosen for each feature by its name in `ENCODERS`: ``vector`` (standardised numbers), ``image``
(convolutions trained from scratch), ``objects`` (a set of alike objects, relative to the agent), ``pretrained`` (an
image network loaded from a file), or one that `register_encoder` has added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from spirl_ray.config import EncoderSettings, Settings
from spirl_ray.config_file import validated
from spirl_ray.episodes.features import Feature, Features
from spirl_ray.errors import SpirlError
from spirl_ray.registry import Registry
from spirl_ray.settings import SettingPath
from spirl_ray.skills.networks import convolutions

Observations = Mapping[str, Tensor]
"""The values of features by name, [..., *Feature.observed_shape]; images are uint8, everything else is float32."""

HIGHEST = 3
"""The number of highest objects that appear a second time, because a policy must find what stands or is carried."""
_SPREAD = 2.0
"""The divisor that brings asinh(offset / size), of offsets of mostly a few sizes, to about unit deviation."""


class EncoderContext(Settings):
    """The arguments from which an encoder is built."""

    name: str
    """The name of the feature to encode."""
    features: dict[str, Feature]
    """All features that are encoded together, because one may be encoded relative to another."""
    width: int = Field(ge=1)
    """The number of outputs of encoders that may choose it."""
    image_channels: int = Field(ge=1)
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def feature(self) -> Feature:
        return self.features[self.name]


class FeatureEncoder(nn.Module):
    """The encoder of one feature.

    Args:
        context: the feature and its settings.
    """

    class Options(Settings):
        """The options in ``skills.encoders.FEATURE.options``; an encoder that has some declares its own class."""

    options: Settings
    images: bool | None = None
    """True for encoders of images, False for those of numbers, None for those of both."""
    outputs: int
    """F, the number of outputs for one value."""

    def __init__(self, context: EncoderContext) -> None:
        super().__init__()
        if self.images is not None and self.images != context.feature.is_image:
            kinds = ("numbers", "images")
            raise SpirlError(
                f"skills.encoders.{context.name}.kind: {type(self).__name__} encodes {kinds[self.images]}, and the "
                f"feature {context.name!r} is {kinds[context.feature.is_image]}. Leave the encoder out, or choose one "
                "for them."
            )
        self.name, self.shape = context.name, context.feature.shape
        self.options = validated(self.Options, context.options, f"skills.encoders.{self.name}.options")

    def forward(self, observations: Observations) -> Tensor:
        """Encodes observations [..., *observed_shape] as [..., F]."""
        raise NotImplementedError

    def set_normalisation(self, mean: Tensor, std: Tensor) -> None:
        """Sets the data's statistics [*shape] of the feature; encoders that do not standardise ignore them."""

    def load_pretrained(self) -> None:
        """Loads weights from the encoder's file, once, before stage 1 trains."""


class VectorEncoder(FeatureEncoder):
    """An encoder that standardises numbers by the data's statistics."""

    images = False
    mean: Tensor
    std: Tensor

    def __init__(self, context: EncoderContext) -> None:
        super().__init__(context)
        self.outputs = context.feature.size
        self.rank = len(context.feature.shape)
        self.register_buffer("mean", torch.zeros(self.outputs))
        self.register_buffer("std", torch.ones(self.outputs))

    def forward(self, observations: Observations) -> Tensor:
        value = observations[self.name]
        if self.rank > 1:
            value = value.flatten(-self.rank)
        return (value - self.mean) / self.std

    def set_normalisation(self, mean: Tensor, std: Tensor) -> None:
        self.mean.copy_(mean.flatten())
        self.std.copy_(std.flatten())


class ImageEncoder(FeatureEncoder):
    """An encoder of three convolutions over the stacked frames and a linear layer, trained from scratch.

    An image uint8 [..., frames, height, width, channels] of any size becomes [..., F]; values go from 0..255 to
    [-1, 1].
    """

    images = True

    def __init__(self, context: EncoderContext) -> None:
        super().__init__(context)
        feature, first = context.feature, context.image_channels
        height, width, channels = feature.shape
        if min(height, width) < 8:
            raise SpirlError(f"feature {self.name!r}: an image of {height} x {width} is below the least size, 8 x 8.")
        self.outputs = context.width
        self.net = convolutions(
            feature.frames * channels, (first, 2 * first, 4 * first), (height, width), outputs=self.outputs
        )

    def forward(self, observations: Observations) -> Tensor:
        return apply_to_images(self.net, observations[self.name])


class PretrainedImageEncoder(FeatureEncoder):
    """An encoder whose convolutions come from a safetensors file; only the linear layer after them learns.

    The file holds ``net.0.weight``, ``net.0.bias``, ``net.2.weight``, …, as `ImageEncoder` has them, so a trained
    skill artifact can be reduced to such a file. The weights become part of the skill artifact, which then no longer
    needs the file.
    """

    class Options(Settings):
        path: SettingPath
        """The safetensors file."""
        channels: tuple[PositiveInt, ...] = Field(min_length=1)
        """The feature maps of each 4 × 4 convolution of stride 2, such as [8, 16, 32]."""

    options: Options
    images = True

    def __init__(self, context: EncoderContext) -> None:
        super().__init__(context)
        height, width, channels = context.feature.shape
        self.outputs = context.width
        inputs = context.feature.frames * channels
        net = convolutions(inputs, self.options.channels, (height, width), outputs=self.outputs)
        self.trunk, self.head = net[:-2].requires_grad_(False), net[-2:]

    def forward(self, observations: Observations) -> Tensor:
        return self.head(apply_to_images(self.trunk, observations[self.name]))

    def load_pretrained(self) -> None:
        from spirl_ray.files.tensors import read_tensors

        tensors = read_tensors(self.options.path)
        wanted = {f"net.{name}": value for name, value in self.trunk.state_dict().items()}
        for name, value in wanted.items():
            found = tensors.get(name)
            if found is None or found.shape != value.shape:
                has = "is missing" if found is None else f"has the shape {list(found.shape)}"
                raise SpirlError(
                    f"{self.options.path}: {name} {has}, feature {self.name!r} needs {list(value.shape)}. The file "
                    "must hold the convolutions that options.channels describes, for images with as many channels."
                )
            value.copy_(found)


class ObjectsEncoder(FeatureEncoder):
    """An encoder of alike objects relative to the agent, independent of the order in which they are listed.

    Positions [..., N, d] become, first, the offsets from the agent, the nearest object first; then offsets and heights
    of the `HIGHEST` highest objects: [..., N d + HIGHEST (d + 1)]. An offset o is given as asinh(o / size) / 2: in
    detail where it is small, and roughly where it is large.
    """

    images = False

    def __init__(self, context: EncoderContext) -> None:
        super().__init__(context)
        feature, objects = context.feature, context.feature.objects
        if objects is None:
            raise SpirlError(
                f"feature {self.name!r} is encoded as objects, but its environment does not declare `objects` for it."
            )
        number, each = feature.shape
        agent = context.features.get(objects.agent)
        if agent is None or agent.shape != (each,):
            has = "is not among the observed features" if agent is None else f"has the shape {list(agent.shape)}"
            raise SpirlError(
                f"feature {self.name!r} needs the agent's position, {objects.agent!r}, with {each} entries; it {has}."
            )
        self.objects = objects
        self.outputs = number * each + min(HIGHEST, number) * (each + 1)

    def forward(self, observations: Observations) -> Tensor:
        places = observations[self.name]
        offsets = places - observations[self.objects.agent].unsqueeze(-2)
        nearest = offsets.square().sum(-1, keepdim=True).argsort(dim=-2)
        heights = places[..., self.objects.up, None]
        highest = heights.argsort(dim=-2, descending=True)[..., :HIGHEST, :]
        scaled = (offsets / self.objects.size).asinh() / _SPREAD
        parts = (
            _in_order(scaled, nearest),
            _in_order(scaled, highest),
            _in_order(heights, highest) / self.objects.size,
        )
        return torch.cat([part.flatten(-2) for part in parts], dim=-1)


def _in_order(values: Tensor, order: Tensor) -> Tensor:
    """Values [..., N, d] in an order [..., M, 1]; `take_along_dim` cannot be exported for batches of any size."""
    return values.gather(-2, order.expand(*order.shape[:-1], values.shape[-1]))


def apply_to_images(net: nn.Module, images: Tensor) -> Tensor:
    """Applies a network of [B, frames · channels, h, w] to images uint8 [..., frames, height, width, channels]."""
    *leading, frames, height, width, channels = images.shape
    flat = images.reshape(-1, frames, height, width, channels)
    flat = flat.permute(0, 1, 4, 2, 3).reshape(-1, frames * channels, height, width)
    features: Tensor = net(flat.float() / 127.5 - 1.0)
    return features.reshape(*leading, -1)


EncoderFactory = Callable[[EncoderContext], FeatureEncoder]
ENCODERS: Registry[EncoderFactory] = Registry("observation encoder")


def register_encoder(name: str, factory: EncoderFactory, *, replace: bool = False) -> None:
    """Adds an observation encoder that ``skills.encoders.FEATURE.kind`` can name.

    Args:
        name: name of the encoder.
        factory: builds a `FeatureEncoder` from an `EncoderContext`; a subclass can be given itself.
        replace: True to replace an encoder of this name.
    """
    ENCODERS.register(name, factory, replace=replace)


register_encoder("vector", VectorEncoder)
register_encoder("image", ImageEncoder)
register_encoder("objects", ObjectsEncoder)
register_encoder("pretrained", PretrainedImageEncoder)


def encoder_of(feature: Feature, chosen: EncoderSettings | None) -> str:
    """The name of a feature's encoder: the chosen one, or the default for its shape."""
    if chosen is not None:
        return chosen.kind
    if feature.is_image:
        return "image"
    return "objects" if feature.objects is not None else "vector"


class ObservationEncoder(nn.Module):
    """Encodes several features and joins the results in the features' order.

    Args:
        features: the features to encode, by name.
        encoders: which encoders to use, where the default does not fit.
        width: outputs of an image's encoder.
        image_channels: feature maps of an image's first convolution.
    """

    def __init__(
        self, features: Features, encoders: Mapping[str, EncoderSettings], *, width: int, image_channels: int
    ) -> None:
        super().__init__()
        parts = []
        for name, feature in features.items():
            chosen = encoders.get(name)
            context = EncoderContext(
                name=name,
                features=dict(features),
                width=width,
                image_channels=image_channels,
                options={} if chosen is None else chosen.options,
            )
            parts.append(ENCODERS[encoder_of(feature, chosen)](context))
        self.parts = nn.ModuleList(parts)
        self.outputs = sum(part.outputs for part in parts)

    def encoder(self, name: str) -> FeatureEncoder:
        """The encoder of a feature."""
        return next(part for part in self.encoders() if part.name == name)

    def encoders(self) -> list[FeatureEncoder]:
        """The encoders of the features, in order."""
        return [part for part in self.parts if isinstance(part, FeatureEncoder)]

    def forward(self, observations: Observations) -> Tensor:
        """Encodes observations [..., *observed_shape] by name as [..., outputs]."""
        encoded = [part(observations) for part in self.parts]
        return encoded[0] if len(encoded) == 1 else torch.cat(encoded, dim=-1)

    def set_normalisation(self, mean: Mapping[str, Tensor], std: Mapping[str, Tensor]) -> None:
        """Gives every encoder the data's statistics of its feature, where the shapes agree."""
        for part in self.encoders():
            if part.name in mean and mean[part.name].shape == part.shape:
                part.set_normalisation(mean[part.name], std[part.name])
