"""Training before the export: the loop, what it minimizes, and what has to hold while it runs."""
