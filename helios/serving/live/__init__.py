"""Live sessions: one connection, what it has shown, and its whole life on disk."""
