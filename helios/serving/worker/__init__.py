"""The process that owns the model, and how the front process starts, watches and asks it."""
