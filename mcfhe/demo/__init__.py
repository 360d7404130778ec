"""The whole of either scheme on shipped images, timed and checked."""
