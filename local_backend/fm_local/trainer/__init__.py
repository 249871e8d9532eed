"""One flat training loop (`loop.train`), and what it calls."""
