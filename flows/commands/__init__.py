"""Commands of the command line that have commands below them."""
