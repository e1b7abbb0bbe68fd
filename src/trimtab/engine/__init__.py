"""Running base and guides together: rows, adapters, caches, requests."""
