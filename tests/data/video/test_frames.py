"""Folders of extracted frames and flow, in the layouts that programs write."""

import cv2
import numpy as np
import pytest

from tests import decoded
from twostream_jax.data.video import frames, reading
from twostream_jax.data.video.frames import VideoError
from twostream_jax.flow.spec import FlowSpec, quantise

_SPEC = FlowSpec("extracted", {}, bound=20.0)
_STEP_2 = FlowSpec("extracted", {}, bound=20.0, step=2)


def _touch(folder, *names):
  folder.mkdir(parents=True, exist_ok=True)
  for name in names:
    (folder / name).touch()
  return folder


def _images(folder, name, images, first=1):
  folder.mkdir(parents=True, exist_ok=True)
  for number, image in enumerate(images, first):
    assert cv2.imwrite(str(folder / name.format(number)), image)
  return folder


def _flow(folder, x, y, first=1, mark="", extension="png"):
  for axis, codes in (("x", x), ("y", y)):
    name = f"flow_{axis}_{mark}{{:05d}}.{extension}"
    _images(folder, name, codes, first)
  return folder


def _codes(n, height=16, width=24, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (2, n, height, width), np.uint8)


def _names(paths):
  return [path.name for path in paths]


@pytest.mark.parametrize(
  "pattern",
  ["img_{:05d}.jpg", "image_{:04d}.JPG", "frame{:06d}.jpeg", "{:05d}.png"],
)
@pytest.mark.parametrize("first", [0, 1, 17])
def test_frames_of_known_layouts(tmp_path, pattern, first):
  names = [pattern.format(i) for i in range(first, first + 12)]
  _touch(tmp_path, *reversed(names), ".DS_Store", ".img_00099.jpg", "n_frames")
  _touch(tmp_path, "flow_x_00001.jpg", "flow_y_00001.jpg", "notes.txt")
  assert frames.is_frame_folder(tmp_path)
  assert _names(frames.frame_files(tmp_path)) == names


def test_order_is_by_number(tmp_path):
  names = [f"v2_{i}.png" for i in range(8, 112)]
  assert names != sorted(names)
  assert _names(frames.frame_files(_touch(tmp_path, *names))) == names


@pytest.mark.parametrize(
  "names",
  [
    [],
    ["flow_x_00001.jpg", "flow_y_00001.jpg", "flow_x_p2_00001.jpg"],
    [".img_00001.jpg", "img_.jpg", "cover.jpg", "img_00001.txt"],
    ["v_01.avi", "v_01.jpg"],
    ["img_00001.jpg", "whole.MP4"],
  ],
)
def test_what_is_no_folder_of_frames(tmp_path, names):
  assert not frames.is_frame_folder(_touch(tmp_path, *names))


def test_a_file_is_no_folder_of_frames(tmp_path):
  _touch(tmp_path, "img_00001.jpg")
  assert not frames.is_frame_folder(tmp_path / "img_00001.jpg")
  assert not frames.is_frame_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
  "names, reason",
  [
    (["notes.txt"], "the folder holds no numbered images"),
    (["img_00006.jpg", "img_00008.jpg"], "img_00007.jpg is missing"),
    (["9.png", "11.png"], "10.png is missing"),
    (
      ["img_00001.jpg", "thumb_00001.jpg"],
      "images of several kinds in one folder: img_<digits>, thumb_<digits>",
    ),
    (
      ["img_00001.jpg", "img_00001.png"],
      "img_00001.jpg and img_00001.png have the same number",
    ),
    (["a_01.jpg", "a_1.jpg"], "a_01.jpg and a_1.jpg have the same number"),
  ],
)
def test_frames_that_can_not_be_ordered(tmp_path, names, reason):
  _touch(tmp_path, *names)
  for read in (frames.frame_files, decoded.images):
    with pytest.raises(VideoError) as caught:
      read(tmp_path)
    assert caught.value.reason == reason


def test_a_folder_reads_like_a_video(tmp_path):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (3, 48, 64, 3), np.uint8)
  _images(tmp_path, "img_{:05d}.png", images[..., ::-1], first=0)
  _flow(tmp_path, *_codes(2), first=0)
  read = decoded.images(tmp_path)
  np.testing.assert_array_equal(read, images)
  assert read[0].dtype == np.uint8
  assert decoded.rate(tmp_path) == 25
  assert decoded.times(tmp_path) == [0, 0.04, 0.08]
  with pytest.raises(VideoError, match="no times.*resampled to 10 frames"):
    next(reading.read_resized(tmp_path, 32, fps=10))
  resized = list(reading.read_resized(tmp_path, 32))
  for ours, image in zip(resized, images, strict=True):
    np.testing.assert_array_equal(ours.rgb, reading.resize(image, 32, 40))


def test_gray_and_16_bit_images_become_rgb(tmp_path):
  gray = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 16
  _images(tmp_path, "{:05d}.png", [(gray >> 8).astype(np.uint8), gray])
  for frame in decoded.images(tmp_path):
    assert frame.dtype == np.uint8
    np.testing.assert_array_equal(frame[..., 1], frame[..., 2])
    np.testing.assert_array_equal(frame[..., 0], gray >> 8)


def test_frames_of_several_sizes_get_the_first_one_s(tmp_path):
  sizes = [(48, 64), (64, 48), (96, 128)]
  _images(tmp_path, "{:03d}.jpg", [np.zeros((*s, 3), np.uint8) for s in sizes])
  assert [image.shape[:2] for image in decoded.images(tmp_path)] == sizes
  shapes = {frame.rgb.shape for frame in reading.read_resized(tmp_path, 32)}
  assert shapes == {(32, 40, 3)}


@pytest.mark.parametrize("extension", ["jpg", "png"])
@pytest.mark.parametrize("kept", [0, 0.3, 0.9])
def test_an_image_that_breaks_off_is_named(tmp_path, extension, kept):
  image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  _images(tmp_path, f"img_{{:05d}}.{extension}", [image] * 3)
  path = tmp_path / f"img_00002.{extension}"
  whole = path.read_bytes()
  path.write_bytes(whole[: int(kept * len(whole))])
  read = reading.read_frames(tmp_path)
  next(read)
  with pytest.raises(VideoError, match=f"^img_00002.{extension} can't be dec"):
    next(read)


@pytest.mark.parametrize("bound", [15.0, 20.0, 32.0, 7.3])
@pytest.mark.parametrize("first", [0, 1])
def test_flow_of_the_stored_size_keeps_its_codes(tmp_path, bound, first):
  codes = _codes(3)
  codes[0, 0].flat[:256] = np.arange(256)
  spec = FlowSpec("extracted", {}, bound=bound)
  fields = list(
    reading.read_extracted_flow(
      _flow(tmp_path, *codes, first), spec, 4, (16, 24)
    )
  )
  assert {(f.shape, f.dtype.name) for f in fields} == {((16, 24, 2), "float32")}
  for field, x, y in zip(fields, *codes, strict=True):
    np.testing.assert_array_equal(
      quantise(field, bound), np.stack([x, y], axis=-1)
    )


def test_codes_mean_what_denseflow_writes(tmp_path):
  # Its CAST: 255 above the bound, 0 below its negative, else
  # cvRound(255 (v - L) / (H - L)) with L, H = -bound, bound.
  flow = np.float32([[-30, -20, -7.3, 0.02], [5, 12.34, 20, 31]])
  codes = np.uint8(
    [
      [0, 0, round(255 * 12.7 / 40), 128],
      [159, round(255 * 32.34 / 40)] + [255] * 2,
    ]
  )
  _flow(tmp_path, [codes], [codes.T.reshape(2, 4)])
  (field,) = reading.read_extracted_flow(tmp_path, _SPEC, 2, (2, 4))
  half_a_code = 20 / 255 + 1e-5
  np.testing.assert_allclose(
    field[..., 0], np.clip(flow, -20, 20), atol=half_a_code
  )


def test_flow_of_another_size_is_resized_and_scaled(tmp_path):
  x, y = np.full((20, 40), 191, np.uint8), np.full((20, 40), 64, np.uint8)
  _flow(tmp_path, [x], [y], extension="jpg")
  for size in [(40, 60), (10, 20), (16, 48)]:
    (field,) = reading.read_extracted_flow(tmp_path, _SPEC, 2, size)
    assert field.shape == (*size, 2)
    assert field.dtype == np.float32
    expected = [
      (191 * 40 / 255 - 20) * size[1] / 40,
      (64 * 40 / 255 - 20) * size[0] / 20,
    ]
    expected = np.broadcast_to(expected, field.shape)
    np.testing.assert_allclose(field, expected, atol=1e-4)


def test_the_number_of_fields_tells_the_layout(tmp_path):
  codes = _codes(4)
  _flow(tmp_path, *codes)

  def first_field(spec, num_frames):
    fields = reading.read_extracted_flow(tmp_path, spec, num_frames, (16, 24))
    fields = [quantise(field, spec.bound)[..., 0] for field in fields]
    assert len(fields) == num_frames - spec.step
    start = 4 - len(fields)
    np.testing.assert_array_equal(fields, codes[0][start:])
    return start

  # denseflow: t - step fields, each from a frame to a later one.
  assert first_field(_SPEC, 5) == 0
  assert first_field(_STEP_2, 6) == 0
  # dense_flow: the field with a frame's number ends in it.
  assert first_field(_SPEC, 4) == 1


@pytest.mark.parametrize(
  "spec, num_frames, message",
  [
    (_SPEC, 6, r"4 fields of .* for 6 frames, not 5 or 6 \(step 1\)"),
    (_SPEC, 3, r"4 fields of .* for 3 frames, not 2 or 3 \(step 1\)"),
    (_STEP_2, 4, r"4 fields of .* for 4 frames, not 2 \(step 2\)"),
    (_STEP_2, 5, r"4 fields of .* for 5 frames, not 3 \(step 2\)"),
  ],
)
def test_another_number_of_fields_is_refused(
  tmp_path, spec, num_frames, message
):
  _flow(tmp_path, *_codes(4))
  with pytest.raises(VideoError, match=message):
    next(reading.read_extracted_flow(tmp_path, spec, num_frames, (16, 24)))


def test_flow_over_a_step_has_it_in_its_name(tmp_path):
  one, two = _codes(5), _codes(4, seed=1)
  _flow(tmp_path, *one, first=0)
  _flow(tmp_path, *two, first=0, mark="p2_")
  for spec, codes in ((_SPEC, one), (_STEP_2, two)):
    fields = list(reading.read_extracted_flow(tmp_path, spec, 6, (16, 24)))
    np.testing.assert_array_equal(quantise(fields[0], 20)[..., 0], codes[0][0])


@pytest.mark.parametrize(
  "names, reason",
  [
    (
      ["img_00001.jpg", "flow_00001.png", "flow_x_p2_00001.jpg"],
      "the folder holds no extracted flow: no flow_x_<digits> with its"
      " flow_y_ file, .jpg, .jpeg or .png",
    ),
    (
      ["flow_x_00001.jpg", "flow_x_00002.jpg", "flow_y_00001.jpg"],
      "2 images of flow in x, 1 in y",
    ),
    (["flow_y_00001.jpg"], "0 images of flow in x, 1 in y"),
    (
      ["flow_x_00001.jpg", "flow_y_00000.jpg"],
      "flow starts with flow_x_00001.jpg, but flow_y_00000.jpg",
    ),
    (
      [f"flow_{a}_0000{i}.jpg" for a in "xy" for i in (1, 3)],
      "flow_x_00002.jpg is missing",
    ),
  ],
)
def test_flow_that_is_not_there_for_every_field(tmp_path, names, reason):
  _touch(tmp_path, *names)
  with pytest.raises(VideoError) as caught:
    next(reading.read_extracted_flow(tmp_path, _SPEC, 3, (16, 24)))
  assert caught.value.reason == reason


def test_names_looked_for_over_a_step(tmp_path):
  with pytest.raises(
    VideoError, match="no flow_x_<digits> or flow_x_p2_<digits> with"
  ):
    frames.flow_files(tmp_path, 2)


def test_flow_images_that_do_not_fit(tmp_path):
  x, y = _codes(2)
  _flow(tmp_path, x, [y[0], y[1][:8]])
  fields = reading.read_extracted_flow(tmp_path, _SPEC, 3, (16, 24))
  next(fields)
  with pytest.raises(VideoError, match="flow_x_00002.png and flow_y_00002.png"):
    next(fields)
  (tmp_path / "flow_y_00001.png").write_bytes(b"")
  with pytest.raises(VideoError, match="^flow_y_00001.png can't be decoded"):
    next(reading.read_extracted_flow(tmp_path, _SPEC, 3, (16, 24)))


def test_flow_beside_a_file_is_not_looked_for(tmp_path):
  _touch(tmp_path, "a.avi", "flow_x_00001.jpg", "flow_y_00001.jpg")
  with pytest.raises(VideoError, match="needs a folder of frames"):
    next(reading.read_extracted_flow(tmp_path / "a.avi", _SPEC, 2, (8, 8)))
