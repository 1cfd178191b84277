"""Dataflows: sources, joins, training, and the processes around them."""
