"""Serving graphs, the snapshot store and the server that scores from it."""
