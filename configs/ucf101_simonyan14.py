r"""UCF-101 as the first two-stream paper: CNN-M-2048 twice, average and SVM.

Paper: Simonyan & Zisserman 2014, "Two-Stream Convolutional Networks for Action
Recognition in Videos" (1406.2199), sections 2, 3 and 5.
Published: top-1 86.9 % (average), 88.0 % (SVM), mean of 3 splits; spatial
73.0 %, temporal 83.7 %.

  python data_prep/build_tfds.py --dataset=ucf101 --videos=UCF-101 \
    --annotations=ucfTrainTestlist --split=1 --flow=tvl1 --bound=20 \
    --out=data/ucf101_1
  python data_prep/convert_weights.py imagenet-vgg-m-2048.mat \
    --backbone=cnn_m --out=weights/cnn_m.safetensors
  python -m twostream_jax.main --config=configs/ucf101_simonyan14.py

The same with --split=2 and 3, other folders and --config.data.dir for the mean
of 3 splits. The weights are MatConvNet's copy of VGG_CNN_M_2048, from ImageNet.

Spatial: only the last layer is trained, with a dropout of 0.5 (table 1a, 72.7 %
on split 1), and colours are jittered. Temporal: 10 fields, all layers from
random weights. The videos of a batch are drawn uniformly over the classes.

What differs from the paper: flow is TV-L1, not that of Brox et al. 2004; logits
are averaged over the 250 views, not softmax scores. How strong the jitter of
colours is, the paper does not say: here as in Krizhevsky et al. 2012. The
paper's best temporal network learns HMDB-51 too (multi-task, as in
hmdb51_two_stream; 81.5 against 81.0 % on split 1). The SVM is fitted on the
scores of the train split, which the networks were trained on; on which scores
the paper fits it is not known here.
"""

from twostream_jax.configs import default


def get_config():
  """Section 5; one split."""
  config = default.get_config()
  config.data.dir = "data/ucf101_1"
  config.data.build_command = (
    "python data_prep/build_tfds.py --dataset=ucf101 --videos=UCF-101"
    " --annotations=ucfTrainTestlist --split=1 --flow=tvl1 --bound=20"
    " --out=data/ucf101_1"
  )

  for stage in (config.spatial, config.temporal):
    stage.batch_size = 256
    stage.balanced = True
    # 224 of 256 pixels, anywhere, without a change of scale.
    stage.input.crop_scale = (0.875, 0.875)
    stage.input.max_ratio = 1.0
    stage.optim.learning_rate = 0.01
    stage.optim.schedule = "step"

  spatial = config.spatial
  spatial.model.name = "cnn_m"
  spatial.model.dropout_rate = 0.5
  spatial.model.fields = {"normalisation": "lrn", "second_lrn": True}
  spatial.init.weights = "weights/cnn_m.safetensors"
  spatial.input.rgb_jitter = 0.1
  spatial.feature = "fc6"
  spatial.total_steps = 20_000
  spatial.optim.boundaries = (14_000,)
  spatial.optim.multipliers = (("backbone/(?!logits)", 0.0),)

  config.temporal.model.dropout_rate = 0.9
  config.temporal.input.stack_length = 10
  config.temporal.total_steps = 80_000
  config.temporal.optim.boundaries = (50_000, 70_000)

  config.train.checkpoint_every = 1000
  config.eval.protocol = "25x10"
  config.fusion.rules = ("average", "svm")
  config.fusion.fit_split = "train"
  return config
