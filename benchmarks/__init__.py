"""Performance measurements that run from the source tree; nothing in `spirl_ray` imports them."""
