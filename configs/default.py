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

  # "stream": one modality through one image network. "joint": both at once,
  # end to end. "features": sequences of features of trained streams.
  stage.kind = "stream"
  # "rgb" frames, or stacks of "flow" fields; for kind "stream".
  stage.modality = modality
  # Which feature later stages read: a layer's name ("fc6", "fc7", "pool").
  stage.feature = "fc6" if is_flow else "pool"
  # Videos per batch, over all devices.
  stage.batch_size = 32
  # Draw classes uniformly and then videos (Simonyan & Zisserman 2014), instead
  # of shuffled epochs; for sets with one label per video.
  stage.balanced = False
  # Optimiser updates; one batch each.
  stage.total_steps = 1000

  stage.model = ml_collections.ConfigDict()
  # A key of twostream_jax.models.BACKBONES.
  stage.model.name = "cnn_m" if is_flow else "resnet18"
  # Factor on all layer widths; 1 is the published network.
  stage.model.width = 1.0
  # Probability to drop a unit, where the network has dropout; 0..1.
  stage.model.dropout_rate = 0.9 if is_flow else 0.5
  # Batch norm by the statistics of the whole batch, whatever the number of
  # devices; False: of each device's own part.
  stage.model.sync_batch_norm = True
  # Fields that only this network has; see its class in twostream_jax.models.
  # The temporal CNN-M-2048 has no second response normalisation (Simonyan &
  # Zisserman 2014, section 5).
  stage.model.fields = ml_collections.ConfigDict(
    {"normalisation": "lrn", "second_lrn": False} if is_flow else {}
  )

  stage.init = ml_collections.ConfigDict()
  # File of weights to begin with; "" is none. See twostream_jax.pretrained. A
  # flow stream takes weights of an image network: its first kernel is averaged
  # over R, G, B and repeated (Wang et al. 2015, section 3). How the pixels are
  # normalised (rgb_mean, rgb_std, flow_scale below) is then the file's word.
  stage.init.weights = ""
  # A key of twostream_jax.pretrained.LAYOUTS; "": told by the file's keys.
  stage.init.layout = ""
  # Leave layers after the convolutions fresh where the file lacks them.
  stage.init.partial = False

  stage.input = ml_collections.ConfigDict()
  # Side of the square input, pixels.
  stage.input.image_size = 224
  # Flow fields per stack (2 channels each); only "flow" uses it.
  stage.input.stack_length = 10
  # Snippets per training example, one in each equal part of the video.
  stage.input.num_segments = 1
  # A video shorter than a stack: "loop" starts it again, "hold" repeats its
  # last field.
  stage.input.short_clip = "loop"
  # How training crops are drawn. "random": anywhere, by crop_scale and
  # max_ratio. "corner": at a corner or the centre, by corner_scales and
  # max_distort (Wang et al. 2015).
  stage.input.crop = "random"
  # Smallest and largest random crop, as a share of the short side, 0..1.
  stage.input.crop_scale = (0.66, 1.0)
  # Largest ratio of the sides of a random crop; 1 is square.
  stage.input.max_ratio = 1.33
  # Heights and widths of corner crops, as shares of the short side, largest
  # first: 256, 224, 192 and 168 of 256 pixels.
  stage.input.corner_scales = (1.0, 0.875, 0.75, 0.65625)
  # How far apart in that list height and width may be; 3 is anything.
  stage.input.max_distort = 3
  # Mirror half of the examples; flow-x is negated. Off where labels name a
  # direction ("left to right").
  stage.input.flip = True
  # Mean and standard deviation of R, G, B in 0..1 (ImageNet's, as used by
  # torchvision).
  stage.input.rgb_mean = (0.485, 0.456, 0.406)
  stage.input.rgb_std = (0.229, 0.224, 0.225)
  # Colour noise along the principal components of ImageNet's colours, one draw
  # per example; only "rgb" uses it. 0 is none, 0.1 that of Krizhevsky et al.
  # 2012.
  stage.input.rgb_jitter = 0.0
  # Motion, in pixels per frame, that becomes an input of 1.
  stage.input.flow_scale = 1.0
  # Subtract from each flow field its mean vector (camera motion).
  stage.input.subtract_mean_flow = is_flow

  stage.optim = get_optim()
  return stage


def get_optim() -> ml_collections.ConfigDict:
  """Settings of a stage's optimiser."""
  optim = ml_collections.ConfigDict()
  # "sgd" or "adam".
  optim.name = "sgd"
  # Peak learning rate.
  optim.learning_rate = 0.01
  # "constant", "cosine" (to 0) or "step" (times decay_factor at boundaries).
  optim.schedule = "cosine"
  # Steps of linear growth of the learning rate from 0.
  optim.warmup_steps = 0
  # Steps at which "step" decays.
  optim.boundaries = ()
  # Factor on the learning rate at each of them.
  optim.decay_factor = 0.1
  # Decay of the velocity of SGD, 0..1.
  optim.momentum = 0.9
  # Nesterov momentum, for SGD.
  optim.nesterov = False
  # L2 coefficient on kernels; biases and norms are left out.
  optim.weight_decay = 5e-4
  # Global gradient norm is clipped to this; 0 is never.
  optim.max_grad_norm = 0.0
  # Probability mass spread over all classes, 0..1.
  optim.label_smoothing = 0.0
  # Decay of a moving average of parameters and batch statistics, which then is
  # what predicts, 0..1; 0 keeps none.
  optim.ema_decay = 0.0
  # Pairs of a regular expression and a factor on the learning rate of the
  # parameters whose path it matches from the start ("backbone/conv"); 0 freezes
  # them. The first match is used.
  optim.multipliers = ()
  # Regular expression of the kernels under l1 and l21; "" is none.
  optim.penalised = ""
  # Weight of the sum of their absolute values, by a proximal step.
  optim.l1 = 0.0
  # Weight of the sum of the norms of their columns, by the same step.
  optim.l21 = 0.0
  return optim


def get_joint(towers: tuple[str, str]) -> ml_collections.ConfigDict:
  """Settings of a joint stage of two streams, spatial first.

  The streams give the networks, and their weights where they were trained
  before.
  """
  stage = get_stream("flow")
  # Both modalities at once.
  stage.kind = "joint"
  # Names of the streams: one of rgb, one of flow.
  stage.towers = towers
  # One of twostream_jax.models.two_stream.FUSIONS.
  stage.model.name = "average"
  return stage


def get_features(
  model: str, sources: tuple[str, ...]
) -> ml_collections.ConfigDict:
  """Settings of a stage that reads features of earlier streams."""
  stage = ml_collections.ConfigDict()
  # See get_stream.
  stage.kind = "features"
  # Names of the streams; each gives the feature that its settings name.
  stage.sources = sources
  # Videos per batch, over all devices.
  stage.batch_size = 32
  # See get_stream.
  stage.balanced = False
  # Optimiser updates; one batch each.
  stage.total_steps = 1000
  stage.model = ml_collections.ConfigDict()
  # A key of twostream_jax.models.FEATURE_MODELS.
  stage.model.name = model
  # Probability to drop a unit, 0..1.
  stage.model.dropout_rate = 0.5
  # Fields that only this network has; see its class in twostream_jax.models.
  stage.model.fields = ml_collections.ConfigDict()
  stage.optim = get_optim()
  return stage


def get_config() -> ml_collections.ConfigDict:
  """The two-stream recipe with every setting at its default."""
  config = ml_collections.ConfigDict()
  # Random seed of parameters, order of the data, crops and dropout.
  config.seed = 0
  # What networks compute in: "float32" or "bfloat16". Parameters, the last
  # layer and losses are float32.
  config.precision = "float32"
  # Workdir of another run whose stages of the same name give the first
  # weights, as far as they fit; "" is none.
  config.init_from = ""

  config.data = ml_collections.ConfigDict()
  # Folder that data_prep/build_tfds.py wrote to (its --out).
  config.data.dir = ""
  # Folder of a second dataset to train streams on as well, with a head of its
  # own (multi-task learning, Simonyan & Zisserman 2014); "" is none.
  config.data.second_dir = ""
  # Shown when there is no dataset in that folder.
  config.data.build_command = (
    "python data_prep/build_tfds.py --dataset=folder --videos=VIDEOS --out=DIR"
  )
  # Split that is trained on.
  config.data.train_split = "train"
  # Split for curves and for the choice of checkpoints; "" is none.
  config.data.validation_split = ""
  # Split whose scores are reported.
  config.data.test_split = "test"
  # Threads that decode and crop.
  config.data.threads = os.cpu_count() or 1
  # Processes that decode and crop training batches instead of the threads: 10
  # to 30 % faster; each holds two batches. Linux only; 0 is none.
  config.data.processes = (
    min(config.data.threads, 8) if hasattr(os, "memfd_create") else 0
  )
  # Synthetic videos of each class, by split, that main renders where data.dir
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
  # Steps between two checkpoints.
  config.train.checkpoint_every = 500
  # How many of the newest checkpoints are kept, beside the best one.
  config.train.keep_checkpoints = 2
  # Parts of each batch that pass through a network one after the other, for
  # less memory (gradient accumulation). Batch norm sees each for itself.
  config.train.micro_batches = 1
  # Steps of a stage that may be left out because the loss or a gradient is not
  # finite; one more ends the run. They advance the learning rate schedule.
  config.train.max_skipped_steps = 0

  config.selection = ml_collections.ConfigDict()
  # Metric of the validation split by which the best state is saved, scored and
  # read by later stages: "accuracy", "map" or "loss"; "": the last is used.
  config.selection.metric = ""
  # Validations in a row without a better one that end a stage; 0 is never.
  config.selection.patience = 0

  config.eval = ml_collections.ConfigDict()
  # Which views of a video are scored: "single" (the middle one), "KxM" (K
  # equally spaced snippets, M crops of each: 1, 5 or 10) or "dense" (every
  # snippet); see twostream_jax.data.loader.protocols.
  config.eval.protocol = "25x10"
  # Side of a crop, as a share of the short side, 0..1.
  config.eval.crop_fraction = 0.875
  # Views that pass through the network together on a device. Memory is bounded
  # by it, whatever the protocol and the length of a video.
  config.eval.views_per_pass = 64

  config.features = ml_collections.ConfigDict()
  # Equally spaced snippets of a video whose features are stored.
  config.features.num_frames = 25
  # Side of their crop, as a share of the short side, 0..1.
  config.features.crop_fraction = 0.875

  config.fusion = ml_collections.ConfigDict()
  # "average" (of probabilities), "average_logits", "weighted" by `weights`, and
  # those that are fitted on `fit_split`: "fitted_weights", "svm", "logistic",
  # "adaptive"; see twostream_jax.fuse.
  config.fusion.rules = ("average", "weighted")
  # Weight of each stage in the weighted fusion, in the order of `stages`.
  config.fusion.weights = (1.0, 1.5)
  # Split whose scores the other rules are fitted on; never the test split.
  config.fusion.fit_split = ""

  config.report = ml_collections.ConfigDict()
  # Videos shown in the report.
  config.report.num_examples = 24
  # Whether to draw on them what each network's answer rests on (Grad-CAM).
  config.report.class_maps = True
  # What a reader should know of the numbers; printed below the table too.
  config.report.note = ""
  return config.lock()
