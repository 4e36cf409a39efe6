"""Fast ways to the same numbers, each held equal by a test to the plain way."""
