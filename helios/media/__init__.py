"""Pictures and videos of people, in and out: the only room that opens or writes them."""

from helios.media.fragments import FragmentEncoder
from helios.media.reading import read_image, read_settings, read_video
from helios.media.writing import VideoWriter, check_output, plain_mp4

__all__ = [
    "FragmentEncoder",
    "VideoWriter",
    "check_output",
    "plain_mp4",
    "read_image",
    "read_settings",
    "read_video",
]
