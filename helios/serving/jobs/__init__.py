"""File jobs: accepted work that ends as a finished video, and what strangers bring for it."""
