"""What a run has come to: figures, tables, plots, checks."""
