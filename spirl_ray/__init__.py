"""spirl-ray: skill-prior reinforcement learning as a distributed training service on Ray."""

__version__ = "0.1.0"
