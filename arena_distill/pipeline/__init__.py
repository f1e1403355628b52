"""The whole chain of stages: planned, run here or submitted, watched, cancelled and gone on with."""
