"""``python -m spirl_ray.cli`` is ``spirl``."""

from spirl_ray.cli.main import main

main()
