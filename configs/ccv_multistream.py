r"""Columbia Consumer Video with four streams and fusion adapted to each class.

Paper: Wu et al. 2016, "Multi-Stream Multi-Class Fusion of Deep Networks for
Video Classification" (ACM Multimedia; 1509.06086).
Published: mean average precision 84.9 %, with an audio stream; no published
number without it on this set (92.2 % top-1 on UCF-101 without audio).

  python data_prep/build_tfds.py --dataset=ccv --videos=CCV_videos \
    --annotations=CCV --keep_unlabelled --allow_missing --flow=tvl1 \
    --bound=20 --out=data/ccv
  python data_prep/convert_weights.py vgg19-dcbb9e9d.pth \
    --backbone=vgg19 --out=weights/vgg19.safetensors
  python -m twostream_jax.main --config=configs/ccv_multistream.py

Spatial and motion networks, an LSTM on each, and their scores fused by weights
that are learned for each class, with the class confusions of the streams as a
prior. "logistic" is the same without prior and sparsity, as in the paper's
comparison. This project has no audio stream: 84.9 % is not this recipe's to
reach.

From memory and uncertain: VGG-19 and CNN-M as the networks, the form of the
objective (see twostream_jax.fuse.adaptive), and the sizes of the LSTMs (1024
and 512 here). Which scores the paper fits its weights on is not known: here
those of the train split, which the networks were trained on, so the fusion
trusts streams that overfit more than it should. With a split of your own kept
out of training, set --config.fusion.fit_split to it. The streams are trained as
in ucf101_hybrid, and the weights are torchvision's.
"""

from twostream_jax.configs import ccv_hybrid


def get_config():
  """The hybrid's streams and LSTMs under adaptive fusion."""
  config = ccv_hybrid.get_config()
  with config.unlocked():
    del config.fusion_network
  config.stages = ("spatial", "temporal", "spatial_lstm", "temporal_lstm")
  config.fusion.rules = ("average", "logistic", "adaptive")
  config.fusion.weights = (1.0, 1.0, 1.0, 1.0)
  config.fusion.fit_split = "train"
  return config
