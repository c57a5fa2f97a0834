"""Memory is recycled when it is no longer referenced, and not before."""

import jax
import numpy as np

from twostream_jax.data.loader.buffers import Buffers


def address(array):
  return array.__array_interface__["data"][0]


def test_memory_comes_back_when_the_last_view_is_gone():
  buffers = Buffers()
  first = buffers.empty((4, 100, 3))
  first[...] = 7
  view, where = first[2:3, ::-1], address(first)
  del first
  second = buffers.empty((4, 100, 3))
  assert address(second) != where
  assert (view == 7).all()
  del view
  third = buffers.empty((2, 600))
  assert address(third) == where
  assert third.shape == (2, 600) and third.dtype == np.uint8
  third[...] = 1  # It can be written.
  assert address(buffers.empty((600,))) != where


def test_an_array_on_a_device_keeps_its_memory():
  buffers = Buffers()
  arrays = []
  for i in range(6):
    batch = buffers.empty((8, 64, 64, 20))
    batch[...] = i
    arrays.append(jax.device_put(batch))
    del batch
  for i, array in enumerate(arrays):
    assert (np.asarray(array) == i).all()
