"""What a skill model is built from: plain values, which stand in the card of a skill artifact."""

from __future__ import annotations

from pydantic import Field, model_validator

from spirl_ray.config import EncoderSettings, Settings, SkillSettings
from spirl_ray.episodes.features import Feature
from spirl_ray.skills.encoders import ObservationEncoder


class SkillSpec(Settings):
    """Everything that is needed to build a skill model."""

    decoder: str
    """Name of the kind of decoder, see `spirl_ray.skills.decoders.DECODERS`."""
    data_features: dict[str, Feature]
    """All features of the data; the model has the statistics of all, because a policy may see more than skills do."""
    features: tuple[str, ...] = Field(min_length=1)
    """Names of the features that skills and prior see."""
    encoders: dict[str, EncoderSettings] = Field(default_factory=dict)
    action_dim: int = Field(ge=1)
    horizon: int = Field(ge=1)
    """H in primitive steps. A flat method is a skill of length 1."""
    latent_dim: int = Field(ge=1)
    """Z."""
    settings: SkillSettings

    @model_validator(mode="after")
    def _features_are_there(self) -> SkillSpec:
        if unknown := sorted(set(self.features) - set(self.data_features)):
            raise ValueError(f"{unknown[0]!r} is not a feature of the data, which has {', '.join(self.data_features)}")
        return self

    @property
    def seen(self) -> dict[str, Feature]:
        """The features that skills and prior see, by name."""
        return {name: self.data_features[name] for name in self.features}

    def observation_encoder(self) -> ObservationEncoder:
        """A new encoder of these features."""
        settings = self.settings
        return ObservationEncoder(
            self.seen, self.encoders, width=settings.width, image_channels=settings.image_channels
        )
