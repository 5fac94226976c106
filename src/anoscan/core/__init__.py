"""Foundations that all other packages use: errors, settings, results, files, progress."""
