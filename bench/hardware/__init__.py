"""What a machine with an NVIDIA GPU can tell of this project in a quarter of an hour."""
