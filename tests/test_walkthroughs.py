"""docs/walkthroughs.md, command by command, on small stand-ins."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.paths import ROOT
from tests.recipes import get_config
from tests.xla_flags import COMPILE_FAST
from twostream_jax.data import synthetic

CLASSES = ["hug", "kick", "point"]


def walkthroughs():
  """Commands by heading, lists of words."""
  text = (ROOT / "docs/walkthroughs.md").read_text(encoding="utf-8")
  parts = re.split(r"^## (.*)\n", text, flags=re.M)[1:]
  return {
    heading: [
      shlex.split(line)
      for block in re.findall(r"```sh\n(.*?)```", body, re.S)
      for line in block.replace("\\\n", " ").splitlines()
    ]
    for heading, body in zip(parts[::2], parts[1::2], strict=True)
  }


def write_clip(path, label, number, repeats=1):
  """A clip whose motion tells its class."""
  path.parent.mkdir(parents=True, exist_ok=True)
  code = cv2.VideoWriter.fourcc(*"mp4v" if path.suffix == ".mp4" else "MJPG")
  writer = cv2.VideoWriter(str(path), code, 25, (80, 64))
  motion = synthetic.MOTIONS[label % len(synthetic.MOTIONS)]
  rng = np.random.default_rng([label, number])
  for _ in range(repeats):
    for frame in synthetic.render_clip(rng, "amber", motion)[:12]:
      frame = cv2.resize(frame, (80, 64))
      writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
  writer.release()


def write_ucf101(folder):
  lists = folder / "ucfTrainTestlist"
  lists.mkdir()
  names = ["ApplyEyeMakeup", "Archery"]
  (lists / "classInd.txt").write_text(
    "".join(f"{i + 1} {name}\n" for i, name in enumerate(names))
  )
  rows = {"train": "", "test": ""}
  for i, name in enumerate(names):
    for group, split in ((1, "test"), (8, "train"), (9, "train")):
      video = f"{name}/v_{name}_g{group:02}_c01.avi"
      write_clip(folder / "UCF-101" / video, i, group)
      rows[split] += video + (f" {i + 1}\n" if split == "train" else "\n")
  for split, text in rows.items():
    (lists / f"{split}list01.txt").write_text(text)
  write_resnet50(folder / "resnet50-0676ba61.pth")


def write_resnet50(path):
  """A file of torchvision's names and shapes, but of few classes."""
  torch = pytest.importorskip("torch")
  from tests.pretrained import test_pretrained_torch  # It needs torch.

  network = test_pretrained_torch.TorchResNet(
    (3, 4, 6, 3), (64, 128, 256, 512), True
  )
  torch.save(network.state_dict(), path)


def write_ssv2(folder):
  labels = folder / "labels"
  labels.mkdir()
  names = ["Lifting something up", "Moving something down"]
  (labels / "labels.json").write_text(
    json.dumps({name: str(i) for i, name in enumerate(names)})
  )
  for split, ids in (("train", (1, 2, 3, 4)), ("validation", (5, 6))):
    rows = []
    for i in ids:
      name = names[i % 2]
      template = name.replace("something", "[something]")
      rows.append({"id": str(i), "template": template, "label": name})
      video = folder / "20bn-something-something-v2" / f"{i}.webm"
      # The name is what is looked up; the decoder looks at what is inside.
      write_clip(video.with_suffix(".mp4"), i % 2, i)
      video.with_suffix(".mp4").rename(video)
    (labels / f"{split}.json").write_text(json.dumps(rows))


def write_ccv(folder):
  lists = folder / "CCV"
  lists.mkdir()
  (lists / "categoryName.txt").write_text("Basketball\nBirthday\n")
  shown = {"a": "1 0", "b": "0 1", "c": "1 1", "d": "0 0"}
  for split in ("train", "test"):
    ids = [f"{split}-{name}" for name in shown]
    (lists / f"{split}VidID.txt").write_text("\n".join(ids) + "\n")
    (lists / f"{split}Label.txt").write_text(
      "".join(f"{row} \n" for row in shown.values())
    )
    for number, name in enumerate(ids[:-1]):  # One is gone.
      write_clip(folder / "CCV_videos" / f"{name}.mp4", number, number)


def write_folder(folder):
  for i, name in enumerate(CLASSES):
    for number in range(4):
      write_clip(folder / "VIDEOS" / name / f"{number}.mp4", i, number)
  write_clip(folder / "new.mp4", 1, 99)
  write_clip(folder / "long.mp4", 2, 98, repeats=12)


def small(config_path):
  """Flags that make a recipe small: networks, samples, steps."""
  name = Path(config_path).stem
  config = get_config(name)
  changes = {"eval.protocol": "2x1", "train.checkpoint_every": 1}
  changes |= {"report.num_examples": 2, "data.threads": 1}
  changes |= {"features.num_frames": 3}
  for stage in config.stages:
    kind = config[stage].kind
    own = {"batch_size": 2, "total_steps": 1, "optim.warmup_steps": 0}
    own |= {"optim.schedule": "constant", "optim.boundaries": "()"}
    if kind == "features":
      sizes = {"lstm": "hidden_sizes=(6,5)", "regularised": "hidden=7"}
      field, _, value = sizes[config[stage].model.name].partition("=")
      own[f"model.fields.{field}"] = value
    else:
      own |= {"model.width": 0.02, "input.image_size": 64, "init.weights": ""}
      if kind == "stream" and config[stage].model.name == "resnet50":
        own["model.name"] = "resnet18"  # It compiles in a third of the time.
    changes |= {f"{stage}.{key}": value for key, value in own.items()}
  return [f"--config.{key}={value}" for key, value in changes.items()]


def run(words, folder):
  """Runs a command of the page in a folder; what it printed."""
  assert words[0] == "python"
  config = [w for w in words if w.startswith("--config=")]
  extra = small(config[0]) if config else []
  # Flow is computed long enough to be compiled well.
  xla_flags = "" if "--flow=tvl1" in words else COMPILE_FAST
  done = subprocess.run(
    [sys.executable, *words[1:], *extra],
    cwd=folder,
    env=os.environ | {"XLA_FLAGS": xla_flags, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
  return done.stdout


@pytest.mark.walkthroughs
@pytest.mark.parametrize(
  "headings, write, expected",
  [
    (
      ["UCF-101, from the download to the report"],
      write_ucf101,
      ["runs/ucf101_tsn/report.html", "weights/resnet50.safetensors"],
    ),
    (
      ["A small part of Something-Something v2"],
      write_ssv2,
      ["runs/ssv2_mini_two_stream/report.html", "ssv2_mini.html"],
    ),
    (
      ["CCV: several labels per video"],
      write_ccv,
      ["runs/ccv_hybrid/results.json"],
    ),
    (
      ["Your own folder", "A long video"],
      write_folder,
      ["runs/mine/report.html", "exported/model_card.md", "timeline/long.csv"],
    ),
  ],
)
def test_a_walkthrough_runs_as_it_stands(tmp_path, headings, write, expected):
  write(tmp_path)
  for name in ("configs", "data_prep"):
    (tmp_path / name).symlink_to(ROOT / name)
  for heading in headings:
    for words in walkthroughs()[heading]:
      run(words, tmp_path)
  for path in expected:
    assert (tmp_path / path).stat().st_size > 0, path


def test_every_walkthrough_is_run():
  marks = test_a_walkthrough_runs_as_it_stands.pytestmark
  (cases,) = (m.args[1] for m in marks if m.name == "parametrize")
  assert [h for case in cases for h in case[0]] == [*walkthroughs()]
