"""How fast an engine makes video: arms that take turns, the parts of a chunk, floors."""
