"""An exported run: read back without flax and this package, and its card."""

import ast
import dataclasses
import errno
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from absl import flags

from twostream_jax import export, files, fuse, models
from twostream_jax.export import __main__ as command
from twostream_jax.export import card, programs, runner, write
from twostream_jax.flow import spec as flow_spec
from twostream_jax.models.stream import Stream
from twostream_jax.models.two_stream import TwoStream
from twostream_jax.scores import Scores
from twostream_jax.stages import trained
from twostream_jax.stages.rules import FusionRule

# What the runner is given: videos and windows of each call.
SIZES = (1, 2, 5)
FRAMES = 3
SOURCES = {"spatial": "rgb", "temporal": "flow"}

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import runner

model = runner.load(sys.argv[1])
given = np.load(sys.argv[2])
found = {}
for b in SIZES:
  part = {name: given[name][:b] for name in ("rgb", "flow")}
  prediction = model.predict(**part, windows_per_pass=4)
  for name, logits in (prediction.streams | prediction.fusion).items():
    found[f"{b}/{name}"] = logits
short = model.predict(**part, length=given["length"], stages=["network"])
found["short"] = short.streams["network"]
assert not short.fusion
foreign = {"flax", "twostream_jax", "tests", "cv2", "grain", "optax", "orbax"}
assert not foreign & {name.split(".")[0] for name in sys.modules}
np.savez(sys.argv[3], **found)
""".replace("SIZES", str(SIZES))


@pytest.fixture(scope="module")
def opened(finished_dir):
  return trained.open_run(finished_dir)


@pytest.fixture(scope="module")
def exported(opened, tmp_path_factory):
  """The folder of an export for all platforms."""
  folder = tmp_path_factory.mktemp("export") / "model"
  found = write.export_run(opened, folder, licence="CC-BY-4.0")
  assert list(found) == list(opened.stages)
  assert all(fits for _, fits in found.values())
  return folder


@pytest.fixture(scope="module")
def given():
  rng = np.random.default_rng(0)

  def codes(channels):
    shape = (max(SIZES), FRAMES, 64, 64, channels)
    return rng.integers(256, size=shape).astype(np.uint8)

  length = np.array([3, 1, 2, 3, 2], np.int32)
  return {"rgb": codes(3), "flow": codes(4), "length": length}


@pytest.fixture(scope="module")
def read_back(exported, given, tmp_path_factory):
  """What a process without flax and this package computes."""
  folder = tmp_path_factory.mktemp("elsewhere")
  np.savez(folder / "given.npz", **given)
  paths = [str(exported), str(folder / "given.npz"), str(folder / "out.npz")]
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT, *paths],
    cwd=folder,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return dict(np.load(folder / "out.npz"))


def apply(stage, inputs):
  """Logits and features of a stage's own network, all at once."""
  if "flow" in inputs:  # Planes, as the loader gives them.
    inputs = inputs | {"flow": np.moveaxis(inputs["flow"], -1, -3)}
  return jax.jit(
    lambda batch: stage.model.apply(
      stage.variables, stage.preprocess(batch), train=False
    )
  )(inputs)


def expected(opened, given, name, length=None):
  """Logits of a stage, by this package's own network."""
  stage = opened.stages[name]
  if stage.kind != "features":
    inputs = {m: given[m] for m in stage.views.spec.modalities}
    return np.asarray(apply(stage, inputs)[0])
  batch = {"length": length}
  for source in stage.sources:
    stream, modality = opened.stages[source], SOURCES[source]
    _, features = apply(stream, {modality: given[modality]})
    # As the run stores them.
    stored = np.asarray(features[stream.feature]).astype(np.float16)
    batch[source] = stored.astype(np.float32)
  return np.asarray(apply(stage, batch)[0])


@pytest.mark.parametrize("name", ["spatial", "temporal", "joint", "network"])
def test_a_process_without_flax_computes_the_same(
  opened, given, read_back, name
):
  length = np.full(max(SIZES), FRAMES, np.int32)
  logits = expected(opened, given, name, length)
  assert logits.dtype == read_back[f"1/{name}"].dtype == np.float32
  for b in SIZES:
    np.testing.assert_allclose(
      read_back[f"{b}/{name}"], logits[:b], rtol=1e-5, atol=1e-5
    )
  assert np.ptp(logits, axis=0).max() > 1e-3


def test_short_videos_say_their_length(opened, given, read_back):
  logits = expected(opened, given, "network", given["length"])
  np.testing.assert_allclose(read_back["short"], logits, rtol=1e-5, atol=1e-5)
  assert np.abs(logits - read_back["5/network"]).max() > 1e-4


def test_a_process_without_flax_fuses_the_same(opened, read_back):
  b = max(SIZES)
  streams = {
    name: Scores(
      tuple(map(str, range(b))), np.zeros(b, int), read_back[f"{b}/{name}"], ""
    )
    for name in opened.stages
  }
  assert len(opened.rules) == 4
  for name, rule in opened.rules.items():
    np.testing.assert_allclose(
      read_back[f"{b}/{name}"], rule(streams).logits, rtol=1e-5, atol=1e-5
    )


FITS = fuse.FITS | {
  # Without a search for the best strength.
  "logistic": functools.partial(fuse.fit_logistic, lambdas=[0.01]),
  "adaptive": functools.partial(fuse.fit_adaptive, lambdas=[(0.01, 1e-3)]),
}


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("name", ["average_logits", "weighted", *FITS])
def test_every_rule_is_the_same_as_plain_numbers(opened, name, multi_label):
  rng = np.random.default_rng(1)
  labels = rng.integers(3, size=20)
  ids = tuple(map(str, range(20)))
  if multi_label:
    labels = np.eye(3, dtype=bool)[labels] | (rng.random((20, 3)) > 0.8)
  streams = {
    stage: Scores(ids, labels, rng.normal(size=(20, 3)).astype("f4"), stage)
    for stage in opened.stages
  }
  rule = FusionRule(name, weights=(1.0, 2.0, 0.0, 0.5))
  if name in FITS:
    fitted = FITS[name](streams, split="validation")
    rule = FusionRule(name, fitted=fitted)
  # Through text, as it is stored.
  plain = json.loads(json.dumps(write.describe_rule(opened, rule)))
  logits = {stage: found.logits for stage, found in streams.items()}
  # Sure scores, where a floor keeps logarithms finite.
  sure = {stage: 900 * x for stage, x in logits.items()}
  for values in (logits, sure):
    named = {
      stage: dataclasses.replace(found, logits=values[stage])
      for stage, found in streams.items()
    }
    np.testing.assert_allclose(
      runner.fuse(plain, values, multi_label),
      rule(named).logits,
      rtol=1e-5,
      atol=1e-5,
    )


def operations(program):
  """How many convolutions a program has, and what it calls by name."""
  text = program.mlir_module()
  calls = set(re.findall(r"stablehlo.custom_call @(\w+)", text))
  return text.count("stablehlo.convolution"), calls


def test_what_is_written_for_cpus_stays_there(opened):
  """1 x 1 maps are products of matrices on a CPU, convolutions elsewhere."""
  program = programs.create_program(opened, "temporal")
  weights = programs.flat_weights(opened)
  found = {
    platform: operations(programs.export_program(program, weights, platform))
    for platform in export.PLATFORMS
  }
  kernels = [
    path
    for path, array in weights.items()
    if path.startswith("temporal/") and array.ndim == 4
  ]
  # What checks that b and t are at least 1 is not a kernel of ours.
  plain = (len(kernels), {"shape_assertion"})
  assert found["cuda"] == found["tpu"] == plain
  assert found["cpu"][0] < len(kernels)
  assert found["cpu"][1] <= {"shape_assertion"}


def vgg(use_batch_norm):
  return models.create_model(
    "vgg11_bn" if use_batch_norm else "vgg11", num_classes=12, width=0.02
  )


@pytest.mark.parametrize(
  "name, model",
  [
    (
      "temporal",
      Stream(
        modality="flow",
        backbone=models.create_model("resnet18", num_classes=12, width=0.02),
      ),
    ),
    ("spatial", Stream(modality="rgb", backbone=vgg(True))),
    (
      "joint",
      TwoStream(spatial=vgg(False), temporal=vgg(False), fusion="conv"),
    ),
  ],
)
def test_every_kind_of_network_is_lowered_for_other_platforms(
  opened, name, model
):
  stage = opened.stages[name]
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False),
    jax.random.key(0),
    stage.preprocess(stage.example),
  )
  blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  stage = dataclasses.replace(stage, model=model, variables=blank)
  run = dataclasses.replace(opened, stages={name: stage})
  program, weights = (
    programs.create_program(run, name),
    programs.flat_weights(run),
  )
  kernels = [path for path, array in weights.items() if array.ndim == 4]
  for platform in ("cuda", "tpu"):
    exported = programs.export_program(program, weights, platform)
    assert operations(exported) == (len(kernels), {"shape_assertion"})
    assert str(exported.out_avals[0].shape[0]) == "b"


def test_programs_take_any_number_of_videos_and_windows(exported):
  manifest = json.loads((exported / "manifest.json").read_text())
  for platform in export.PLATFORMS:
    for stage in manifest["stages"].values():
      data = (exported / stage["programs"][platform]).read_bytes()
      program = jax.export.deserialize(bytearray(data))
      assert program.platforms == (platform,)
      (logits,) = program.out_avals
      assert logits.dtype == jnp.float32
      assert str(logits.shape[0]) == "b" and logits.shape[1] == 12
  weights = safetensors.numpy.load_file(exported / "weights.safetensors")
  codes = np.zeros((2, 3, 64, 64, 3), np.uint8)
  codes[:, 1:] = 200
  stage = runner.load(exported).programs["spatial"]
  own = {k: x for k, x in weights.items() if k.startswith("spatial/")}
  whole = stage(own, {"rgb": codes})
  parts = [stage(own, {"rgb": codes[:, i : i + 1]}) for i in range(3)]
  np.testing.assert_allclose(whole, np.mean(parts, axis=0), atol=1e-5)


@pytest.mark.slow
def test_sequences_are_read_end_to_end(opened, given):
  """LSTMs too; and of two heads only the first is scored."""
  network = opened.stages["network"]
  model = models.create_feature_model(
    "joint_hybrid",
    num_classes=12,
    sources=network.sources,
    dropout_rate=0.5,
    hidden=7,
    lstm_sizes=(6, 5),
  )
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False),
    jax.random.key(0),
    network.preprocess(network.example),
  )
  rng = np.random.default_rng(2)
  variables = jax.tree.map(
    lambda x: rng.normal(scale=0.5, size=x.shape).astype(x.dtype), shapes
  )
  stage = dataclasses.replace(
    network, model=model, variables=variables, num_classes=5
  )
  run = dataclasses.replace(opened, stages=opened.stages | {"network": stage})
  program = programs.create_program(run, "network")
  weights = programs.flat_weights(run)
  programs.export_program(program, weights, "cuda")
  data = programs.export_program(program, weights, "cpu").serialize()
  length = given["length"]
  inputs = {source: given[m] for source, m in SOURCES.items()}
  found = jax.jit(jax.export.deserialize(data).call)(
    programs.weights_of(weights, program.parts), inputs | {"length": length}
  )
  wanted = expected(run, given, "network", length)[:, :5]
  assert found.shape == (max(SIZES), 5)
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
  assert np.ptp(wanted, axis=0).max() > 1e-3


def test_the_weights_are_those_of_the_run(opened, exported):
  weights = safetensors.numpy.load_file(exported / "weights.safetensors")
  kernel = opened.stages["spatial"].variables["params"]["backbone"]["conv1"]
  np.testing.assert_array_equal(
    weights["spatial/params/backbone/conv1/kernel"], kernel["kernel"]
  )
  assert {path.split("/")[0] for path in weights} == set(opened.stages)
  assert "network/statistics/temporal/mean" in weights


def test_the_manifest_and_the_card_say_what_the_run_was(opened, exported):
  manifest = json.loads((exported / "manifest.json").read_text())
  assert manifest["class_names"] == list(opened.class_names)
  assert flow_spec.from_dict(manifest["flow_spec"]) == opened.flow_spec
  assert manifest["licence"] == "CC-BY-4.0"
  assert manifest["clips"] == {"train": 24, "validation": 12, "test": 12}
  results = json.loads((opened.workdir / "results.json").read_text())
  assert manifest["results"] == results
  card = (exported / "model_card.md").read_text()
  assert "Licence: CC-BY-4.0" in card
  for stage in opened.stages.values():
    assert f"- {stage.name}: {stage.protocol}" in card
  for name in opened.class_names:
    assert f". {name}\n" in card + "\n"
  for name, found in (results["streams"] | results["fusion"]).items():
    assert f"| {name} | {found['top1']:.3f}" in card
  assert "| network | features |" in card
  assert "bound B = 20 pixels" in card and '"algorithm": "dis"' in card
  assert "| test | 12 | test |" in card
  # Every table has as many cells in each line.
  for block in card.split("\n\n"):
    if block.startswith("| "):
      assert len({line.count("|") for line in block.splitlines()}) == 1


@pytest.mark.parametrize(
  "keys, value, match",
  [
    (
      ("digests", "weights", "joint"),
      "x",
      "stage 'joint' are of other weights",
    ),
    (("protocols", "spatial"), "1 view", "'spatial' are of another protocol"),
    (("digests", "videos"), "x", "other videos or labels"),
    (("digests",), {}, None),  # Of an earlier version.
  ],
)
def test_numbers_of_something_else_are_not_exported(
  opened, tmp_path, keys, value, match
):
  for name in ("config.json", "results.json"):
    shutil.copy(opened.workdir / name, tmp_path / name)
  path = tmp_path / "results.json"
  results = json.loads(path.read_text())
  functools.reduce(dict.get, keys[:-1], results)[keys[-1]] = value
  path.write_text(json.dumps(results))
  run = dataclasses.replace(opened, workdir=tmp_path)
  if match is None:
    assert write._facts(run, "", ())["results"] == results
  else:
    with pytest.raises(write.ExportError, match=match):
      write.export_run(run, tmp_path / "out", platforms=["cpu"])
    assert not (tmp_path / "out").exists()


def test_intervals_are_told_where_the_run_has_them(opened, exported):
  manifest = json.loads((exported / "manifest.json").read_text())
  results = manifest["results"]
  results["intervals"] = {
    group: {
      name: {metric: [0.125, 0.875] for metric in found}
      for name, found in results[group].items()
    }
    for group in ("streams", "fusion")
  }
  text = card.model_card(manifest, {})
  assert "(0.125–0.875)" in text and "95 % intervals" in text
  results["protocols"]["spatial"] = "another protocol"
  assert "- spatial: another protocol" in card.model_card(manifest, {})
  text = card.model_card(manifest | {"results": None}, {})
  assert "no results.json" in text


@pytest.mark.parametrize(
  "kept, used, words",
  [
    (("svm",), 'fusion["svm"]', "| svm |"),
    ((), 'streams["spatial"]', "None: the run has no rule."),
  ],
)
def test_the_card_uses_the_rules_and_stages_of_the_run(
  exported, kept, used, words
):
  manifest = json.loads((exported / "manifest.json").read_text())
  rule = json.loads((exported / "fusion.json").read_text())["average"]
  text = card.model_card(manifest, dict.fromkeys(kept, rule))
  assert f"model.top(found.{used}, 5)" in text and words in text
  assert "average" not in text.split("## Networks")[0]
  one = {"look": manifest["stages"]["temporal"]}
  results = manifest["results"]
  results = results | {
    "streams": {"look": results["streams"]["temporal"]},
    "fusion": {},
    "intervals": {
      "streams": {"look": results["intervals"]["streams"]["temporal"]},
      "fusion": {},
    },
  }
  text = card.model_card(manifest | {"stages": one, "results": results}, {})
  assert 'model.top(found.streams["look"], 5)' in text
  assert "`flow={" + '"look": ...}`' in text and "there is one stage" in text


def test_quantisation_is_that_of_the_flow_spec(opened, exported):
  model = runner.load(exported)
  flow = np.linspace(-25, 25, 1001)
  np.testing.assert_array_equal(
    model.quantise(flow), flow_spec.quantise(flow, opened.flow_spec.bound)
  )
  with pytest.raises(ValueError, match="not a number"):
    model.quantise(np.array([np.nan]))


def test_the_best_classes_are_named(exported):
  model = runner.load(exported)
  logits = np.zeros((2, 12), np.float32)
  logits[0, 3], logits[1, 5] = 5.0, 4.0
  best = model.top(logits, 2)
  assert [row[0][0] for row in best] == [
    model.class_names[3],
    model.class_names[5],
  ]
  share = np.exp(5) / (np.exp(5) + 11)
  assert best[0][0][1] == pytest.approx(share)
  assert len(best[0]) == 2


def test_stages_may_be_given_videos_of_their_own(exported, given, read_back):
  model = runner.load(exported)
  rgb, flow = given["rgb"][:2], given["flow"][:2]
  found = model.predict(
    rgb={"spatial": rgb[:, :1], "network/spatial": rgb, "joint": rgb},
    flow=flow,
  )
  for name in ("temporal", "network", "joint"):
    np.testing.assert_allclose(
      found.streams[name], read_back[f"2/{name}"], rtol=1e-5, atol=1e-5
    )
  assert np.abs(found.streams["spatial"] - read_back["2/spatial"]).max() > 1e-4
  with pytest.raises(ValueError, match="different numbers of videos"):
    model.predict(
      rgb={"spatial": rgb[:1], "temporal": rgb},
      flow=flow,
      stages=["spatial", "temporal"],
    )


@pytest.mark.parametrize(
  "change, match",
  [
    ({"flow": None}, "'temporal' reads flow, which is not given"),
    ({"rgb": {"spatial": 0}}, "'network' reads rgb, which is not given"),
    ({"rgb": np.zeros((1, 3, 32, 32, 3), np.uint8)}, r"\[b t 64 64 3\], got"),
    ({"rgb": np.zeros((1, 3, 64, 64, 3))}, "uint8 .*, got float64"),
    ({"length": np.array([4])}, "length must be 1 numbers in 1..3"),
    ({"stages": ["audio"]}, "no stage 'audio'; there are"),
    ({"flow": np.zeros((1, 2, 64, 64, 4), np.uint8)}, r"\[b 3 64 64 4\]"),
  ],
)
def test_what_the_runner_can_not_read_is_named(exported, given, change, match):
  model = runner.load(exported)
  # Without waiting for a network.
  blank = {name: lambda *_: np.zeros((1, 12), "f4") for name in model.programs}
  model = dataclasses.replace(model, programs=blank)
  arguments = {"rgb": given["rgb"][:1], "flow": given["flow"][:1]} | change
  if isinstance(arguments["rgb"], dict):
    arguments["rgb"] = {"spatial": given["rgb"][:1]}
  with pytest.raises(ValueError, match=match):
    model.predict(**arguments)


def test_the_runner_says_when_a_model_has_changed(exported, tmp_path, capsys):
  copy = tmp_path / "model"
  shutil.copytree(exported, copy)
  path = copy / "weights.safetensors"
  weights = safetensors.numpy.load_file(path)
  name = "joint/params/temporal/logits/bias"
  weights[name] = weights[name] + 1
  path.write_bytes(safetensors.numpy.save(weights))
  spec = importlib.util.spec_from_file_location("copied", copy / "runner.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  assert module.main([]) == 1
  printed = capsys.readouterr().out
  assert "joint: DIFFERS" in printed and "spatial: ok" in printed


def test_the_runner_imports_nothing_else():
  tree = ast.parse(Path(runner.__file__).read_text())
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names |= {alias.name.split(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names.add(node.module.split(".")[0])
  others = names - set(sys.stdlib_module_names)
  assert others == {"jax", "numpy", "safetensors"}


@pytest.mark.parametrize(
  "text, match",
  [
    (None, "no exported model in"),
    ("{", "manifest.json can't be read: Expecting property name"),
    ("[" * 9999, "manifest.json can't be read: nested too deeply"),
    ("[1]", "manifest.json can't be read: it holds no names"),
    ('{"format": "x", "format_version": 1}', "this file reads"),
  ],
)
def test_what_is_no_export_is_named(tmp_path, text, match):
  if text is not None:
    (tmp_path / "manifest.json").write_text(text)
  with pytest.raises(ValueError, match=match):
    runner.load(tmp_path)


def run_command(*arguments):
  values = flags.FlagValues()
  command.define_flags(values)
  values(["export", *arguments])
  return command.run(values)


@pytest.fixture
def alone(opened):
  """A run of one stream."""
  one = {"spatial": opened.stages["spatial"]}
  return dataclasses.replace(opened, stages=one, rules={})


def test_the_command_exports_for_one_platform_and_replaces(
  alone, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(trained, "open_run", lambda _: alone)
  out = tmp_path / "model"
  out.mkdir()
  arguments = ("--workdir=x", f"--out={out}", "--platforms=tpu")
  assert run_command(*arguments) == 0
  assert "Not read back" in capsys.readouterr().out
  programs_there = [path.name for path in (out / "programs").iterdir()]
  assert programs_there == ["spatial-tpu.jax"]
  assert "None: there is one stage" in (out / "model_card.md").read_text()
  with pytest.raises(ValueError, match=r"exported for \['tpu'\], not 'cpu'"):
    runner.load(out)
  # What Python leaves beside the runner is not a file of the user; notes are.
  (out / "__pycache__").mkdir()
  (out / "__pycache__" / "runner.cpython-311.pyc").touch()
  (out / "programs" / "stale-tpu.jax").touch()
  (out / "notes").write_text("mine")
  assert run_command(*arguments) == 1
  assert re.search(r"model/notes'.* was not written", capsys.readouterr().err)
  assert (out / "notes").read_text() == "mine"
  (out / "notes").unlink()
  assert run_command(*arguments) == 0
  assert sorted(path.name for path in (out / "programs").iterdir()) == [
    "spatial-tpu.jax"
  ]
  assert not (out / "__pycache__").exists()
  assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_goes_to_where_a_link_leads_and_removes_no_other(
  alone, tmp_path
):
  (tmp_path / "link").symlink_to("real")
  for name in (".real.tmp", ".real.old"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis").touch()
  write.export_run(alone, tmp_path / "link", platforms=["tpu"])
  assert (tmp_path / "link").is_symlink()
  assert (tmp_path / "real" / "manifest.json").is_file()
  assert len(list(tmp_path.glob(".real.*/thesis"))) == 2
  assert len(list(tmp_path.iterdir())) == 4


def test_a_full_disk_names_the_export(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(write, "_write", full)
  out = tmp_path / "model"
  with pytest.raises(
    write.ExportError, match=f"^can't write to {out} .No space.*--out=DIR$"
  ):
    write.export_run(None, out)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "name", ["programs/notes.jax", "programs/a-cpu.jax.txt", ".mine.jax"]
)
def test_an_earlier_export_with_a_file_of_somebody_is_kept(name, tmp_path):
  (tmp_path / "programs").mkdir()
  manifest = {"format": runner.FORMAT}
  (tmp_path / "manifest.json").write_text(json.dumps(manifest))
  (tmp_path / "programs" / "spatial-cpu.jax").touch()
  files.require_own(tmp_path, write.OWN)
  (tmp_path / name).touch()
  with pytest.raises(files.ForeignFileError, match=re.escape(name)):
    write.export_run(None, tmp_path)
  assert (tmp_path / name).exists()


@pytest.mark.parametrize("key", ["weights", "fusion", "programs"])
@pytest.mark.parametrize("how", ["up", "absolute", "link"])
def test_a_manifest_names_no_file_elsewhere(exported, tmp_path, key, how):
  copy = tmp_path / "model"
  shutil.copytree(exported, copy)
  manifest = json.loads((copy / "manifest.json").read_text())
  stage = manifest["stages"]["spatial"]
  of = stage["programs"] if key == "programs" else manifest
  entry = "cpu" if key == "programs" else key
  (copy / of[entry]).rename(tmp_path / "secret")
  if how == "link":
    (copy / of[entry]).symlink_to(tmp_path / "secret")
  else:
    of[entry] = {"up": "../secret", "absolute": f"{tmp_path}/secret"}[how]
  manifest["stages"] = {"spatial": stage}
  (copy / "manifest.json").write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match="names .*, outside of"):
    runner.load(copy)


@pytest.mark.parametrize(
  "name, data, said",
  [
    ("weights.safetensors", b"", "can't be read"),
    ("weights.safetensors", None, "not there, or no file"),
    ("weights.safetensors", b"\0\0\0\2" + b"\0" * 4, "33554432 bytes of names"),
    ("fusion.json", b"[" + b"1," * 9_000_000 + b"1]", "too many names"),
    ("fusion.json", b"{\xff}", "can't be read: 'utf-8'"),
    ("fusion.json", b'{"a": {"streams": ["x"]}}', "stages that there are not"),
    ("programs/spatial-cpu.jax", b"\0" * 99, "can't be read"),
  ],
)
def test_damaged_files_are_named(exported, tmp_path, name, data, said):
  copy = tmp_path / "model"
  shutil.copytree(exported, copy)
  if data is None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
  else:
    (copy / name).write_bytes(data)
  with pytest.raises(ValueError, match=f"{name}.* {said}") as caught:
    runner.load(copy)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "key, value",
  [
    ("class_names", "abcdefghijkl"),
    ("multi_label", 1),
    ("flow_spec", {"bound": float("nan")}),
    ("weights", 7),
    ("stages", []),
    ("stages", {"a\x1b": {}}),
  ],
)
def test_manifests_of_other_types_are_refused(exported, tmp_path, key, value):
  manifest = json.loads((exported / "manifest.json").read_text())
  text = json.dumps(manifest | {key: value})
  (tmp_path / "manifest.json").write_text(text)
  with pytest.raises(ValueError, match="manifest.json can't be read") as caught:
    runner.load(tmp_path)
  assert "\x1b" not in str(caught.value)


def test_a_program_that_ends_who_parses_it_is_refused(
  exported, tmp_path, monkeypatch
):
  """As JAX's parser does on some damaged files."""
  python = tmp_path / "python"
  python.write_text("#!/bin/sh\nkill -SEGV $$\n")
  python.chmod(0o755)
  monkeypatch.setattr(runner.sys, "executable", str(python))
  runner._faults.cache_clear()
  with pytest.raises(ValueError, match="cpu.jax can't be read: .* crashed"):
    runner.load(exported)
  runner._faults.cache_clear()


def test_a_program_reads_the_weights_that_are_there(exported, tmp_path):
  copy = tmp_path / "model"
  shutil.copytree(exported, copy)
  path = copy / "weights.safetensors"
  weights = safetensors.numpy.load_file(path)
  first = next(key for key in sorted(weights) if key.startswith("spatial/"))
  weights[first] = np.zeros(7, np.float32)
  safetensors.numpy.save_file(weights, path)
  with pytest.raises(ValueError, match=f"cpu.jax .*do not fit it.*{first}"):
    runner.load(copy)


def test_a_program_that_calls_other_functions_is_not_run(exported, tmp_path):
  copy = tmp_path / "model"
  shutil.copytree(exported, copy)
  path = copy / "programs" / "spatial-cpu.jax"

  def calls(x):
    kind = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.ffi.ffi_call("some_function", kind)(x)

  check = jax.export.DisabledSafetyCheck.custom_call("some_function")
  program = jax.export.export(
    jax.jit(calls), platforms=["cpu"], disabled_checks=[check]
  )(jax.ShapeDtypeStruct((2,), np.float32))
  path.write_bytes(program.serialize())
  with pytest.raises(ValueError, match="spatial-cpu.jax calls functions"):
    runner.load(copy)


@pytest.mark.parametrize(
  "change, words",
  [
    ("other", "is there already and is not an earlier export"),
    ("unfinished", "stage 'joint' of .* is not trained"),
    ("platform", r"platforms \['abacus'\] must be of"),
    ("nowhere", "no run in"),
    ("forgotten", "--out is not given"),
  ],
)
def test_the_command_refuses_with_words(
  finished_dir, tmp_path, capsys, change, words
):
  out, workdir, platforms = tmp_path / "out", finished_dir, "cpu"
  if change == "other":
    out.mkdir()
    (out / "thesis.txt").touch()
  elif change == "unfinished":
    workdir = tmp_path / "run"
    shutil.copytree(finished_dir, workdir)
    shutil.rmtree(workdir / "joint")
  elif change == "platform":
    platforms = "abacus"
  elif change == "nowhere":
    workdir = tmp_path / "nowhere"
  before = sorted(tmp_path.rglob("*"))
  arguments = [f"--workdir={workdir}", f"--platforms={platforms}"]
  if change != "forgotten":
    arguments.append(f"--out={out}")
  assert run_command(*arguments) == 1
  assert re.search(words, capsys.readouterr().err)
  assert sorted(tmp_path.rglob("*")) == before


def test_a_model_that_scores_otherwise_is_not_exported(
  alone, tmp_path, monkeypatch
):
  monkeypatch.setattr(runner, "check", lambda _: {"spatial": (0.5, False)})
  with pytest.raises(write.ExportError, match="not score as the run.*0.5"):
    write.export_run(alone, tmp_path / "model", platforms=["cpu"])
  assert not list(tmp_path.iterdir())
