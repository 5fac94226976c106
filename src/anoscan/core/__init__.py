"""What everything stands on: errors, settings, results, files, progress."""
