"""A package of one's own; it needs nothing of spirl-ray."""
