"""The model card: what a person has to know to use an exported model."""

import json
from collections.abc import Mapping
from typing import Any

from twostream_jax.files import json_files, tables
from twostream_jax.files.words import lines as printed_lines
from twostream_jax.files.words import printable


def model_card(manifest: Mapping[str, Any], rules: Mapping[str, Any]) -> str:
  """The card in Markdown.

  Args:
    manifest: of the export.
    rules: of fusion, as in fusion.json.
  """
  sections = [
    _head(manifest),
    _use(manifest, rules),
    _networks(manifest),
    _data(manifest),
    _numbers(manifest),
    _inputs(manifest),
    _flow(manifest),
    _fusion(manifest, rules),
    _files(manifest),
    _classes(manifest),
  ]
  return "\n\n".join(sections) + "\n"


def _shape(spec: Mapping[str, Any]) -> str:
  return f"{spec['modality']} uint8 [{' '.join(map(str, spec['shape']))}]"


def _head(manifest) -> str:
  kind = "any number of classes" if manifest["multi_label"] else "one class"
  return (
    f"# Two-stream video classifier, trained on"
    f" {printable(manifest['dataset'])}\n\n"
    f"Licence: {manifest['licence'] or 'not stated'}\n\n"
    f"Gives a video {kind} out of {len(manifest['class_names'])}. Exported by"
    f" twostream_jax {manifest['versions']['twostream_jax']}."
  )


def _use(manifest, rules) -> str:
  given = sorted(
    {
      spec["modality"]
      for stage in manifest["stages"].values()
      for spec in stage["inputs"].values()
    },
    reverse=True,
  )
  arguments = ", ".join(f"{name}={name}" for name in given)
  # The first of them, as `predict` answers by default.
  scores = f"streams[{_quoted(manifest['stages'])}]"
  if rules:
    scores = f"fusion[{_quoted(rules)}]"
  return (
    "## Use\n\n"
    "Needs Python with `pip install jax safetensors flatbuffers`. In this"
    " folder:\n\n"
    "```python\n"
    "import runner\n\n"
    'model = runner.load(".")\n'
    f"found = model.predict({arguments})  # Codes, see below.\n"
    f"model.top(found.{scores}, 5)\n"
    "```\n\n"
    "`python runner.py` computes a stored example again and tells the"
    " difference. Programs are there for"
    f" {', '.join(manifest['platforms'])}; the number of videos and of windows"
    " is free. JAX promises to run them in releases up to six months newer than"
    ' the one they were made with ("Compatibility guarantees" in'
    " https://docs.jax.dev/en/latest/export/export.html); the weights are plain"
    " arrays for as long as there are files."
  )


def _quoted(named: Mapping[str, Any]) -> str:
  """The first name, as a literal of Python and JSON."""
  return json.dumps(next(iter(named)))


def _networks(manifest) -> str:
  rows = [
    (
      name,
      stage["kind"],
      stage["network"],
      f"{stage['parameters']:,}",
      stage["step"],
      "; ".join(_shape(spec) for spec in stage["inputs"].values()),
    )
    for name, stage in manifest["stages"].items()
  ]
  header = ("stage", "kind", "network", "parameters", "steps", "input")
  return (
    "## Networks\n\n"
    + tables.markdown(header, rows)
    + "\n\nb videos, t windows; logits come out as float32 [b n], a video's"
    " are the mean over its windows. A stage of kind `features` reads features"
    " of other stages, whose networks are part of its program; their"
    " parameters are not counted again."
  )


def _data(manifest) -> str:
  used = {split: use for use, split in manifest["splits"].items() if split}
  rows = [
    (split, clips, used.get(split, ""))
    for split, clips in manifest["clips"].items()
  ]
  return f"## Data\n\n{printable(manifest['dataset'])}:\n\n" + tables.markdown(
    ("split", "clips", "used to"), rows
  )


def _numbers(manifest) -> str:
  results = manifest["results"]
  if results is None:
    return "## Numbers\n\nNone: the run has no results.json."
  with json_files.told("results.json of the run"):
    return printed_lines(_scores(manifest, results))


def _scores(manifest, results) -> str:
  groups = ("streams", "fusion")
  rows = []
  for group in groups:
    for name, metrics in results[group].items():
      bounds = {}
      if "intervals" in results:
        bounds = results["intervals"][group][name]
      cells = [_number(metrics, bounds, metric) for metric in metrics]
      rows.append((name, *cells))
  metrics = list(next(iter(results["streams"].values())))
  skipped = f", {results['skipped']} more could not be read"
  said = (
    " In brackets 95 % intervals (over videos)."
    if "intervals" in results
    else ""
  )
  protocols = results["protocols"]
  of_stages = {k: stage["protocol"] for k, stage in manifest["stages"].items()}
  told = "the run's test protocol, see Inputs."
  if protocols != of_stages:
    told = "\n\n" + "\n".join(f"- {k}: {text}" for k, text in protocols.items())
  return (
    f"## Numbers\n\nOn the split `{results['split']}`: {results['videos']}"
    f" videos{skipped * bool(results['skipped'])}.{said}\n\n"
    + tables.markdown(("scores of", *metrics), rows)
    + f"\n\nProtocol: {told}"
  )


def _number(metrics, bounds, name: str) -> str:
  text = f"{metrics[name]:.3f}"
  if name in bounds:
    low, high = bounds[name]
    text += f" ({low:.3f}–{high:.3f})"
  return text


def _inputs(manifest) -> str:
  protocols = "\n".join(
    f"- {printable(name)}: {stage['protocol']}"
    for name, stage in manifest["stages"].items()
  )
  first = next(iter(manifest["stages"].values()))
  modality = next(iter(first["inputs"].values()))["modality"]
  halves = ", forward fields first and then as many backward ones" * (
    manifest["flow_spec"]["direction"] == "bidirectional"
  )
  return (
    "## Inputs\n\n"
    "All inputs are codes 0..255; networks normalise them themselves.\n\n"
    "- rgb: R, G, B of a frame.\n"
    "- flow: a stack of quantised fields, channels"
    f" {manifest['flow_spec']['channel_order']}{halves}; mirrored left to"
    " right, x becomes 255 - x.\n"
    "- Windows: frames, or starts of stacks, equally spaced over the video, as"
    " the protocols say. A `joint` stage takes the frame in the middle of each"
    " stack. A stage of kind `features` takes exactly as many windows as its"
    " shape says; a shorter video repeats its last one and says their number"
    " in `length`.\n"
    "- Where stages read other windows or sizes of one modality, give them by"
    f" stage: `{modality}={{{_quoted(manifest['stages'])}: ...}}`.\n\n"
    f"The windows and crops of the run's test protocol:\n\n{protocols}"
  )


def _flow(manifest) -> str:
  spec = manifest["flow_spec"]
  bound, short = spec["bound"], spec["short_side"]
  return (
    "## Optical flow\n\n"
    "Flow of another kind ruins the scores without any error. It was computed"
    f" on frames whose short side is {short} pixels, between frames"
    f" {spec['step']} apart, in pixels, x to the right and y down, and"
    f" quantised with the bound B = {bound:g} pixels:\n\n"
    "    code = round((clip(flow, -B, B) + B) * 255 / (2 B))\n"
    "    flow = code * 2 B / 255 - B\n\n"
    "`model.quantise(flow)` of runner.py does the first. In training the"
    f" fields were stored as JPEG of quality {spec['quality']}. In full:\n\n"
    f"```json\n{json.dumps(spec, indent=2)}\n```"
  )


def _fusion(manifest, rules) -> str:
  if not rules:
    several = len(manifest["stages"]) > 1
    why = "the run has no rule" if several else "there is one stage"
    return f"## Fusion\n\nNone: {why}."
  rows = [
    (
      name,
      rule["kind"].replace("_", " "),
      ", ".join(
        f"{stream} {weight:g}"
        for stream, weight in zip(rule["streams"], rule["weights"], strict=True)
      )
      if rule["kind"] == "mean_of_probabilities"
      else ", ".join(rule["streams"]),
      rule["fitted_on"] or "not fitted",
    )
    for name, rule in rules.items()
  ]
  return "## Fusion\n\n" + tables.markdown(
    ("rule", "what it is", "stages", "fitted on"), rows
  )


def _files(manifest) -> str:
  versions = ", ".join(f"{k} {v}" for k, v in manifest["versions"].items())
  return (
    "## Files\n\n"
    "- `manifest.json`: all of this, to be read by programs.\n"
    f"- `{manifest['weights']}`: weights by path, float32.\n"
    "- `programs/STAGE-PLATFORM.jax`: the stage as StableHLO, serialised by"
    " `jax.export`; takes the weights whose paths begin with the stages that"
    " `manifest.json` lists, and the inputs.\n"
    f"- `{manifest['fusion']}`: the rules as plain numbers.\n"
    "- `runner.py`: reads and runs all of these.\n\n"
    f"Made with {versions}."
  )


def _classes(manifest) -> str:
  names = "\n".join(
    f"{i}. {printable(name)}" for i, name in enumerate(manifest["class_names"])
  )
  return f"## Classes\n\nNumbered from 0, as the logits are.\n\n{names}"
