"""Videos to a stored dataset: decode, flow, JPEG, ArrayRecord.

Clips are worked on in processes, because a broken file can crash a decoder, and
written in their order as they come, so that memory stays flat and the dataset
does not depend on the number of processes.

Processes start by `spawn`, which imports the main module of the calling program
again. A script that calls `build_dataset` at its top level must do so under
`if __name__ == "__main__":`.
"""

import collections
import dataclasses
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from twostream_jax.data.annotations import Clip, class_names
from twostream_jax.data.dataset import (
  Record,
  dataset_metadata,
  encode_flow,
  encode_rgb,
  record_features,
)
from twostream_jax.data.video import (
  VideoError,
  read_fps,
  read_resized,
  silence_decoders,
  target_size,
)
from twostream_jax.flow import compute_flow
from twostream_jax.flow.spec import FlowSpec

VERSION = "1.0.0"
# An example of 2 GiB or more can't be serialised (protocol buffers), and every
# worker holds one in memory.
MAX_CLIP_BYTES = 1 << 30
_CLIPS_PER_SHARD = 256
