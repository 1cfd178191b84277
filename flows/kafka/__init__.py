"""Clients of Kafka, and the broker that a run brings with it."""
