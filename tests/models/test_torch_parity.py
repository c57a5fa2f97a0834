"""Every backbone, and the LSTM, against the same in plain torch.nn.

The weights are random, in PyTorch's layout, and reach the models here by the
transposes in this file. Both sides compute in float32.

The maps before fc6 are not square, and the images not divisible by 32: swapped
axes, wrong orders and wrong rounding would show.
"""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util

from twostream_jax.models import BACKBONES, create_model
from twostream_jax.models.lstm import LSTMClassifier
from twostream_jax.pretrained import load_pretrained

torch = pytest.importorskip(
  "torch", reason="parity with PyTorch needs torch: pip install -e '.[torch]'"
)

from tests.models import torch_networks  # noqa: E402

TOLERANCE = 1e-4  # Relative to the largest absolute value of an array.
SIZE = (80, 112)
MAP = (2, 3)  # What of SIZE reaches fc6.
CLASSES = 5
LABEL = np.array([1, 3])
SEED = 0

NARROW = 1 / 8
# Deep networks are compared at an eighth of their width, to save time; one
# of each kind also as it is.
CASES = [
  *((name, NARROW, {}) for name in BACKBONES if name != "cnn_m"),
  *((name, 1.0, {}) for name in ("vgg11_bn", "vgg16", "resnet18", "resnet50")),
  ("cnn_m", 1.0, {"normalisation": "lrn", "second_lrn": True}),
  ("cnn_m", NARROW, {"normalisation": "lrn", "second_lrn": False}),
  ("cnn_m", NARROW, {"normalisation": "batch"}),
  ("cnn_m", NARROW, {"normalisation": "none"}),
]


def _case_id(case):
  name, width, fields = case
  return "-".join(map(str, (name, width, *fields.values())))


def _torch_network(name, width, fields, size=SIZE):
  """The network of a case, with random weights."""
  common = {"width": width, "classes": CLASSES}
  if name == "cnn_m":
    fields = {"second_lrn": True, **fields}
    module = torch_networks.CNNM(**common, size=size, **fields)
  elif name.startswith("vgg"):
    depth, _, batch_norm = name.removeprefix("vgg").partition("_")
    module = torch_networks.VGG(
      int(depth), batch_norm=bool(batch_norm), size=size, **common
    )
  else:
    depth = int(name.removeprefix("resnet"))
    module = torch_networks.ResNet(depth, **common)
  return _randomise(module)


def _randomise(module):
  """Random weights and statistics; kernels keep the activations' size."""
  generator = torch.Generator().manual_seed(SEED)
  for name, x in module.state_dict().items():
    if x.ndim > 1:
      x.normal_(0.0, (2 / x[0].numel()) ** 0.5, generator=generator)
    elif name.endswith("num_batches_tracked"):
      continue
    elif name.endswith(("bias", "running_mean")):
      x.normal_(0.0, 0.1, generator=generator)
    else:  # Scales and variances of batch norm.
      x.uniform_(0.5, 1.5, generator=generator)
  return module


def _images(name):
  x = np.random.default_rng(SEED).normal(size=(2, *SIZE, 3))
  # In the range of pixels of 0..255, where LRN is far from a mere scaling.
  x *= 60 if name == "cnn_m" else 1
  return x.astype(np.float32)


def _path(name, module):
  """Where the layer that PyTorch calls `name` is in the variables here."""
  if isinstance(module, torch_networks.VGG):
    group, index = name.split(".")
    if group == "classifier":
      return ({"0": "fc6", "3": "fc7", "6": "logits"}[index],)
    before = list(module.features[: int(index) + 1])
    pools = [
      i for i, x in enumerate(before) if isinstance(x, torch.nn.MaxPool2d)
    ]
    stage = before[pools[-1] + 1 if pools else 0 :]
    count = sum(isinstance(x, torch.nn.Conv2d) for x in stage)
    kind = "conv" if isinstance(before[-1], torch.nn.Conv2d) else "bn"
    return (f"{kind}{len(pools) + 1}_{count}",)
  if name == "fc":
    return ("logits",)
  if name.startswith("layer"):
    stage, block, layer = name.split(".", 2)
    layer = {
      "downsample.0": "downsample_conv",
      "downsample.1": "downsample_bn",
    }.get(layer, layer)
    return f"{stage}_{block}", layer
  return (name,)


def _numpy(tensor):
  # A copy: PyTorch updates running statistics in place.
  return tensor.detach().numpy().copy()


def _hwio(weight):
  return np.einsum("oihw->hwio", _numpy(weight))


def _from_chw(weight, height, width):
  """[n c*h*w] to [h*w*c n]."""
  maps = weight.reshape(len(weight), -1, height, width)
  return np.einsum("nchw->hwcn", maps).reshape(-1, len(weight))


def _variables(module, map_size=MAP):
  """The module's weights as variables of the model here."""
  flat = {}
  for name, layer in module.named_modules():
    if isinstance(layer, torch.nn.Conv2d):
      leaves = {"kernel": _hwio(layer.weight)}
    elif isinstance(layer, torch.nn.Linear):
      leaves = {"kernel": _numpy(layer.weight).T}
    elif isinstance(layer, torch.nn.BatchNorm2d):
      leaves = {"scale": _numpy(layer.weight)}
    else:
      continue
    path = _path(name, module)
    if path == ("fc6",):
      leaves = {"kernel": _from_chw(_numpy(layer.weight), *map_size)}
    if layer.bias is not None:
      leaves["bias"] = _numpy(layer.bias)
    flat |= {("params", *path, leaf): x for leaf, x in leaves.items()}
    if isinstance(layer, torch.nn.BatchNorm2d):
      flat["batch_stats", *path, "mean"] = _numpy(layer.running_mean)
      flat["batch_stats", *path, "var"] = _numpy(layer.running_var)
  return traverse_util.unflatten_dict(flat)


def _run_torch(module, images):
  """What is compared, by name."""
  x = torch.from_numpy(np.einsum("bhwc->bchw", images).copy())
  with torch.no_grad():
    logits = module.eval()(x)
  before = _variables(module).get("batch_stats", {})
  counts = _count_values(module)
  train_logits = module.train()(x)
  label = torch.from_numpy(LABEL)
  torch.nn.functional.cross_entropy(train_logits, label).backward()
  first = next(m for m in module.modules() if isinstance(m, torch.nn.Conv2d))
  after = _variables(module).get("batch_stats", {})
  return {
    "logits": _numpy(logits),
    "train logits": _numpy(train_logits),
    "statistics": _as_biased(before, after, counts),
    "gradient": _hwio(first.weight.grad),
  }


def _count_values(module):
  """Values of a batch, per channel, by batch norm; filled by a forward pass."""
  counts = {}
  for name, norm in module.named_modules():
    if isinstance(norm, torch.nn.BatchNorm2d):
      path = _path(name, module)
      norm.register_forward_hook(
        lambda _, __, y, path=path: counts.update(
          {path: y.numel() // y.shape[1]}
        )
      )
  return counts


def _as_biased(before, after, counts):
  """Statistics after a step, as if PyTorch's variance were the biased one.

  PyTorch normalises by the biased variance of a batch's n values, as is done
  here, but its running variance follows the unbiased one, n / (n - 1) times as
  large. Here it follows the biased one (see layers.batch_norm).
  """
  old = traverse_util.flatten_dict(before)
  new = traverse_util.flatten_dict(after)
  for path, n in counts.items():
    var = *path, "var"
    update = new[var] - 0.9 * old[var]
    new[var] = 0.9 * old[var] + update * (n - 1) / n
  return traverse_util.unflatten_dict(new)


# Compiling takes nearly all of the time of these tests.
_jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def _run_jax(model, variables, images):
  """What is compared, by name."""
  first = "conv1" if "conv1" in variables["params"] else "conv1_1"

  def loss(kernel, variables, x):
    params = variables["params"]
    layer = {**params[first], "kernel": kernel}
    (logits, _), state = model.apply(
      {**variables, "params": {**params, first: layer}},
      x,
      train=True,
      mutable=["batch_stats"],
    )
    own = optax.softmax_cross_entropy_with_integer_labels(logits, LABEL)
    return own.mean(), (logits, state.get("batch_stats", {}))

  @_jit
  def run(variables, x):
    logits, _ = model.apply(variables, x, train=False)
    gradient, (train_logits, statistics) = jax.grad(loss, has_aux=True)(
      variables["params"][first]["kernel"], variables, x
    )
    return {
      "logits": logits,
      "train logits": train_logits,
      "statistics": statistics,
      "gradient": gradient,
    }

  return jax.device_get(run(variables, images))


@pytest.fixture(scope="module", params=CASES, ids=_case_id)
def results(request):
  """Of one case, here and in PyTorch."""
  name, width, fields = request.param
  images = _images(name)
  model = create_model(
    name, num_classes=CLASSES, width=width, dropout_rate=0.0, **fields
  )
  module = _torch_network(name, width, fields)
  variables = _variables(module)
  init = functools.partial(model.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), images)
  # Flax would not mind variables that no layer reads.
  assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, shapes)
  return _run_jax(model, variables, images), _run_torch(module, images)


def _assert_close(ours, theirs):
  """Arrays, or trees of arrays with the same structure."""
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(ours),
    jax.tree.leaves(theirs),
    strict=True,
  ):
    name = jax.tree_util.keystr(path)
    assert x.shape == y.shape, name
    difference = np.abs(x - y).max() / np.abs(y).max()
    assert difference <= TOLERANCE, f"{name}: relative error {difference:.1e}"


@pytest.mark.parametrize(
  "quantity", ["logits", "train logits", "statistics", "gradient"]
)
def test_equals_torch(results, quantity):
  ours, theirs = (side[quantity] for side in results)
  if quantity != "statistics":
    # Something that both sides could disagree on.
    spread = np.ptp(theirs, axis=-1 if quantity == "gradient" else 0)
    assert spread.max() > 0.01 * np.abs(theirs).max() > 0
  _assert_close(ours, theirs)


@pytest.mark.parametrize(
  "name", [name for name in BACKBONES if name != "cnn_m"]
)
def test_torchvision_files_are_read_by_the_same_transposes(name, tmp_path):
  module = _torch_network(name, NARROW, {}, size=(64, 64))
  expected = _variables(module, map_size=(2, 2))
  path = tmp_path / "torchvision.pth"
  torch.save(module.state_dict(), path)
  variables, _, report = load_pretrained(
    path, backbone=name, variables=jax.tree.map(np.zeros_like, expected)
  )
  assert report.layout == "torchvision"
  jax.tree.map(np.testing.assert_array_equal, variables, expected)


LSTM_HIDDEN = 6


def _lstm_variables(module):
  weights = {key: _numpy(x) for key, x in module.state_dict().items()}

  def layer(suffix):
    kernel, recurrent, *biases = (
      weights[f"lstm.{kind}_{suffix}"]
      for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    # PyTorch has two biases, which only ever act as their sum.
    return {
      "input": {"kernel": kernel.T, "bias": sum(biases)},
      "recurrent": {"kernel": recurrent.T},
    }

  layers = {}
  for index in range(module.lstm.num_layers):
    layers[f"layer{index + 1}"] = layer(f"l{index}")
    if module.lstm.bidirectional:
      layers[f"layer{index + 1}_backward"] = layer(f"l{index}_reverse")
  logits = {
    "kernel": weights["logits.weight"].T,
    "bias": weights["logits.bias"],
  }
  return {"params": {"lstm": layers, "logits": logits}}


@pytest.mark.parametrize(
  "layers, bidirectional, output",
  [
    (1, False, "last"),
    (1, True, "mean"),
    (2, False, "mean"),
    (2, True, "last"),
  ],
)
def test_lstm_equals_torch_on_packed_sequences(layers, bidirectional, output):
  rng = np.random.default_rng(SEED)
  x = rng.normal(size=(4, 7, 9)).astype(np.float32)
  length = np.array([5, 1, 7, 3])
  x[np.arange(7) >= length[:, None]] = 99.0  # Padding must not count.
  label = np.array([0, 1, 2, 1])
  torch.manual_seed(SEED)
  module = torch_networks.LSTMClassifier(
    inputs=9,
    hidden=LSTM_HIDDEN,
    layers=layers,
    bidirectional=bidirectional,
    output=output,
    classes=3,
  )
  expected = module(torch.from_numpy(x), torch.from_numpy(length))
  loss = torch.nn.functional.cross_entropy(expected, torch.from_numpy(label))
  loss.backward()
  model = LSTMClassifier(
    num_classes=3,
    source="rgb",
    hidden_sizes=(LSTM_HIDDEN,) * layers,
    output=output,
    bidirectional=bidirectional,
    dropout_rate=0.0,
  )
  variables = _lstm_variables(module)

  @_jit
  @functools.partial(jax.grad, has_aux=True)
  def run(variables):
    inputs = {"rgb": x, "length": length}
    logits, _ = model.apply(variables, inputs, train=True)
    own = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return own.mean(), logits

  gradients, logits = run(variables)
  _assert_close(logits, _numpy(expected))
  # The gradients have the places of the weights, except that both of
  # PyTorch's biases have the gradient of their sum.
  for parameter in module.parameters():
    parameter.data = parameter.grad
  wanted = _lstm_variables(module)
  for layer in wanted["params"]["lstm"].values():
    layer["input"]["bias"] /= 2
  _assert_close(jax.device_get(gradients), wanted)
