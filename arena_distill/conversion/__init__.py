"""Steps 6 and 7: from the folds' students to one small model, with proof at every conversion."""
