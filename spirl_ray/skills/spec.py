"""The plain values from which a skill model is built; the card of a skill artifact holds them."""

from __future__ import annotations

from pydantic import Field, model_validator

from spirl_ray.config import EncoderSettings, Settings, SkillSettings
from spirl_ray.episodes.actions import ActionRange
from spirl_ray.episodes.features import Feature
from spirl_ray.skills.encoders import ObservationEncoder


class SkillSpec(Settings):
    """The plain values from which a skill model is built."""

    decoder: str
    """The name of the kind of decoder, see `spirl_ray.skills.decoders.DECODERS`."""
    data_features: dict[str, Feature]
    """All features of the data; the model has the statistics of all, because a policy may observe more than skills
    do."""
    features: tuple[str, ...] = Field(min_length=1)
    """The names of the features that skills and prior observe."""
    encoders: dict[str, EncoderSettings] = Field(default_factory=dict)
    action_dim: int = Field(ge=1)
    actions: ActionRange | None = None
    """The range, in units of the environment, that actions in [-1, 1] stand for; None is [-1, 1]."""
    horizon: int = Field(ge=1)
    """H, the length of a skill in primitive steps; 1 for flat methods."""
    latent_dim: int = Field(ge=1)
    """Z, the size of a latent."""
    settings: SkillSettings

    @model_validator(mode="after")
    def _features_are_there(self) -> SkillSpec:
        if unknown := sorted(set(self.features) - set(self.data_features)):
            raise ValueError(f"{unknown[0]!r} is not a feature of the data, which has {', '.join(self.data_features)}")
        return self

    @property
    def observed(self) -> dict[str, Feature]:
        """The features that skills and prior observe, by name."""
        return {name: self.data_features[name] for name in self.features}

    def observation_encoder(self) -> ObservationEncoder:
        """Makes a new encoder of these features."""
        settings = self.settings
        return ObservationEncoder(
            self.observed, self.encoders, width=settings.width, image_channels=settings.image_channels
        )
