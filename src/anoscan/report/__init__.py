"""Everything that is drawn: pictures, map files, the HTML page, plots, the record of a training."""
