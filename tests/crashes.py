"""Work that ends its process. Processes import little for it."""

import os


def abort_on(video_id, work, clip, *rest):
  """Ends the process at the clip of that id; works on all others."""
  if clip.video_id == video_id:
    os.abort()
  return work(clip, *rest)
