"""Speed of training; see docs/training-speed.md."""
