"""A whole run: its checks, its parts, its steps, its end."""
