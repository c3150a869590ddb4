"""Samples: read, encoded, split to calibrate and to evaluate, watched and recorded."""
