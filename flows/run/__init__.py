"""A run's processes: started, kept alive, looked at, asked."""
