"""Optical flow: algorithms, where a clip's flow comes from, and the store on disk."""
