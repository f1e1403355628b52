"""From messy preference files to canonical rows, folds, token sequences and batches. Never imports torch."""
