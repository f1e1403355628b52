"""Training of judges on canonical rows."""
