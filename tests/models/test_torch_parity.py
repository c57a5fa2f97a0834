"""Every backbone, and the LSTM, against the same in plain torch.nn.

The weights are random, in PyTorch's layout, and reach the models here by the
transposes in torch_networks. Both sides compute in float32.

The maps before fc6 are not square, and the images not divisible by 32: swapped
axes, wrong orders and wrong rounding would show.

Rounding may switch a ReLU or a maximum, and the first gradient then jumps by
1e-3 to 1e-2, on one processor and not on another. Where the gradients are that
far apart in float32, float64 decides, to a stricter bound.
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
from tests.models.torch_networks import (  # noqa: E402
  hwio,
  lstm_variables_of,
  numpy_of,
  path_of,
  randomise,
  variables_of,
)

pytestmark = pytest.mark.optional

# Relative to the largest absolute value of an array.
TOLERANCE = 1e-4
# Of models that compute in float64 and give logits in float32.
TOLERANCE_FLOAT64 = 1e-6
SIZE = (80, 112)
MAP = (2, 3)  # What of SIZE reaches fc6.
CLASSES = 5
LABEL = np.array([1, 3])
SEED = 1

NARROW = 1 / 8
TORCHVISION = [name for name in BACKBONES if name != "cnn_m"]
# Compiled in about 20 seconds; blocks like those of resnet50, and more of them.
SLOW = ("resnet101", "resnet152")
# To save time, every depth is compared at an eighth of its width, and one
# network of each kind as it is.
CASES = [
  *((name, NARROW, {}) for name in TORCHVISION),
  ("vgg16", 1.0, {}),
  ("resnet18", 1.0, {}),
  ("cnn_m", 1.0, {"normalisation": "lrn", "second_lrn": True}),
  ("cnn_m", NARROW, {"normalisation": "lrn", "second_lrn": False}),
  ("cnn_m", NARROW, {"normalisation": "batch"}),
  ("cnn_m", NARROW, {"normalisation": "none"}),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
  """Threads of PyTorch that wait would take XLA's compiler the processor."""
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(threads)


def _marked(case):
  marks = [pytest.mark.full_size] if case[0] in SLOW else []
  return pytest.param(case, id=_case_id(case), marks=marks)


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
  return randomise(module, SEED)


def _images(name):
  x = np.random.default_rng(SEED).normal(size=(2, *SIZE, 3))
  # In the range of pixels of 0..255, where LRN is far from a mere scaling.
  x *= 60 if name == "cnn_m" else 1
  return x.astype(np.float32)


def _run_torch(module, images):
  """What is compared, by name."""
  x = torch.from_numpy(np.einsum("bhwc->bchw", images).copy())
  with torch.no_grad():
    logits = module.eval()(x)
  before = variables_of(module, MAP).get("batch_stats", {})
  counts = _count_values(module)
  train_logits = module.train()(x)
  label = torch.from_numpy(LABEL)
  torch.nn.functional.cross_entropy(train_logits, label).backward()
  first = next(m for m in module.modules() if isinstance(m, torch.nn.Conv2d))
  after = variables_of(module, MAP).get("batch_stats", {})
  return {
    "logits": numpy_of(logits),
    "train logits": numpy_of(train_logits),
    "statistics": _as_biased(before, after, counts),
    "gradient": hwio(first.weight.grad),
  }


def _count_values(module):
  """Values of a batch, per channel, by batch norm; filled by a forward pass."""
  paths = {
    norm: path_of(name, module)
    for name, norm in module.named_modules()
    if isinstance(norm, torch.nn.BatchNorm2d)
  }
  counts = {}

  def count(norm, inputs, y):
    counts[paths[norm]] = y.numel() // y.shape[1]

  for norm in paths:
    norm.register_forward_hook(count)
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

  @jax.jit
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


def _run(case, dtype):
  """What is compared of a case, here and in PyTorch."""
  name, width, fields = case
  images = _images(name).astype(dtype)
  model = create_model(
    name,
    num_classes=CLASSES,
    width=width,
    dropout_rate=0.0,
    dtype=dtype,
    **fields,
  )
  module = _torch_network(name, width, fields)
  if dtype == np.float64:
    module = module.double()
  variables = variables_of(module, MAP)
  init = functools.partial(model.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), images)
  # Flax would not mind variables that no layer reads.
  assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, shapes)
  return _run_jax(model, variables, images), _run_torch(module, images)


@pytest.fixture(scope="module", params=map(_marked, CASES))
def compared(request):
  """A case and its results in float32."""
  return request.param, _run(request.param, np.float32)


def _relative_error(x, y):
  assert x.shape == y.shape
  return np.abs(x - y).max() / np.abs(y).max()


def _assert_close(ours, theirs, tolerance=TOLERANCE):
  """Arrays, or trees of arrays with the same structure."""
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  errors = jax.tree.map(_relative_error, ours, theirs)
  for path, error in jax.tree_util.tree_leaves_with_path(errors):
    name = jax.tree_util.keystr(path)
    assert error <= tolerance, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("quantity", ["logits", "train logits"])
def test_logits_equal_torch(compared, quantity):
  _, results = compared
  ours, theirs = (side[quantity] for side in results)
  # The two images have something that both sides could disagree on.
  assert np.ptp(theirs, axis=0).max() > 0.01 * np.abs(theirs).max()
  _assert_close(ours, theirs)


def test_running_statistics_equal_torch(compared):
  _, results = compared
  _assert_close(*(side["statistics"] for side in results))


def test_first_gradient_equals_torch(compared):
  case, results = compared
  ours, theirs = (side["gradient"] for side in results)
  if _relative_error(ours, theirs) <= TOLERANCE:
    return
  with jax.enable_x64(True):
    ours, theirs = (side["gradient"] for side in _run(case, np.float64))
  assert ours.dtype == theirs.dtype == np.float64
  _assert_close(ours, theirs, TOLERANCE_FLOAT64)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_files_are_read_by_the_same_transposes(name, tmp_path):
  module = _torch_network(name, NARROW, {}, size=(64, 64))
  expected = variables_of(module, map_size=(2, 2))
  path = tmp_path / "torchvision.pth"
  torch.save(module.state_dict(), path)
  variables, _, report = load_pretrained(
    path, backbone=name, variables=jax.tree.map(np.zeros_like, expected)
  )
  assert report.layout == "torchvision"
  jax.tree.map(np.testing.assert_array_equal, variables, expected)


LSTM_HIDDEN = 6


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
  variables = lstm_variables_of(module)

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def run(variables):
    inputs = {"rgb": x, "length": length}
    logits, _ = model.apply(variables, inputs, train=True)
    own = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return own.mean(), logits

  gradients, logits = run(variables)
  _assert_close(logits, numpy_of(expected))
  # The gradients have the places of the weights, except that both of
  # PyTorch's biases have the gradient of their sum.
  for parameter in module.parameters():
    parameter.data = parameter.grad
  wanted = lstm_variables_of(module)
  for layer in wanted["params"]["lstm"].values():
    layer["input"]["bias"] /= 2
  _assert_close(jax.device_get(gradients), wanted)
