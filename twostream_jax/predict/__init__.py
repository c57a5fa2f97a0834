"""Answers about any video by a finished run; see `command`.

Nothing is imported here, because every process that decodes imports this.
"""
