"""What every stage needs whatever it computes: settings, errors, artifacts, progress. Imports nothing heavy."""
