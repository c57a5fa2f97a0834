"""Every setting of a run, with its default. Other configs change these.

A config is a locked `ConfigDict`: a key that is not here can't be set, neither
in a config file nor on the command line.
"""

import os

import ml_collections


def get_stream(modality: str) -> ml_collections.ConfigDict:
  """Settings of one stream stage, for modality "rgb" or "flow"."""
  is_flow = modality == "flow"
  stage = ml_collections.ConfigDict()

  # "stream": one modality through one image network.
  stage.kind = "stream"
  # "rgb" frames, or stacks of "flow" fields.
  stage.modality = modality
  # Videos a batch, over all devices.
  stage.batch_size = 32
  # Optimiser updates; one batch each.
  stage.total_steps = 1000

  stage.model = ml_collections.ConfigDict()
  # A key of twostream_jax.models.BACKBONES.
  stage.model.name = "cnn_m" if is_flow else "resnet18"
  # Factor on all layer widths; 1 is the published network.
  stage.model.width = 1.0
  # Probability to drop a unit, where the network has dropout; 0..1.
  stage.model.dropout_rate = 0.9 if is_flow else 0.5
  # Fields that only this network has; see its class in twostream_jax.models.
  # The temporal CNN-M-2048 has no second response normalisation (Simonyan &
  # Zisserman 2014, section 5).
  stage.model.fields = ml_collections.ConfigDict(
    {"normalisation": "lrn", "second_lrn": False} if is_flow else {}
  )

  stage.input = ml_collections.ConfigDict()
  # Side of the square input, pixels.
  stage.input.image_size = 224
  # Flow fields a stack (2 channels each); only "flow" uses it.
  stage.input.stack_length = 10
  # Windows a training sample, one in each equal part of the video.
  stage.input.num_segments = 1
  # A video shorter than a stack: "loop" starts it again, "hold" repeats its
  # last field.
  stage.input.short_clip = "loop"
  # Smallest and largest training crop, as a share of the short side, 0..1.
  stage.input.crop_scale = (0.66, 1.0)
  # Largest ratio of the sides of a training crop; 1 is square.
  stage.input.max_ratio = 1.33
  # Mirror half of the samples; flow-x is negated. Off where labels name a
  # direction ("left to right").
  stage.input.flip = True
  # Mean and standard deviation of R, G, B in 0..1 (ImageNet's, as used by
  # torchvision).
  stage.input.rgb_mean = (0.485, 0.456, 0.406)
  stage.input.rgb_std = (0.229, 0.224, 0.225)
  # Pixels of motion a frame that become an input of 1.
  stage.input.flow_scale = 1.0
  # Subtract from each flow field its mean vector (camera motion).
  stage.input.subtract_mean_flow = is_flow

  stage.optim = ml_collections.ConfigDict()
  # Peak learning rate of SGD.
  stage.optim.learning_rate = 0.01
  # "constant", "cosine" (to 0) or "step" (times decay_factor at boundaries).
  stage.optim.schedule = "cosine"
  # Steps of linear growth of the learning rate from 0.
  stage.optim.warmup_steps = 0
  # Steps at which "step" decays.
  stage.optim.boundaries = ()
  stage.optim.decay_factor = 0.1
  # 0..1.
  stage.optim.momentum = 0.9
  stage.optim.nesterov = False
  # L2 coefficient on kernels; biases and norms are left out.
  stage.optim.weight_decay = 5e-4
  # Global gradient norm is clipped to this; 0 is never.
  stage.optim.max_grad_norm = 0.0
  # Probability mass spread over all classes, 0..1.
  stage.optim.label_smoothing = 0.0
  return stage


def get_config() -> ml_collections.ConfigDict:
  """The two-stream recipe with every setting at its default."""
  config = ml_collections.ConfigDict()
  # Of parameters, order of the data, crops and dropout.
  config.seed = 0

  config.data = ml_collections.ConfigDict()
  # Folder that data_prep/build_tfds.py wrote to (its --out).
  config.data.dir = ""
  # Shown when there is no dataset in that folder.
  config.data.build_command = (
    "python data_prep/build_tfds.py --dataset=folder --videos=VIDEOS --out=DIR"
  )
  # Split to train on.
  config.data.train_split = "train"
  # For curves and for fitting fusion weights; "" is none.
  config.data.validation_split = ""
  # Split whose scores are reported.
  config.data.test_split = "test"
  # Threads that decode and crop.
  config.data.threads = os.cpu_count() or 1
  # Synthetic clips of each class, by split, that main renders where data.dir
  # has no dataset; all 0 is never.
  config.data.synthetic = ml_collections.ConfigDict(
    {"train": 0, "validation": 0, "test": 0}
  )
  # Short side of the synthetic dataset's frames, pixels.
  config.data.synthetic_short_side = 64

  # Names of the stages, in order; each has its settings under its name.
  config.stages = ("spatial", "temporal")
  config.spatial = get_stream("rgb")
  config.temporal = get_stream("flow")

  config.train = ml_collections.ConfigDict()
  # Steps between two records of training metrics.
  config.train.log_every = 50
  # Steps between two passes over the validation split (one centre view).
  config.train.validate_every = 500
  # Steps between two checkpoints; a multiple of log_every.
  config.train.checkpoint_every = 500
  # How many of the newest checkpoints are kept.
  config.train.keep_checkpoints = 2

  config.eval = ml_collections.ConfigDict()
  # Equally spaced clips of a video.
  config.eval.num_clips = 25
  # Crops a clip: 1 (centre), 5 (and corners) or 10 (and their mirror images).
  config.eval.num_crops = 10
  # Side of a crop, as a share of the short side, 0..1.
  config.eval.crop_fraction = 0.875
  # Videos a batch, over all devices.
  config.eval.batch_size = 8
  # Views that pass through the network together on a device.
  config.eval.views_per_pass = 64

  config.fusion = ml_collections.ConfigDict()
  # Weight of each stage in the weighted fusion, in the order of `stages`.
  config.fusion.weights = (1.0, 1.5)
  # Fit the weights on the validation split's scores instead.
  config.fusion.fit_on_validation = False

  config.report = ml_collections.ConfigDict()
  # Clips shown in the report.
  config.report.num_examples = 24
  # What a reader should know of the numbers; printed below the table too.
  config.report.note = ""
  return config.lock()
