"""Selection strategies, one paper a file."""
