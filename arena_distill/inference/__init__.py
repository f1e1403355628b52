"""Judges: anything that turns canonical rows into three raw logits each."""
