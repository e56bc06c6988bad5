"""Build the environments, and say what is there and what is missing."""
