"""An image becomes numbers: terms, maps, calibration."""
