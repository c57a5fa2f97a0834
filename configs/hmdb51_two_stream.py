"""HMDB-51 as the first two-stream paper: CNN-M-2048 twice, average and SVM.

Paper: Simonyan & Zisserman 2014, "Two-Stream Convolutional Networks for Action
Recognition in Videos" (1406.2199), section 5.
Published: top-1 58.0 % (average), 59.4 % (SVM), mean of 3 splits, with a
temporal network that UCF-101 trained too (below); spatial 40.5 %.

  python data_prep/build_tfds.py --dataset=hmdb51 --videos=HMDB-51 \\
    --annotations=testTrainMulti_7030_splits --split=1 --flow=tvl1 \\
    --bound=20 --out=data/hmdb51_1
  python data_prep/convert_weights.py imagenet-vgg-m-2048.mat \\
    --backbone=cnn_m --out=weights/cnn_m.safetensors
  python -m twostream_jax.main --config=configs/hmdb51_two_stream.py

Settings and differences are those of ucf101_simonyan14, and one more: the
paper's temporal network of 54.6 % learns UCF-101 and HMDB-51 at once
(multi-task), which this project does not do. From random weights on HMDB-51
alone, as here, table 2 has 46.6 % on split 1; expect less than 58.0 and 59.4 %.
"""

from configs import ucf101_simonyan14


def get_config():
  """The UCF-101 recipe, on HMDB-51; one split."""
  config = ucf101_simonyan14.get_config()
  config.data.dir = "data/hmdb51_1"
  config.data.build_command = (
    "python data_prep/build_tfds.py --dataset=hmdb51 --videos=HMDB-51"
    " --annotations=testTrainMulti_7030_splits --split=1 --flow=tvl1"
    " --bound=20 --out=data/hmdb51_1"
  )
  return config
