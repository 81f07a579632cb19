"""Every attribute of a scene and the words people use for it.

A word names one value of one attribute and nothing else, so that a caption can be read back by a
program. The first word of every list is the plain one and also the value's name; captions prefer
it. Phrases are written in lower case, words separated by single spaces.
"""

from typing import Final

__all__ = [
    "CAMERAS",
    "CAMERA_PHRASES",
    "COLOURS",
    "COLOUR_WORDS",
    "MATERIALS",
    "MATERIAL_WORDS",
    "MOTIONS",
    "MOTION_VERBS",
    "SETTINGS",
    "SETTING_PHRASES",
    "SHAPES",
    "SHAPE_WORDS",
    "SIZES",
    "SIZE_WORDS",
    "Verb",
]

Words = dict[str, tuple[str, ...]]

COLOUR_WORDS: Final[Words] = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "lemon"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose"),
    "white": ("white", "ivory"),
}
SHAPE_WORDS: Final[Words] = {
    "sphere": ("sphere", "ball", "orb", "globe"),
    "cube": ("cube", "box", "block"),
    "cylinder": ("cylinder", "drum", "barrel"),
    "cone": ("cone",),
    "torus": ("torus", "ring", "donut", "hoop"),
    "pyramid": ("pyramid",),
    "capsule": ("capsule", "pill"),
    "star": ("star",),
}
SIZE_WORDS: Final[Words] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "midsized"),
    "large": ("large", "big", "huge"),
}
MATERIAL_WORDS: Final[Words] = {
    "matte": ("matte", "dull", "chalky"),
    "shiny": ("shiny", "glossy", "polished"),
}


class Verb:
    """One verb of a motion: third person, participle, and what may follow it.

    The tails say more about the same motion; none of their words means anything by itself.
    """

    def __init__(self, finite: str, participle: str, *tails: str) -> None:
        self.finite = finite
        self.participle = participle
        self.tails = tails


MOTION_VERBS: Final[dict[str, tuple[Verb, ...]]] = {
    "rolls": (
        Verb("rolls", "rolling", "back and forth", "from side to side", "left and right"),
        Verb("trundles", "trundling", "back and forth"),
    ),
    "bounces": (
        Verb("bounces", "bouncing", "up and down"),
        Verb("hops", "hopping", "up and down"),
        Verb("jumps", "jumping", "up and down"),
    ),
    "orbits": (
        Verb("orbits", "orbiting", "in a circle"),
        Verb("circles", "circling", "round and round"),
        Verb("loops", "looping", "in a circle"),
    ),
    "spins": (
        Verb("spins", "spinning", "on the spot", "in place"),
        Verb("rotates", "rotating", "on the spot", "in place"),
        Verb("twirls", "twirling", "on the spot"),
    ),
    "pulses": (
        Verb("pulses", "pulsing"),
        Verb("throbs", "throbbing"),
        Verb("grows and shrinks", "growing and shrinking"),
    ),
    "falls": (
        Verb("falls", "falling", "down again and again", "from above", "down"),
        Verb("drops", "dropping", "down again and again", "from above", "down"),
    ),
    "swings": (
        Verb("swings", "swinging", "left and right", "like a pendulum", "from side to side"),
        Verb("sways", "swaying", "left and right", "from side to side"),
    ),
    "drifts": (
        Verb("drifts", "drifting", "through the air", "slowly through the air"),
        Verb("floats", "floating", "through the air", "slowly through the air"),
        Verb("glides", "gliding", "through the air"),
    ),
    "tumbles": (
        Verb("tumbles", "tumbling", "over and over", "in the air"),
        Verb("somersaults", "somersaulting", "over and over", "in the air"),
        Verb("flips", "flipping", "over and over"),
    ),
}
SETTING_PHRASES: Final[Words] = {
    "checkered": (
        "on a checkered floor",
        "on checkered tiles",
        "on a chessboard",
        "on a tiled floor",
    ),
    "grass": ("on green grass", "on the grass", "on a lawn", "in a meadow", "on grass"),
    "sand": ("on sand", "on the sand", "in the desert", "on a sandy beach"),
    "water": ("on water", "on blue water", "on the sea", "on a lake", "on gentle waves"),
    "snow": ("on snow", "in the snow", "on white snow", "in a snowy landscape", "in winter"),
    "night": ("at night", "under the moon", "in the moonlight", "under a starry sky"),
    "sunset": ("at sunset", "at dusk", "in the evening", "in the glow of sunset"),
    "studio": ("in a studio", "in the studio", "in a bare studio", "against a plain backdrop"),
}
CAMERA_PHRASES: Final[Words] = {
    "still": ("the camera is static", "the camera is fixed", "with a static camera"),
    "pan": ("the camera pans", "the camera pans slowly", "with a panning camera"),
    "orbit": ("the camera arcs around", "the camera travels around", "with an arcing camera"),
    "zoom": ("the camera zooms", "the camera zooms slowly", "with a zooming camera"),
}

COLOURS: Final = tuple(COLOUR_WORDS)
SHAPES: Final = tuple(SHAPE_WORDS)
SIZES: Final = tuple(SIZE_WORDS)
MATERIALS: Final = tuple(MATERIAL_WORDS)
MOTIONS: Final = tuple(MOTION_VERBS)
SETTINGS: Final = tuple(SETTING_PHRASES)
CAMERAS: Final = tuple(CAMERA_PHRASES)
