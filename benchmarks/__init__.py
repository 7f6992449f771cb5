"""Measures wool against what would be used instead, and against the floor. See README.md."""
