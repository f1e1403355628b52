"""One page per run that says how good its model is, with the file that every number comes from."""
