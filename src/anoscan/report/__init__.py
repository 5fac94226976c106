"""Pictures, map files, the HTML page, plots."""
