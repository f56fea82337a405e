"""The settings of trackers: Weights & Biases and MLflow, which get metrics, videos and the report of an experiment."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from spirl_ray.settings import Settings


class WandbSettings(Settings):
    """Weights & Biases. The key is read from WANDB_API_KEY, or from what ``wandb login`` has stored."""

    project: str = "spirl"
    entity: str | None = None
    """The user or team; None is the default of the account."""
    group: str | None = None
    """The group of the tracked runs; None is the name of the experiment."""
    tags: tuple[str, ...] = ()
    mode: Literal["online", "offline"] | None = None
    """``offline`` writes files for ``wandb sync``; None leaves it to WANDB_MODE."""

    @model_validator(mode="before")
    @classmethod
    def _no_secrets(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and {"api_key", "api_key_file"} & set(raw):
            raise ValueError("a key does not belong in a file; set the environment variable WANDB_API_KEY")
        return raw


class MlflowSettings(Settings):
    """MLflow. Who one is, is read from MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD."""

    tracking_uri: str | None = None
    """The server, such as ``http://127.0.0.1:5000``; None leaves it to MLFLOW_TRACKING_URI."""
    experiment_name: str | None = None
    """MLflow's experiment, which holds the tracked runs; None is the name of ours."""
    tags: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="before")  # of the whole group, because a message about one value would show it
    @classmethod
    def _no_secrets(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "tracking_token" in raw:
            raise ValueError("a token does not belong in a file; set the environment variable MLFLOW_TRACKING_TOKEN")
        if isinstance(raw, dict) and "@" in urlsplit(str(raw.get("tracking_uri") or "")).netloc:
            raise ValueError(
                "a password does not belong in a file; set the environment variables MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, and leave them out of tracking_uri"
            )
        return raw


class TrackingSettings(Settings):
    wandb: WandbSettings | None = None
    """``{}`` tracks with the defaults."""
    mlflow: MlflowSettings | None = None
