"""Tensors and numbers: schema, encoding, networks, losses, metrics, online learning."""
