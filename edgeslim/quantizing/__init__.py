"""What quantizing stages share: where they work, what calibration tells them, which form and step each place gets."""
