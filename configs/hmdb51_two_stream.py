r"""HMDB-51 as the first two-stream paper: CNN-M-2048 twice, and UCF-101 beside.

Paper: Simonyan & Zisserman 2014, "Two-Stream Convolutional Networks for Action
Recognition in Videos" (1406.2199), section 5.
Published: top-1 58.0 % (average), 59.4 % (SVM), mean of 3 splits; spatial
40.5 %, temporal 54.6 %.

  python data_prep/build_tfds.py --dataset=hmdb51 --videos=HMDB-51 \
    --annotations=testTrainMulti_7030_splits --split=1 --flow=tvl1 \
    --bound=20 --out=data/hmdb51_1
  python data_prep/build_tfds.py --dataset=ucf101 --videos=UCF-101 \
    --annotations=ucfTrainTestlist --split=1 --flow=tvl1 --bound=20 \
    --out=data/ucf101_1
  python data_prep/convert_weights.py imagenet-vgg-m-2048.mat \
    --backbone=cnn_m --out=weights/cnn_m.safetensors
  python -m twostream_jax.main --config=configs/hmdb51_two_stream.py

The training clips of UCF-101 train the same networks under a head of their own
(multi-task learning: on split 1 the temporal network gains from 46.6 to 55.4 %,
table 2).

Settings and differences are those of ucf101_simonyan14, and two more: the
spatial stream has the second head too, which costs it steps and changes nothing
else, as only the last layer is trained; and clips are drawn uniformly over the
classes of both sets, so two of three are of UCF-101. How the paper shares a
batch between the sets is not known here.
"""

from twostream_jax.configs import ucf101_simonyan14


def get_config():
  """The UCF-101 recipe, on HMDB-51; one split."""
  config = ucf101_simonyan14.get_config()
  config.data.dir = "data/hmdb51_1"
  config.data.second_dir = "data/ucf101_1"
  config.data.build_command = (
    "python data_prep/build_tfds.py --dataset=hmdb51 --videos=HMDB-51"
    " --annotations=testTrainMulti_7030_splits --split=1 --flow=tvl1"
    " --bound=20 --out=data/hmdb51_1"
  )
  return config
