"""The examples of a log again, in another topic or in files."""
