"""HTTP: who comes in, what they may send, the routes and what they answer."""
