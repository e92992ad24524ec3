"""Runs side by side: what each came to, and in which settings they differ."""
