"""Exported graphs: read, searched, rewritten."""
