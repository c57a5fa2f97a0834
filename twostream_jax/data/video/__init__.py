"""Frames of video files and of folders of images, with their times."""
