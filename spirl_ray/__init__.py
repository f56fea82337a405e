"""spirl-ray: skill-prior reinforcement learning as a distributed training service on Ray."""

__version__ = "0.2.0.dev0"
