"""The windowed join: its shards, their state, what people see of it."""
