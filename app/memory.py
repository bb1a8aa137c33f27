"""How glibc keeps this process's memory."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of malloc.h
ARENAS = 4  # of glibc, by itself eight a core; each keeps up to LARGE_BYTES for its threads
LARGE_BYTES = 12 * 1024 * 1024  # more than a bitmap of 1920x1080, less than Pillow's own blocks


def give_memory_back() -> None:
    """Have large blocks go back to the system as soon as they are freed; before there are threads.

    Left alone, glibc learns to keep blocks as large as bodies and bitmaps, for each of its arenas:
    after a flood of large pictures, the process would stay at many times what it needs.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        mallopt(M_TRIM_THRESHOLD, LARGE_BYTES)
        mallopt(M_ARENA_MAX, ARENAS)
